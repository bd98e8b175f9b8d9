"""Exported folders, read back by this package, and their README."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from sae_lib.__main__ import main
from sae_lib.mechanisms import methods
from sae_lib.profiles.profile import load_profile
from sae_lib.share import facts
from sae_lib.share.dictionary_learning import save_dictionary_learning
from sae_lib.share.export import export_run
from sae_lib.share.facts import place, read_run
from sae_lib.share.load import load_sae, load_with_origin
from sae_lib.share.saelens import save_saelens
from sae_lib.share.weights import inference_form, strict_threshold
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json
from sae_lib.util.paths import ROOT
from tests.run_folders import D_IN, D_SAE, THRESHOLD, perturbed, write_run, write_store
from tests.tiny_models import FAMILIES, save_tiny_model

X = torch.randn(100, D_IN, generator=torch.Generator().manual_seed(1))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an export that fails."""
    assert main(["export", *(str(argument) for argument in arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


# --- weights


@pytest.mark.parametrize("threshold", [1.5, 1e-30, 0.0, -0.25])
def test_strict_threshold_keeps_what_is_at_or_above(threshold):
    t = torch.tensor(threshold)
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    z = torch.stack([torch.nextafter(t, down), t, torch.nextafter(t, up), t + 1, t - 1])
    at_or_above, above = torch.relu(z) * (z >= t), torch.relu(z) * (z > strict_threshold(t))
    assert torch.equal(above, at_or_above)


def test_b_dec_moves_into_the_biases():
    """W_enc = [2], b_dec = [3], b_gate = 1, b_mag = 5, r_mag = ln 4: u = 2 (x - 3) = 2 x - 6, so the biases lose 6, the
    magnitude's four times that."""
    sae = perturbed("gated")
    form = inference_form(sae)
    tensors = {"W_enc": torch.tensor([[2.0]]), "b_dec": torch.tensor([3.0]), "b_gate": torch.tensor([1.0])}
    tensors |= {"b_mag": torch.tensor([5.0]), "r_mag": torch.tensor([4.0]).log(), "W_dec": torch.tensor([[1.0]])}
    moved = type(form)("gated", tensors, subtract_b_dec=True).centred(False)
    assert not moved.subtract_b_dec
    torch.testing.assert_close(moved.tensors["b_gate"], torch.tensor([-5.0]))
    torch.testing.assert_close(moved.tensors["b_mag"], torch.tensor([-19.0]))
    back = moved.centred(True)
    torch.testing.assert_close(back.tensors["b_mag"], torch.tensor([5.0]))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, {}) for name in methods("main", "as written")),
        # Not as dictionary_learning's classes have it: biases take up the difference.
        *((name, {"subtract_b_dec": False}) for name in ("gated", "topk", "batchtopk", "matryoshka_2")),
        ("jumprelu", {"subtract_b_dec": True}),
    ],
)
@pytest.mark.parametrize("to", ["saelens", "dictionary_learning"])
def test_exported_and_loaded_again_is_the_same_sae(tmp_path, name, overrides, to):
    sae = perturbed(name, overrides)
    run = write_run(tmp_path / "run", sae)
    export_run(run, to, tmp_path / "out")
    loaded, origin = load_with_origin(tmp_path / "out" / to)
    f = sae.encode(X)
    assert 0 < (f != 0).float().mean() < 1
    torch.testing.assert_close(loaded.encode(X), f, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded(X), sae(X), rtol=1e-4, atol=1e-5)
    assert (origin.model, origin.layer) == ("someone/tiny", 1)


@pytest.mark.parametrize("name", ["standard", "gated", "topk", "jumprelu"])
def test_weights_survive_a_round_trip_bit_by_bit(tmp_path, name):
    """Of an SAE as our loader gives it; dictionary_learning's classes where nothing has to be moved into biases."""
    sae = perturbed(name, {"subtract_b_dec": name != "jumprelu"})
    save_saelens(inference_form(sae), tmp_path / "saelens")
    save_dictionary_learning(sae, tmp_path / "dl")
    for folder in (tmp_path / "saelens", tmp_path / "dl"):
        loaded = load_sae(folder)
        assert loaded.cfg.architecture == name and loaded.cfg.get("k") == sae.cfg.get("k")
        assert loaded.cfg.subtract_b_dec == sae.cfg.subtract_b_dec
        state = loaded.state_dict()
        assert all(torch.equal(state[key], value) for key, value in sae.state_dict().items())
        again = tmp_path / f"{folder.name}_again"
        save_saelens(inference_form(loaded), again)
        assert all(torch.equal(state[key], value) for key, value in load_sae(again).state_dict().items())


