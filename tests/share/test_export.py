"""Exported folders, read back by this package, their model card, and uploads to a hub that is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from sae_lib.__main__ import main
from sae_lib.mechanisms import methods
from sae_lib.share.card import LICENSE
from sae_lib.share.dictionary_learning import save_dictionary_learning
from sae_lib.share.export import export_run
from sae_lib.share.facts import read_run
from sae_lib.share.load import load_sae, load_with_origin
from sae_lib.share.origin import place
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


def test_hook_names_of_a_hub_model(tmp_path, monkeypatch):
    found = place("google/gemma-2-2b", 12)
    assert found.on_hub and found.saelens_hook == ("HookedTransformer", "blocks.12.hook_resid_post")
    save_tiny_model(tmp_path / "cached", "gpt_neox")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "cached" / "config.json"))
    assert place("EleutherAI/pythia-70m", 2).block == "gpt_neox.layers.2"
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
    _, facts = read_run(folder)
    assert (facts.place.model, facts.place.layer, facts.context_length) == ("pocket", 2, 128)
    assert facts.scores["l0"] == 4.25 and "ce_score" not in facts.scores
    assert facts.text is None, "the profile pocket has another width, so this is not its run"
    run = json.loads((folder / "run.json").read_text())
    write_json(folder / "run.json", run | {"store_key": "another"})
    assert read_run(folder)[1].context_length is None, "the store beside it is not the one it was trained on"


def test_the_training_text_is_that_of_a_profile_that_fits(tmp_path):
    content = yaml.safe_load((ROOT / "sae_lib/profiles/gemma-2-2b.yaml").read_text())
    content["training"]["d_sae"] = D_SAE
    for recipe in content["methods"].values():
        recipe.update({key: 4 for key in recipe})
    content |= {"name": "mine", "as_written": {}}
    content["sweep"] |= {"levels": [2, 8], "target_l0": 4, "compare_at": [4]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    folder = write_run(tmp_path / "runs" / "one", perturbed("topk"), model="google/gemma-2-2b", layer=12)
    facts = export_run(folder, "saelens", tmp_path / "out", profile=str(tmp_path / "mine.yaml"))
    assert facts.dataset == "monology/pile-uncopyrighted" and facts.context_length == 128
    metadata = json.loads((tmp_path / "out/saelens/cfg.json").read_text())["metadata"]
    assert metadata["dataset_path"] == "monology/pile-uncopyrighted" and metadata["context_size"] == 128
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| model | google/gemma-2-2b, revision c5ebcd40d208330abc697524c919956e692655cf |" in card
    front = front_matter(tmp_path / "out")
    assert (front["base_model"], front["datasets"]) == ("google/gemma-2-2b", "monology/pile-uncopyrighted")


# --- the model card


def front_matter(folder: Path) -> dict[str, Any]:
    return huggingface_hub.ModelCard.load(folder / "README.md").data.to_dict()


def test_model_card(tmp_path):
    run = pocket_run(tmp_path)
    export_run(run, "both", tmp_path / "out", repo="someone/sae")
    card = (tmp_path / "out" / "README.md").read_text()
    front = front_matter(tmp_path / "out")
    assert front["license"] == LICENSE and front["library_name"] == "saelens" and "base_model" not in front
    assert {"sparse-autoencoder", "topk", "saelens", "dictionary_learning"} <= set(front["tags"])
    for line in (
        "# TopK sparse autoencoder",
        "u     = (x - b_dec) W_enc + b_enc",
        "| L0 | 4.2 | – |",
        "| explained variance | 0.877 | higher |",
        "| absorption, fraction | 0.250 | lower |",
        "on 8,086 tokens of held-out text",
        "| steps | 10 of 64 tokens |",
        "| `k` | 4 |",
        'sae = SAE.from_pretrained("someone/sae", "saelens")',
        "- 12.5% of the latents never fired on the held-out text.",
        "the output of the module `model.layers.2` of the transformers model; in TransformerLens `blocks.2.",
        "- 12.3% of the activations' variance is not in the reconstruction.",
        "arXiv 2406.04093",
    ):
        assert line in card, line
    assert "bandwidth" not in card and "CE score" not in card and str(tmp_path) not in card
    again = tmp_path / "again"
    export_run(run, "both", again, repo="someone/sae")
    for file in ("README.md", "saelens/sae_weights.safetensors", "saelens/cfg.json", "dictionary_learning/ae.pt"):
        assert (again / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), "same run, same bytes"


def test_model_card_of_a_run_without_scores(tmp_path):
    run = write_run(tmp_path / "runs" / "one", perturbed("topk"), steps=0, tokens=0, model=None, layer=None)
    export_run(run, "dictionary_learning", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It is **untrained**" in card and "No scores are kept with this run." in card and "an unnamed model" in card
    assert 'load_dictionary("dictionary_learning"' in card and "SAELens" not in card
    assert "Its files do not say which activations it reads." in card
    assert front_matter(tmp_path / "out")["library_name"] == "dictionary_learning"


def test_card_of_a_threshold_says_what_was_written(tmp_path):
    export_run(write_run(tmp_path / "runs" / "one", perturbed("batchtopk")), "both", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("the next smaller float32") == 2 and "f     = u where u > threshold" in card


@pytest.mark.parametrize("repo", [None, "someone/sae"])
def test_code_of_the_card_runs(tmp_path, monkeypatch, repo):
    export_run(write_run(tmp_path / "runs" / "one", perturbed("gated")), "both", tmp_path / "out", repo=repo)
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[-1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", {"someone/sae": str(tmp_path / "out")}.__getitem__)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["sae"].d_sae == D_SAE


def test_licence_is_the_one_of_the_repository():
    assert (ROOT / "LICENSE").read_text().splitlines()[0].lower() == f"{LICENSE} license"


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
    assert "profile: no profile 'pockett'" in refused(capsys, run, "--profile", "pockett", "--out", out)
    assert "name the profile it was trained with" in refused(capsys, run, "--profile", "pocket", "--out", out)
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
    assert "cannot be written (Read-only file system)" in refused(capsys, run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_half_way_leaves_nothing(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", perturbed("topk"))

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sae_lib.share.export.save_dictionary_learning", fails)
    assert "cannot be written" in refused(capsys, run, "--out", tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []


# --- the hub


class FakeApi:
    """What `HfApi` is asked to do, in order."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self) -> None:
        type(self).calls = []

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id} | options))

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id} | options))

    def upload_folder(self, **options: Any) -> Any:
        files = sorted(p.relative_to(options["folder_path"]).as_posix() for p in options["folder_path"].rglob("*.*"))
        self.calls.append(("upload_folder", options | {"files": files}))
        return SimpleNamespace(commit_url="https://huggingface.co/someone/sae/commit/1")


