"""From a language model to its reference, and what is read from disk."""

import copy
import os
import random
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_lib.data import corpus as corpora
from sae_lib.data.config import CorpusConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.probing.config import LabelledFiles, ProbingConfig
from sae_lib.metrics.probing.reference import ProbingPart, build_probing_reference
from sae_lib.metrics.probing.score import evaluate_probing
from sae_lib.util import files
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256
from tests.metrics.test_probing_documentation import documents
from tests.metrics.tiny_saes import make_sae, probing_inputs, probing_part

LETTERS = "bdfg"


def labelled_rows(count: int, seed: int) -> pd.DataFrame:
    """Texts of words, most of which begin with the label."""
    rng = random.Random(seed)

    def text(letter: str) -> str:
        words = [(letter if rng.random() < 0.7 else rng.choice(LETTERS)) + rng.choice("aeiou") for _ in range(12)]
        return " ".join(words[: rng.randrange(3, 12)])

    return pd.DataFrame([{"text": text(LETTERS[i % 4]), "label": LETTERS[i % 4]} for i in range(count)])


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ProbingConfig:
    folder = tmp_path_factory.mktemp("labelled")
    for name, seed in (("one", 0), ("two", 1)):
        labelled_rows(160, seed).to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    files = {name: LabelledFiles(train=str(folder / f"{name}.jsonl")) for name in ("one", "two")}
    return ProbingConfig(source="files", files=files, train_per_task=40, test_per_task=20, context=10, lm_batch=7)


@pytest.fixture(scope="module")
def built(lm, config, tmp_path_factory) -> tuple[list[ProbingPart], Path]:
    folder = tmp_path_factory.mktemp("reference")
    return build_probing_reference(probing_inputs(lm, config, None, folder)), folder


def same(one: list[ProbingPart], other: list[ProbingPart]) -> bool:
    """Whether every number and tensor agrees."""

    def parts(part: ProbingPart) -> list:
        return [part.residual, part.lengths, *(field for task in part.drawn for field in task), *part.residual_accuracy]

    def equal(a, b) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return len(one) == len(other) and all(
        equal(a, b)
        for mine, theirs in zip(one, other, strict=True)
        for a, b in zip(parts(mine), parts(theirs), strict=True)
    )


def test_one_part_for_each_dataset(built):
    reference, _ = built
    assert all(part.residual.shape[1] == 32 for part in reference)
    assert [[(task.dataset, task.name) for task in part.drawn] for part in reference] == [
        [(name, letter) for letter in LETTERS] for name in ("one", "two")
    ]
    for part in reference:
        assert part.residual.dtype == torch.float32
        assert len(part.residual) == part.lengths.sum()
        assert {(len(task.train), len(task.test)) for task in part.drawn} == {(40, 20)}
        # Words begin with their label, and the embedding carries first letters.
        assert all(0.7 < accuracy <= 1 for accuracy in part.residual_accuracy)


def test_the_residual_stream_is_the_language_models_at_each_token_behind_bos(lm, config, built):
    """The means of a task's texts, computed text by text with transformers' own hidden states."""
    reference, _ = built
    part = reference[0]
    means = part.means(lambda rows: rows, torch.device("cpu"))
    table = labelled_rows(160, 0)
    expected = {}
    for text in table["text"]:
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"][: config.context - 1]
        with torch.no_grad():
            hidden = lm.model(torch.tensor([[0, *ids]]), output_hidden_states=True).hidden_states
        expected[text] = hidden[2][0, 1:].mean(dim=0)
    distances = (means[:, None] - torch.stack(list(expected.values()))).norm(dim=2)
    # Every text of the reference is one of the file's, cut to the context, and has that text's mean.
    assert distances.min(dim=1).values.max() < 1e-4
    nearest = table["label"].iloc[distances.argmin(dim=1).tolist()].tolist()
    agree = sum(nearest[text] == task.name for task in part.drawn for text in task.train[task.train_labels].tolist())
    # Two texts that are the same after the cut may have two labels.
    assert agree >= 0.97 * 80


def test_means_leave_special_tokens_out_and_stand_texts_without_any_other(lm, config, tmp_path):
    rows = labelled_rows(160, 0)
    rows.loc[rows["label"] == "b", "text"] = "<eos>"
    rows.loc[rows["label"] == "d", "text"] = "ba <eos> de"
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    files = {"special": LabelledFiles(train=str(tmp_path / "rows.jsonl"))}
    (part,) = build_probing_reference(probing_inputs(lm, config.model_copy(update={"files": files}), None, tmp_path))
    means = part.means(lambda rows: rows, torch.device("cpu"))
    empty = part.lengths == 0
    assert empty.sum() == 1 and (means[empty] == 0).all() and means.isfinite().all()
    ids = lm.tokenizer("ba <eos> de", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = lm.model(torch.tensor([[0, *ids]]), output_hidden_states=True).hidden_states[2][0, 1:]
    expected = hidden[torch.tensor(ids) != 1].mean(dim=0)
    assert (means - expected).norm(dim=1).min() < 1e-4


def test_a_model_in_half_precision_is_kept_in_half_precision(lm, config, tmp_path):
    half = LanguageModel(
        copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer, name="half", layer=1, whole=True, identity="half"
    )
    one = config.model_copy(update={"datasets": ("one",)})
    reference = build_probing_reference(probing_inputs(half, one, None, tmp_path))
    assert reference[0].residual.dtype == torch.bfloat16
    full = build_probing_reference(probing_inputs(lm, one, None, tmp_path))
    torch.testing.assert_close(reference[0].residual.float(), full[0].residual, atol=0.5, rtol=0.1)
    sae = make_sae(architecture="standard", d_sae=48, d_in=32)
    in_half, in_full = (evaluate_probing(sae, each, one).summary["probing_k5"] for each in (reference, full))
    assert in_half == pytest.approx(in_full, abs=0.1) and in_full > 0.6


@pytest.mark.parametrize("rows", [1, 5, 10_000])
def test_means_do_not_depend_on_the_chunks(monkeypatch, rows):
    monkeypatch.setattr("sae_lib.metrics.probing.reference._ROWS", {"cpu": rows})
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 0, 7, 1, 1, 4, 0])
    residual = torch.randn(16, 2, generator=generator)
    part = probing_part(residual, lengths, [])
    expected = [text.abs().mean(dim=0) if len(text) else torch.zeros(2) for text in residual.split(lengths.tolist())]
    torch.testing.assert_close(part.means(torch.abs, torch.device("cpu")), torch.stack(expected))