def test_batchtopk_keeps_an_activation_on_its_threshold(tmp_path):
    sae = perturbed("batchtopk")
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(D_IN, D_SAE))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    x = torch.zeros(1, D_IN)
    x[0, 0], x[0, 1] = THRESHOLD, THRESHOLD - 1e-6
    assert sae.encode(x).nonzero().tolist() == [[0, 0]]
    save_saelens(inference_form(sae), tmp_path / "saelens")
    save_dictionary_learning(sae, tmp_path / "dl")
    for folder in ("saelens", "dl"):
        assert torch.equal(load_sae(tmp_path / folder).encode(x), sae.encode(x))


def test_rows_that_are_not_of_norm_1_are_not_left_to_a_loader_that_rescales_them(tmp_path):
    assert save_dictionary_learning(perturbed("standard"), tmp_path / "unit") == "AutoEncoder"
    assert save_dictionary_learning(perturbed("standard", unit_decoder=False), tmp_path / "any") == "AutoEncoderNew"


# --- the place


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_names_by_family(tmp_path, family):
    save_tiny_model(tmp_path / "tiny", family)
    path = {"gpt2": "transformer.h.1", "gpt_neox": "gpt_neox.layers.1"}.get(family, "model.layers.1")
    found = place(str(tmp_path / "tiny"), 1)
    assert (found.model, found.on_hub, found.block) == ("tiny", False, path), "no path of this machine is published"
    assert found.saelens_hook == ("AutoModelForCausalLM", path)
    assert place(str(tmp_path / "tiny"), 7).block is None, "the model has three blocks"


def test_hook_names_of_a_hub_model():
    found = place("google/gemma-2-2b", 12)
    assert found.on_hub and found.saelens_hook == ("HookedTransformer", "blocks.12.hook_resid_post")
    assert place("pocket", 2).block == "model.layers.2"
    assert place(None, None).saelens_hook == ("HookedTransformer", None)


def test_a_run_tells_its_method(tmp_path):
    run = write_run(tmp_path / "run", perturbed("standard"), method="my_method")
    assert read_run(run)[1].method == "my_method"
    content = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {key: value for key, value in content.items() if key != "method"})
    with pytest.raises(ArtifactError, match=r"run\.json names no method, seed, steps and tokens; train this SAE again"):
        read_run(run)


def pocket_run(root: Path, name: str = "topk", **changes: Any) -> Path:
    """A run of the packaged profile, with its store and two scores."""
    key = write_store(root / "pocket", model="pocket", layer=2, positions=128, rows=640)
    folder = write_run(
        root / "pocket" / "runs" / "abc",
        perturbed(name),
        method=name,
        model="pocket",
        layer=2,
        store_key=key,
        **changes,
    )
    summary = {"l0": 4.25, "explained_variance": 0.876543, "dead_fraction": 0.125, "tokens": 8086.0, "ce_score": None}
    write_json(folder / "reconstruction.json", {"key": "x", "summary": summary})
    write_json(folder / "absorption.json", {"key": "x", "summary": {"absorption_fraction": 0.25, "letters": 26}})
    return folder


def test_facts_come_from_the_run_and_what_lies_beside_it(tmp_path):
    folder = pocket_run(tmp_path)
    _, found = read_run(folder)
    assert (found.place.model, found.place.layer, found.context_length) == ("pocket", 2, 128)
    assert found.scores["l0"] == 4.25 and "ce_score" not in found.scores
    run = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", run | {"store_key": "another"})
    assert read_run(folder)[1].context_length is None, "the store beside it is not the one it was trained on"