FILES = [
    "README.md",
    "dictionary_learning/ae.pt",
    "dictionary_learning/config.json",
    "saelens/cfg.json",
    "saelens/sae_weights.safetensors",
]


def test_push(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    run = write_run(tmp_path / "run", perturbed("atm"))
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--push", "someone/sae", "--private"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/someone/sae/commit/1"
    (first, created), (second, uploaded) = FakeApi.calls
    assert (first, second) == ("create_repo", "upload_folder")
    assert created == {"repo_id": "someone/sae", "private": True, "repo_type": "model", "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["revision"], uploaded["files"]) == ("someone/sae", "main", FILES)
    assert 'SAE.from_pretrained("someone/sae", "saelens")' in (tmp_path / "out" / "README.md").read_text()
    assert main(["export", str(run), "--out", str(tmp_path / "v2"), "--push", "someone/sae", "--revision", "v2"]) == 0
    assert [name for name, _ in FakeApi.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert FakeApi.calls[1][1]["branch"] == FakeApi.calls[2][1]["revision"] == "v2"


def test_dry_run_says_what_would_be_uploaded_and_sends_nothing(tmp_path, capsys, monkeypatch):
    def never() -> None:
        raise AssertionError("a dry run has no business with the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", never)
    monkeypatch.setattr(huggingface_hub, "get_token", never)
    run = write_run(tmp_path / "run", perturbed("atm"))
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--push", "someone/sae", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0] == "would create, if it is missing: https://huggingface.co/someone/sae (model, public)"
    assert lines[1] == "would upload to revision main:"
    listed = {name: int(size.replace(",", "")) for size, name in (line.split() for line in lines[2:-1])}
    assert listed == {name: (out / name).stat().st_size for name in FILES}
    assert lines[-1] == f"{sum(listed.values()):,} bytes in 5 files; nothing was sent"


def test_pushes_that_are_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    run, out = write_run(tmp_path / "run", perturbed("topk")), tmp_path / "out"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    message = refused(capsys, run, "--out", out, "--push", "someone/sae")
    assert "no Hugging Face token" in message and "hf auth login" in message and "HF_TOKEN" in message
    assert "is no repository id" in refused(capsys, run, "--out", out, "--push", "a/b/c", "--dry-run")
    assert "names no owner; give USER/NAME" in refused(capsys, run, "--out", out, "--push", "sae", "--dry-run")
    assert "name a repository with --push" in refused(capsys, run, "--out", out, "--dry-run")
    assert not out.exists()


def test_hub_that_cannot_be_reached(tmp_path, capsys, monkeypatch):
    """Tests run with HF_HUB_OFFLINE: the real client refuses before it opens a connection."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    run = write_run(tmp_path / "run", perturbed("topk"))
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--push", "someone/sae"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: push: the hub cannot be reached") and captured.err.count("\n") == 1
    assert (tmp_path / "out" / "README.md").is_file(), "what was written can be uploaded later"


@pytest.mark.parametrize(
    ("status", "message"), [(403, "refuses to write to someone/sae with this token"), (500, "refuses someone/sae")]
)
def test_hub_that_refuses(tmp_path, capsys, monkeypatch, status, message):
    from huggingface_hub.errors import HfHubHTTPError

    class Refusing(FakeApi):
        def create_repo(self, repo_id: str, **options: Any) -> None:
            raise HfHubHTTPError("no\nmore", response=SimpleNamespace(status_code=status, headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    run = write_run(tmp_path / "run", perturbed("topk"))
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--push", "someone/sae"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