def test_the_second_time_it_is_read_from_disk(lm, config, built, counted):
    reference, folder = built
    assert same(build_probing_reference(probing_inputs(lm, config, None, folder)), reference)
    assert counted == []


def test_its_files_are_read_through_only_where_they_were_touched(lm, config, built, monkeypatch):
    """Every worker opens the reference, which may be of 50 GB."""
    reference, folder = built
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(files, "file_sha256", noted)
    assert same(build_probing_reference(probing_inputs(lm, config, None, folder)), reference)
    assert read == []
    first, _ = folder.glob("probing-*.safetensors")
    os.utime(first, (0, 0))  # as a copy has it
    assert same(build_probing_reference(probing_inputs(lm, config, None, folder)), reference)
    assert read == [first.name]


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_an_altered_file_is_made_again(lm, config, built, counted, suffix):
    reference, folder = built
    expected = [part.residual.clone() for part in reference]
    file, _ = folder.glob(f"probing-*.{suffix}")
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])
    again = build_probing_reference(probing_inputs(lm, config, None, folder))
    assert counted
    assert all(torch.equal(part.residual, rows) for part, rows in zip(again, expected, strict=True))
    assert file.suffix == ".json" or file.read_bytes() == content  # the record has the time of its files


def test_other_text_models_and_seeds_have_a_reference_of_their_own(lm, config, counted, tmp_path):
    small = config.model_copy(update={"train_per_task": 8, "test_per_task": 4})
    build_probing_reference(probing_inputs(lm, small, None, tmp_path))
    renamed = LanguageModel(lm.model, lm.tokenizer, name="tiny", layer=1, whole=True, identity="tiny-2")
    build_probing_reference(probing_inputs(renamed, small, None, tmp_path))
    build_probing_reference(probing_inputs(lm, small.model_copy(update={"seed": 1}), None, tmp_path))
    moved_file = tmp_path / "moved.jsonl"
    moved_file.write_text(Path(config.files["one"].train).read_text())
    moved = small.model_copy(update={"files": {"one": LabelledFiles(train=str(moved_file))}})
    build_probing_reference(probing_inputs(lm, moved, None, tmp_path))
    before = len(counted)
    moved_file.write_text("".join(reversed(moved_file.read_text().splitlines(keepends=True))))
    build_probing_reference(probing_inputs(lm, moved, None, tmp_path))
    assert len(counted) > before
    assert len(list(tmp_path.glob("probing-*.safetensors"))) == 2 + 2 + 2 + 1 + 1


CORPUS = CorpusConfig(source="documentation", packages=("numpy",), held_out_fraction=0.3)
ON_DOCUMENTATION = ProbingConfig(
    source="documentation",
    context=17,
    train_per_task=12,
    test_per_task=6,
    min_per_class=2,
    datasets=("package", "layout"),
)


def test_the_packaged_corpus_is_one_part_of_held_out_documents(lm, monkeypatch, tmp_path):
    rows = documents(700)
    monkeypatch.setattr(corpora, "load_documents", lambda config, cache: iter(rows))
    reference = build_probing_reference(probing_inputs(lm, ON_DOCUMENTATION, CORPUS, tmp_path))
    (part,) = reference
    assert {task.dataset for task in part.drawn} == {"package", "layout"} and len(part.drawn) == 17
    assert set(part.lengths.tolist()) == {16}
    held_out = [row for row in rows if corpora.split_of(row["text"], CORPUS) == "held_out"]
    alone = tmp_path / "alone"
    monkeypatch.setattr(corpora, "load_documents", lambda config, cache: iter(held_out))
    assert same(build_probing_reference(probing_inputs(lm, ON_DOCUMENTATION, CORPUS, alone)), reference)


def test_sources_that_do_not_fit(lm, config, tmp_path):
    elsewhere = CorpusConfig(source="hub", name="someone/something", revision="main")
    for corpus in (elsewhere, None):
        with pytest.raises(ArtifactError, match=r"probing.source: 'documentation' needs corpus.source documentation"):
            build_probing_reference(probing_inputs(lm, ON_DOCUMENTATION, corpus, tmp_path))
    with pytest.raises(ArtifactError, match="has no dataset 'three'"):
        build_probing_reference(probing_inputs(lm, config.model_copy(update={"datasets": ("three",)}), None, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_texts_without_tokens(lm, config, tmp_path):
    labelled_rows(160, 0).assign(text="").to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    empty = config.model_copy(update={"files": {"empty": LabelledFiles(train=str(tmp_path / "rows.jsonl"))}})
    with pytest.raises(ArtifactError, match="probing: empty: "):
        build_probing_reference(probing_inputs(lm, empty, None, tmp_path))