def test_the_training_text_is_that_of_a_profile_that_fits(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "gemma-2-2b" / "runs" / "one", perturbed("topk"), model="google/gemma-2-2b", layer=12)
    assert read_run(folder)[1].dataset is None, "the profile has another width, so this is not its run"
    profile = load_profile("gemma-2-2b")
    training = profile.training.model_copy(update={"d_sae": D_SAE})
    monkeypatch.setattr(facts, "load_profile", lambda name: profile.model_copy(update={"training": training}))
    export_run(folder, "saelens", tmp_path / "out")
    metadata = json.loads((tmp_path / "out/saelens/cfg.json").read_text())["metadata"]
    assert metadata["dataset_path"] == "monology/pile-uncopyrighted"
    front = front_matter(tmp_path / "out")
    assert (front["base_model"], front["datasets"]) == ("google/gemma-2-2b", "monology/pile-uncopyrighted")


# --- the README


def front_matter(folder: Path) -> dict[str, Any]:
    return huggingface_hub.ModelCard.load(folder / "README.md").data.to_dict()


def test_readme(tmp_path):
    run = pocket_run(tmp_path)
    export_run(run, "both", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = front_matter(tmp_path / "out")
    assert (front["license"], front["library_name"]) == ("mit", "saelens") and "base_model" not in front
    assert {"sparse-autoencoder", "topk", "saelens", "dictionary_learning"} <= set(front["tags"])
    for line in (
        "# TopK sparse autoencoder",
        "| L0 (none) | 4.2 |",
        "| explained variance (higher) | 0.877 |",
        "| absorption, fraction (lower) | 0.250 |",
        "| steps | 10 |",
        "| k | 4 |",
        "| context length | 128 |",
        "| module of transformers | model.layers.2 |",
        "| reads | blocks.2.hook_resid_post |",
        "arXiv 2406.04093",
    ):
        assert line in text, line
    assert "CE score" not in text and "untrained" not in text and str(tmp_path) not in text
    again = tmp_path / "again"
    export_run(run, "both", again)
    for file in ("README.md", "saelens/sae_weights.safetensors", "saelens/cfg.json", "dictionary_learning/ae.pt"):
        assert (again / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), "same run, same bytes"


def test_readme_of_a_run_without_scores(tmp_path):
    run = write_run(tmp_path / "runs" / "one", perturbed("topk"), steps=0, tokens=0, model=None, layer=None)
    export_run(run, "dictionary_learning", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "It is **untrained**" in text and "explained variance" not in text and "| model |" not in text
    assert 'load_dictionary("dictionary_learning"' in text and "sae_lens" not in text
    assert front_matter(tmp_path / "out")["library_name"] == "dictionary_learning"


def test_the_licence_is_the_one_of_the_repository(tmp_path):
    export_run(write_run(tmp_path / "run", perturbed("topk")), "saelens", tmp_path / "out")
    licence = front_matter(tmp_path / "out")["license"]
    assert (ROOT / "LICENSE").read_text().splitlines()[0].lower() == f"{licence} license"


# --- faults


def test_runs_that_cannot_be_exported(tmp_path, capsys):
    out = tmp_path / "out"
    assert "there is no folder" in refused(capsys, tmp_path / "absent", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "is no run of this project" in refused(capsys, tmp_path / "empty", "--out", out)
    unfinished = write_run(tmp_path / "unfinished", perturbed("topk"))
    (unfinished / "run.json").unlink()
    (unfinished / "sae.safetensors").rename(unfinished / "checkpoint.safetensors")
    assert "has not finished training" in refused(capsys, unfinished, "--out", out)
    run = write_run(tmp_path / "run", perturbed("topk"))
    assert "'onnx' is no known format; choose saelens, dictionary_learning or both" in refused(
        capsys, run, "--to", "onnx", "--out", out
    )
    (run / "sae.safetensors").write_bytes(b"no tensors")
    assert "sae.safetensors is damaged" in refused(capsys, run, "--out", out)
    assert not out.exists()


def test_folders_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", perturbed("topk"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert "full is not empty" in refused(capsys, run, "--out", tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    assert "mine.txt is no folder" in refused(capsys, run, "--out", tmp_path / "full" / "mine.txt")
    assert "cannot be a folder" in refused(capsys, run, "--out", tmp_path / "full" / "mine.txt" / "below")

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "mkdir", read_only)
    told = refused(capsys, run, "--out", tmp_path / "out")
    assert told.endswith("(Read-only file system); name a folder of yours\n")
    assert not (tmp_path / "out").exists()


def test_a_failure_half_way_leaves_nothing(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", perturbed("topk"))

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sae_lib.share.export.save_dictionary_learning", fails)
    assert "cannot be written" in refused(capsys, run, "--out", tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []
