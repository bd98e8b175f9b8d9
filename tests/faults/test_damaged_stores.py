"""Damaged files: made again, or refused with one line that says what to do; never silently used.

Shards and indices are tested with the harvest, outputs of notebooks with the runner, SAEs of others with their readers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_lib.autoencoders.build import WEIGHTS_FILE, load_autoencoder
from sae_lib.data.corpus import build_tokens
from sae_lib.data.tokens import load_tokens
from sae_lib.report.results import Results
from sae_lib.study import scoring
from sae_lib.training.run import CHECKPOINT_FILE, read_history, train_sae
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json, write_json
from tests.data.test_corpus import TOKENIZER, parts, tiny_profile
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

Damage = Callable[[Path], object]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    """Another bit near the end, which in all these formats is a value."""
    changed = bytearray(file.read_bytes())
    changed[-3] ^= 64
    file.write_bytes(changed)


def no_fields(file: Path) -> None:
    write_json(file, {})


def no_object(file: Path) -> None:
    write_json(file, [])


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ArtifactError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    return line


# -- tokens


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": f"w{i % 30 + 4} " * 30}) + "\n" for i in range(300)))
    return file


@pytest.mark.parametrize("spoil", [truncate, empty, flip])
@pytest.mark.parametrize("split", ["train", "held_out", "calibration"])
def test_damaged_tokens_are_made_again(tmp_path: Path, corpus: Path, split: Any, spoil: Damage) -> None:
    """Metrics read the held-out tokens and nothing else tells whether they are still those of the manifest."""
    folder, arguments = tmp_path / "tokens", (*parts(tiny_profile(str(corpus))), TOKENIZER)
    manifest = build_tokens(*arguments, folder, tmp_path / "cache")
    before = (folder / f"{split}.npy").read_bytes()
    spoil(folder / f"{split}.npy")
    assert build_tokens(*arguments, folder, tmp_path / "cache") == manifest
    assert (folder / f"{split}.npy").read_bytes() == before


@pytest.mark.parametrize("spoil", [truncate, empty])
def test_tokens_that_cannot_be_read_are_named(tmp_path: Path, spoil: Damage) -> None:
    np.save(tmp_path / "train.npy", np.ones((4, 16), dtype=np.int32))
    spoil(tmp_path / "train.npy")
    line = refusal(lambda: load_tokens(tmp_path, "train"))
    assert "train.npy" in line and "01_data" in line


# -- run folders


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def trained(store: Any, tmp_path: Path) -> tuple[Callable[[], dict[str, Any]], Path]:
    """How to train a tiny SAE, and its folder, in which it is trained."""
    training = tiny_training(steps=6, checkpoint_every=2)

    def train() -> dict[str, Any]:
        return train_sae(tiny_config("topk"), store, DATA, training, 0, tmp_path / "run")

    train()
    return train, tmp_path / "run"


@pytest.mark.parametrize(
    "spoil", [truncate, empty, lambda file: write_json(file, []), lambda file: write_json(file, {})]
)
def test_a_damaged_run_file_is_refused_or_its_sae_trained_again(trained: Any, spoil: Damage) -> None:
    train, folder = trained
    weights, run = (folder / WEIGHTS_FILE).read_bytes(), read_json(folder / "run.json")
    spoil(folder / "run.json")
    try:
        again = train()
    except ArtifactError as error:
        assert "run.json" in str(error) and "\n" not in str(error)
        (folder / "run.json").unlink()  # as the message says
        again = train()
    assert (folder / WEIGHTS_FILE).read_bytes() == weights
    assert {**again, "seconds": 0} == {**run, "seconds": 0}


def test_lost_weights_are_made_again(trained: Any) -> None:
    train, folder = trained
    before = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).unlink()
    train()
    assert (folder / WEIGHTS_FILE).read_bytes() == before


@pytest.mark.parametrize("spoil", [truncate, empty, flip])
def test_damaged_weights_are_never_evaluated(trained: Any, spoil: Damage) -> None:
    train, folder = trained
    before = (folder / WEIGHTS_FILE).read_bytes()
    spoil(folder / WEIGHTS_FILE)
    line = refusal(lambda: load_autoencoder(folder))
    assert str(folder / WEIGHTS_FILE) in line and "remove" in line
    (folder / WEIGHTS_FILE).unlink()  # as the message says
    train()
    assert (folder / WEIGHTS_FILE).read_bytes() == before
    load_autoencoder(folder)


@pytest.mark.parametrize("spoil", [truncate, empty, flip])
def test_a_damaged_checkpoint_is_refused_or_gives_the_same_weights(
    trained: Any, monkeypatch: pytest.MonkeyPatch, spoil: Damage
) -> None:
    """Tensors of a checkpoint are of one file; a flipped bit in them must not become another SAE."""
    train, folder = trained
    weights = (folder / WEIGHTS_FILE).read_bytes()
    for file in folder.iterdir():
        file.unlink()

    class Stopped(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as interrupted:
        interrupted.setattr("sae_lib.training.run.Trainer.finish", stop)
        with pytest.raises(Stopped):
            train()
    spoil(folder / CHECKPOINT_FILE)
    line = refusal(train)
    assert CHECKPOINT_FILE in line and "remove" in line
    (folder / CHECKPOINT_FILE).unlink()  # as the message says
    train()
    assert (folder / WEIGHTS_FILE).read_bytes() == weights


@pytest.mark.parametrize("spoil", [truncate, empty, flip, Path.unlink])
def test_a_damaged_or_lost_history_is_named(trained: Any, spoil: Damage) -> None:
    _, folder = trained
    whole = read_history(folder)
    assert whole["loss"].notna().all()
    spoil(folder / "history.parquet")
    line = refusal(lambda: read_history(folder))
    assert str(folder / "history.parquet") in line and f"remove {folder}" in line


# -- scores and results


@pytest.mark.parametrize("text", ["", '{"key": "k", "summary": {', "[]", "{}", "null", '{"key": 3}'])
def test_a_damaged_score_is_refused_or_computed_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "absorption.json").write_text(text)
    try:
        assert scoring.stored(tmp_path, "absorption", "k") is None
    except ArtifactError as error:
        assert "absorption.json" in str(error) and "remove" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("spoil", [truncate, empty])
def test_a_damaged_results_table_is_named(tmp_path: Path, spoil: Damage) -> None:
    table = pd.DataFrame({"run": ["a"], "group": "main", "method": "topk", "label": "", "seed": 1})
    table.to_parquet(tmp_path / "evaluation_main.parquet")
    assert len(Results.load(tmp_path).evaluation) == 1
    spoil(tmp_path / "evaluation_main.parquet")
    assert "evaluation_main.parquet" in refusal(lambda: Results.load(tmp_path))
