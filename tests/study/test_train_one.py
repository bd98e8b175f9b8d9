"""An SAE by its method's name, on a model and text of one's own."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from sae_lib.__main__ import main
from sae_lib.study.train_one import train_one
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json
from sae_lib.util.paths import output_root
from tests.tiny_models import save_tiny_model


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A tiny model, and some thousand words of text."""
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "out"))
    rng = random.Random(0)
    text = tmp_path / "text.jsonl"
    rows = [{"text": " ".join(f"w{rng.randrange(4, 40)}" for _ in range(60))} for _ in range(400)]
    text.write_text("\n".join(map(json.dumps, rows)))
    model = save_tiny_model(tmp_path / "model")
    return {"model": model.name, "layer": 1, "files": [str(text)], "device": "cpu", "tokens": 4096}


@pytest.mark.parametrize(
    ("method", "knob", "sparsity"),
    [("matryoshka_4", "k", 6), ("standard", "l1_coefficient", 0.1), ("jumprelu", "target_l0", None)],
)
def test_a_method_is_trained_by_its_name(source, method, knob, sparsity) -> None:
    folder = train_one(method, name="mine", sparsity=sparsity, **source)
    run = read_json(folder / "run.json")
    assert run["method"] == method and run["steps"] == 2 and run["tokens"] == 4096
    assert run["config"]["d_sae"] == 8 * 16 and run["config"][knob] == (sparsity or 32)
    kept = yaml.safe_load((folder.parents[1] / "profile.yaml").read_text())
    assert kept["model"]["layer"] == 1 and kept["training"]["seeds"] == [42]


def test_the_same_command_goes_on(source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    arguments = ["train", "topk", "--name", "mine", "--sparsity", "4", "--d-sae", "40", "--tokens", "4096"]
    arguments += ["--model", str(source["model"]), "--layer", "1", "--device", "cpu", "--files", *source["files"]]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    folder = Path(said.split(";")[0])
    before = (folder / "run.json").stat().st_mtime_ns
    monkeypatch.setattr("sae_lib.training.trainer.Trainer.step", None)
    assert main(arguments) == 0 and capsys.readouterr().out == said
    assert (folder / "run.json").stat().st_mtime_ns == before
    evaluate = ["evaluate", str(folder), "--model", str(source["model"]), "--metrics", "core", "--contexts", "2"]
    assert main([*evaluate, "--device", "cpu", "--context-length", "16", "--files", *source["files"]]) == 0
    assert "explained_variance" in capsys.readouterr().out, "it knows its layer"


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        ("matryoshka4", {}, "method: there is no 'matryoshka4'; did you mean 'matryoshka_4'"),
        ("standard", {}, "sparsity: standard needs its L1 coefficient"),
        ("topk", {"tokens": 100}, "tokens: 100 are less than a batch of 2048"),
        ("topk", {"sparsity": 500}, "methods.topk: k = 500 is above d_sae = 128"),
        ("topk", {"tokens": 10**6}, "data.train_tokens: the training documents give .* needed: 1,000,000"),
        ("topk", {"layer": 7}, "model.layer: 7 is beyond"),
        ("topk", {"name": "pocket"}, "name: 'pocket' is a packaged profile"),
        ("topk", {"name": "a/b"}, "name: 'a/b' is to name a folder"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(source, method, options, line) -> None:
    with pytest.raises(ArtifactError, match=line):
        train_one(method, **(source | {"name": "mine"} | options))
    if "tokens" not in options:  # what is refused later is a profile that can be opened
        assert not [*output_root().rglob("profile.yaml")]
