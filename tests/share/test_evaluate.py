"""Any SAE on any model: known answers on tiny models, and the packaged model end to end."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lib.__main__ import main
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.topk import TopKConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.tokens import pack
from sae_lib.metrics import core_reference
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import build_absorption_reference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.core_reference import build_core_reference
from sae_lib.metrics.probing.config import LabelledFiles, ProbingConfig
from sae_lib.metrics.reconstruction import evaluate_reconstruction
from sae_lib.metrics.stability.reference import StabilityConfig
from sae_lib.profiles.profile import EvaluationConfig, load_profile
from sae_lib.share import evaluate
from sae_lib.share.evaluate import SAEEvaluation, evaluate_sae
from sae_lib.share.load import load_sae
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import NOTEBOOKS, output_root
from tests.tiny_models import VOCABULARY, save_tiny_model

WIDTH = 16  # of the tiny models' residual stream
SMALL: dict[str, Any] = {"contexts": 6, "context_length": 16, "device": "cpu"}
POCKET = EvaluationConfig(
    absorption=AbsorptionConfig(max_words=600, probe_epochs=3, sparse_min_steps=2),
    stability=StabilityConfig(words_per_letter=1, contexts=2, min_occurrences=2),
)


def tiny_texts(n: int = 30) -> list[str]:
    generator = random.Random(0)
    return [" ".join(f"w{generator.randrange(4, VOCABULARY)}" for _ in range(12)) for _ in range(n)]


def write_sae(folder: Path, d_in: int, **metadata: object) -> Path:
    """A SAELens folder that reconstructs exactly: x = ReLU(x) - ReLU(-x), so d_in of its 2 d_in latents fire."""
    folder.mkdir(exist_ok=True)
    identity = torch.eye(d_in)
    tensors = {
        "W_enc": torch.cat([identity, -identity], dim=1),
        "W_dec": torch.cat([identity, -identity]),
        "b_enc": torch.zeros(2 * d_in),
        "b_dec": torch.zeros(d_in),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": d_in, "metadata": metadata}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(folder)
    return str(folder)


@pytest.fixture
def sae_folder(tmp_path) -> Path:
    return write_sae(tmp_path / "sae", WIDTH, model_name="someone/tiny", hook_name="blocks.1.hook_resid_post")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_an_exact_sae_scores_one_on_any_family(tmp_path, family):
    save_tiny_model(tmp_path / family, family)
    folder = write_sae(tmp_path / "sae", WIDTH)
    found = evaluate_sae(folder, str(tmp_path / family), 1, texts=tiny_texts(), metrics=["core"], **SMALL)
    assert found.summary["explained_variance"] == pytest.approx(1, abs=1e-5)
    assert found.summary["ce_score"] == pytest.approx(1, abs=1e-4)
    assert found.summary["l0"] == pytest.approx(WIDTH, abs=0.01)
    assert found.density is not None and found.density.shape == (2 * WIDTH,)
    assert found.notes == []


def test_numbers_are_those_of_the_metric(model, tmp_path):
    sae = build_autoencoder(TopKConfig(d_sae=40, k=5, normalize_inputs=False), WIDTH, seed=1)
    found = evaluate_sae(sae, model, 0, texts=tiny_texts(), metrics=["core"], **SMALL)
    lm = LanguageModel.load(save_tiny_model(Path(model)).model_copy(update={"layer": 0}), whole=True)
    tokens = torch.from_numpy(pack(tiny_texts(), lm.tokenizer, 16, 6)).long()
    expected, density = evaluate_reconstruction(sae, lm, build_core_reference(lm, tokens))
    assert {name: found.summary[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found.density is not None and torch.equal(found.density, density)
    assert found.summary["architecture"] == "topk" and found.summary["l0"] <= 5


def test_layer_is_read_from_the_saes_own_files(model, sae_folder, tmp_path):
    found = evaluate_sae(sae_folder, model, texts=tiny_texts(), metrics=["core"], **SMALL)
    assert found.summary["layer"] == 1
    with pytest.raises(ArtifactError, match="name no layer"):
        evaluate_sae(write_sae(tmp_path / "nameless", WIDTH), model, texts=tiny_texts(), **SMALL)


def test_another_place_than_the_saes_own_is_refused_unless_asked_for(model, sae_folder):
    asked: dict[str, Any] = {"texts": tiny_texts(), "metrics": ["core"], **SMALL}
    with pytest.raises(ArtifactError, match=r"layer: 2 is asked for, cfg.json says .*ask for layer 1.*any_origin"):
        evaluate_sae(sae_folder, model, 2, **asked)
    with pytest.raises(ArtifactError, match=r"model: pocket is asked for, .* trained on someone/tiny"):
        evaluate_sae(sae_folder, "pocket", 1, **asked)
    found = evaluate_sae(sae_folder, model, 2, any_origin=True, **asked)
    (note,) = found.notes
    assert found.summary["layer"] == 2 and "2 is asked for" in note and "blocks.1.hook_resid_post (layer 1)" in note


def test_a_wrong_width_names_both_and_the_likely_cause(model, tmp_path):
    for width, cause in ((20, "another model, or on another place"), (24, "width of that model's MLP")):
        folder = write_sae(tmp_path / f"sae{width}", width)
        with pytest.raises(ArtifactError, match=f"d_in is {width}, .* is {WIDTH} wide.*{cause}"):
            evaluate_sae(folder, model, 1, texts=tiny_texts(), **SMALL)


def test_a_layer_beyond_the_model_is_refused(model, tmp_path):
    folder = write_sae(tmp_path / "sae", WIDTH)
    with pytest.raises(ArtifactError, match=r"model.layer: 9 is beyond .* 3 layers"):
        evaluate_sae(folder, model, 9, texts=tiny_texts(), **SMALL)
    with pytest.raises(ArtifactError, match=r"model.layer"):
        evaluate_sae(folder, model, -1, texts=tiny_texts(), **SMALL)


def test_a_loaded_model_is_used_as_it_is(model, sae_folder, monkeypatch):
    config = save_tiny_model(Path(model))
    lm = LanguageModel.load(config, whole=True)
    monkeypatch.setattr(LanguageModel, "load", lambda *a, **k: pytest.fail("loaded again"))
    evaluate_sae(sae_folder, lm, 1, texts=tiny_texts(), metrics=["core"], **SMALL)
    with pytest.raises(ArtifactError, match="loaded whole for layer 1; load it with whole=True for layer 0"):
        evaluate_sae(sae_folder, lm, 0, any_origin=True, texts=tiny_texts(), **SMALL)


def test_what_the_model_gives_is_kept_and_read_again(model, sae_folder, tmp_path, monkeypatch):
    asked: dict[str, Any] = {"texts": tiny_texts(), "metrics": ["core"], "cache": tmp_path / "cache", **SMALL}
    first = evaluate_sae(sae_folder, model, 1, **asked)
    kept = sorted((tmp_path / "cache").iterdir())
    assert kept
    monkeypatch.setattr(core_reference, "_compute", lambda *arguments: pytest.fail("computed again"))
    assert evaluate_sae(sae_folder, model, 1, **asked).summary == first.summary
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        evaluate_sae(sae_folder, model, 1, **(asked | {"texts": tiny_texts()[1:]}))
    assert sorted((tmp_path / "cache").iterdir()) == kept


# --- text


def test_text_that_fills_less_than_was_asked_for(model, sae_folder):
    asked: dict[str, Any] = {"metrics": ["core"], "device": "cpu", "context_length": 16}
    found = evaluate_sae(sae_folder, model, 1, texts=tiny_texts(3), contexts=9, **asked)
    # 3 texts of 12 tokens and an EOS each: 39 tokens, 15 a context.
    assert found.notes == ["text: it fills 2 contexts of 16 tokens, 9 were asked for"]
    for texts in ([], ["", "  \n"], tiny_texts(1)):
        with pytest.raises(ArtifactError, match="fill no context of 16; give more text"):
            evaluate_sae(sae_folder, model, 1, texts=texts, **asked)


def test_contexts_longer_than_the_model_takes_are_shortened(tmp_path):
    save_tiny_model(tmp_path / "gpt2", "gpt2")  # 32 positions
    folder = write_sae(tmp_path / "sae", WIDTH)
    found = evaluate_sae(folder, str(tmp_path / "gpt2"), 1, texts=tiny_texts(), metrics=["core"], contexts=2)
    assert any("contexts have 32 tokens" in note for note in found.notes)
    # Two contexts of 31 tokens after BOS, less the EOS between texts of 12.
    assert 50 < found.summary["tokens"] <= 62


def test_files_are_read_whole(model, sae_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in tiny_texts()))
    asked: dict[str, Any] = {"metrics": ["core"], **SMALL}
    read = evaluate_sae(sae_folder, model, 1, files=[rows], text_field="body", **asked)
    assert read.summary == evaluate_sae(sae_folder, model, 1, texts=tiny_texts(), **asked).summary
    with pytest.raises(ArtifactError, match="text_field: no column 'text' in the corpus; it has body"):
        evaluate_sae(sae_folder, model, 1, files=[rows], **asked)
    with pytest.raises(ArtifactError, match=r"no such file: .*absent.jsonl"):
        evaluate_sae(sae_folder, model, 1, files=[tmp_path / "absent.jsonl"], **asked)
    rows.write_text('{"text": "w4"}\n{"text": ')
    with pytest.raises(ArtifactError, match=r"files: .*rows.jsonl cannot be read") as raised:
        evaluate_sae(sae_folder, model, 1, files=[rows], **asked)
    assert "\n" not in str(raised.value)


def test_without_text_the_held_out_documents_are_read(monkeypatch, tmp_path):
    profile = load_profile("smoke")
    corpus = profile.corpus.model_copy(update={"packages": ("tornado",)})
    monkeypatch.setattr(evaluate, "load_profile", lambda name: profile.model_copy(update={"corpus": corpus}))
    texts = list(evaluate.chosen_texts(None, (), "text"))
    assert 0 < len(texts) < 0.12 * len(list(evaluate.load_documents(corpus, output_root() / "corpus")))


# --- notes


def test_a_reconstruction_worse_than_the_mean_is_pointed_out(model, sae_folder):
    sae = load_sae(sae_folder)
    sae.W_dec.neg_()
    found = evaluate_sae(sae, model, 1, texts=tiny_texts(), metrics=["core"], **SMALL)
    assert found.summary["explained_variance"] < 0
    assert any("worse than predicting the mean" in note for note in found.notes)


def test_a_model_without_words_still_gives_the_rest(model, sae_folder):
    found = evaluate_sae(sae_folder, model, 1, texts=tiny_texts(), **SMALL)
    assert found.summary["ce_score"] == pytest.approx(1, abs=1e-4)
    assert "absorption_fraction" not in found.summary and found.letters.empty
    assert any(note.startswith("absorption: not measured (") for note in found.notes)
    with pytest.raises(ArtifactError):
        evaluate_sae(sae_folder, model, 1, metrics=["absorption"], **SMALL)


def test_probing_on_labelled_files(model, sae_folder, tmp_path):
    """Two classes of texts that share no word: an SAE that keeps everything tells them apart."""
    generator = random.Random(1)
    rows = []
    for _ in range(40):
        label = generator.randrange(2)
        words = range(4, 20) if label else range(20, VOCABULARY)
        rows.append({"text": " ".join(f"w{generator.choice(words)}" for _ in range(8)), "label": label})
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    probing = ProbingConfig(
        source="files", files={"words": LabelledFiles(train=str(file))}, train_per_task=16, test_per_task=8, ks=(1, 5)
    )
    settings = EvaluationConfig(probing=probing)
    found = evaluate_sae(sae_folder, model, 1, metrics=["probing"], settings=settings, device="cpu")
    assert 0.5 <= found.summary["probing_k5"] <= 1 and found.summary["probing_all"] > 0.7
    assert set(found.tasks["dataset"]) == {"words"} and found.density is None


@pytest.mark.parametrize("metrics", [["core", "speed"], []])
def test_unknown_metrics_are_refused(model, sae_folder, metrics):
    known = "core, absorption, null_absorption, stability, probing, interpretation"
    with pytest.raises(ArtifactError, match=rf"metrics: .* choose from {known}$"):
        evaluate_sae(sae_folder, model, 1, metrics=metrics, **SMALL)


# --- the packaged model, end to end


@pytest.fixture(scope="module")
def pocket(tmp_path_factory) -> tuple[Path, Path]:
    """A SAELens folder for the packaged model, and a file of text: this package's own documentation strings."""
    folder = tmp_path_factory.mktemp("pocket")
    sae = write_sae(folder / "sae", 128, model_name="pocket", hook_name="blocks.2.hook_resid_post")
    texts = [value.__doc__ for module in (evaluate, torch, np) for value in vars(module).values()]
    rows = folder / "text.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts if isinstance(text, str)))
    return sae, rows


def test_pocket_end_to_end(pocket, tmp_path):
    sae, rows = pocket
    asked: dict[str, Any] = {"files": [rows], "settings": POCKET, "cache": tmp_path, "contexts": 8}
    found = evaluate_sae(sae, "pocket", metrics=["core", "absorption", "stability"], **asked)
    assert found.summary["explained_variance"] == pytest.approx(1, abs=1e-5)
    lm = LanguageModel.load(load_profile("pocket").model, whole=True)
    reference = build_absorption_reference(lm, POCKET.absorption, tmp_path)
    expected = evaluate_absorption(load_sae(sae), reference, POCKET.absorption)
    assert {name: found.summary[name] for name in expected.summary} == pytest.approx(expected.summary, nan_ok=True)
    assert found.letters.equals(expected.tables["letters"]) and 0 < len(found.letters) < 20
    # Too few letters: told, with the letters that are missing, and the rest is there.
    assert any(note.startswith("absorption: ") and "below 20" in note and "missing" in note for note in found.notes)
    # Neighbouring tokens are more alike than tokens from anywhere.
    assert 0 < found.summary["token_change"] < found.summary["token_change_shuffled"] < 2
    assert 0 <= found.summary["context_firing"] <= 1 and found.summary["context_words"] > 0


def test_an_sae_trained_by_saelens(pocket):
    """It reconstructs well only where every convention of its library is read as meant."""
    found = evaluate_sae(NOTEBOOKS / "foreign_sae", "pocket", files=[pocket[1]], metrics=["core"], contexts=16)
    assert found.summary["architecture"] == "topk" and found.summary["layer"] == 2
    assert found.summary["explained_variance"] > 0.7 and found.summary["ce_score"] > 0.8
    assert found.summary["l0"] == pytest.approx(24, abs=0.5)


def test_command_line(pocket, tmp_path, capsys):
    sae, rows = pocket
    output = tmp_path / "out.json"
    arguments = [str(sae), "--model", "pocket", "--files", str(rows), "--contexts", "2", "--context-length", "32"]
    arguments += ["--metrics", "core", "--cache", str(tmp_path)]
    assert main(["evaluate", *arguments, "--layer", "2", "--json", str(output)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(output.read_text())
    assert written["summary"]["explained_variance"] == pytest.approx(1, abs=1e-5)
    assert "explained_variance" in printed and printed.count("\n") == len(written["summary"]) + len(written["notes"])
    assert main(["evaluate", *arguments, "--layer", "3"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ask for layer 2" in error
    assert main(["evaluate", *arguments, "--layer", "3", "--json", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: --json: {tmp_path} is a folder; name a file\n", "told before the work"
    assert main(["evaluate", *arguments, "--layer", "3", "--json", str(output / "below.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: --json: '{output}' cannot be a folder") and said.count("\n") == 1
    assert main(["evaluate", *arguments, "--max-words", "0"]) == 1
    assert "--max-words 0: must be" in capsys.readouterr().err


def test_a_result_replaces_no_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        assert main(["evaluate", "sae", "--model", "pocket", "--json", str(tmp_path / name)]) == 1
        assert f"--json: {tmp_path / name} is a device or a pipe" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_json_has_no_nan():
    row = {"l0": 40.0, "fraction": float("nan")}
    found = SAEEvaluation(row, pd.DataFrame([row]), pd.DataFrame(), None, ["few"])
    assert found.as_json()["summary"] == found.as_json()["letters"][0] == {"l0": 40.0, "fraction": None}
    assert found.as_text().splitlines() == [
        "l0        40.0", "fraction  not defined", "note: few"
    ]  # fmt: skip


# --- models that differ from what the SAE, or the metric, takes for granted


def test_an_sae_of_a_centred_model(tmp_path):
    """Its encoder sees x - mean(x), and its reconstruction has no mean either."""
    save_tiny_model(tmp_path / "gpt2", "gpt2")
    folder = write_sae(tmp_path / "sae", WIDTH, model_from_pretrained_kwargs={"center_writing_weights": True})
    off_mean = torch.eye(WIDTH) - 1 / WIDTH
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"W_enc": off_mean @ tensors["W_enc"]}, folder / "sae_weights.safetensors")
    asked: dict[str, Any] = {"texts": tiny_texts(), "metrics": ["core"], **SMALL}
    found = evaluate_sae(folder, str(tmp_path / "gpt2"), 1, **asked)
    assert found.summary["explained_variance"] < 0.99
    assert any("was trained on a model whose weights TransformerLens centred" in note for note in found.notes)
    centred = evaluate_sae(folder, str(tmp_path / "gpt2"), 1, centre=True, **asked)
    assert centred.summary["explained_variance"] == pytest.approx(1, abs=1e-5) and centred.notes == []
    assert centred.summary["ce_score"] == pytest.approx(1, abs=1e-4)
    save_tiny_model(tmp_path / "llama", "llama")
    assert evaluate_sae(folder, str(tmp_path / "llama"), 1, **asked).notes == [], "RMSNorm: nothing can be centred"
    with pytest.raises(ArtifactError, match=r"centre: the norms of .* see the mean"):
        evaluate_sae(folder, str(tmp_path / "llama"), 1, centre=True, **asked)


def test_a_model_that_overflows_is_told_in_one_line(model, sae_folder):
    lm = LanguageModel.load(save_tiny_model(Path(model)), whole=True)
    lm.model.get_input_embeddings().weight.fill_(torch.inf)
    with pytest.raises(ArtifactError, match=r"gives NaN or infinity after layer 1, .* try another model.dtype"):
        evaluate_sae(sae_folder, lm, 1, texts=tiny_texts(), metrics=["core"], **SMALL)
