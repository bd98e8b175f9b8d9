"""The plan: sizes and times by hand, a real run beside them, and what a run is refused for."""

from __future__ import annotations

import errno
import gzip
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from sae_lib.metrics.probing.config import LabelledFiles, ProbingConfig
from sae_lib.profiles.profile import PROFILES, Profile, load_profile
from sae_lib.profiles.runs import plan_runs
from sae_lib.study import plan
from sae_lib.study.experiment import Experiment
from sae_lib.study.measures import model_size
from sae_lib.study.plan import GB, make_plan
from sae_lib.util import files as disk_module
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write, write_json
from sae_lib.util.paths import Paths
from tests.tiny_models import FAMILIES, save_tiny_model

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yaml"))


@pytest.fixture
def profile() -> Profile:
    return load_profile("pocket")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path))
    return Paths("pocket")


def change(profile: Profile, **sections: dict[str, Any]) -> Profile:
    """The profile with other values in some sections, not checked again."""
    changed = {name: getattr(profile, name).model_copy(update=values) for name, values in sections.items()}
    return profile.model_copy(update=changed)


def with_free(
    monkeypatch: pytest.MonkeyPatch, *, disk: float = 1e15, cpu: float = 1e15, cuda: float | None = None
) -> None:
    """A machine with so many free bytes, and a GPU where `cuda` says how many it has."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda folder: usage._replace(free=int(disk)))
    monkeypatch.setattr(plan, "free_memory", lambda device: {"cpu": cpu, "cuda": cuda}[device])
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_size_is_that_of_the_weights(tmp_path: Path, family: str) -> None:
    size = model_size(save_tiny_model(tmp_path, family))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    positions = 32 if family == "gpt2" else None
    weights = {name: weight.numel() for name, weight in model.named_parameters()}
    blocks = sum(n for name, n in weights.items() if ".layers." in name or ".h." in name)
    assert tuple(size) == (16, 3, model.config.vocab_size, sum(weights.values()), blocks, positions)


def test_contexts_longer_than_the_positions_are_refused(tmp_path: Path, profile: Profile, paths: Paths) -> None:
    model = save_tiny_model(tmp_path / "model", "gpt2")
    for length, fits in ((32, True), (33, False)):
        asked = change(profile.model_copy(update={"model": model}), data={"context_length": length})
        told = [line for line in plan.blockers(asked, make_plan(asked), paths) if "positions" in line]
        assert (told == []) == fits


def test_published_sizes() -> None:
    """Parameters as the models' pages state them: 2.61 B, 124 M and 70.4 M."""
    known = {"google/gemma-2-2b": 2_614_341_888, "openai-community/gpt2": 124_439_808}
    known["EleutherAI/pythia-70m-deduped"] = 70_426_624
    model = load_profile("pocket").model
    for name, parameters in known.items():
        assert model_size(model.model_copy(update={"name": name})).weights == parameters


def test_configuration_that_is_no_causal_model_is_refused(tmp_path: Path, profile: Profile) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7}))
    with pytest.raises(ArtifactError, match=r"^model.name: config\.json of \S+ is not understood \([^\n]*$"):
        model_size(profile.model.model_copy(update={"name": str(tmp_path)}))


def test_disk_by_hand(profile: Profile) -> None:
    changed = change(
        profile,
        data={"train_tokens": 12_700, "held_out_contexts": 10, "calibration_contexts": 20, "context_length": 128},
        training={"d_sae": 1024, "workers": 2},
        cost={"probing_tokens": 1000},
    )
    disk, saes = make_plan(changed).disk, make_plan(changed).saes.total()
    # Rows of 128 bf16 values, int32 context and uint16 position.
    assert disk["store"] == 12_700 * (256 + 6)
    assert disk["tokens"] == (100 + 10 + 20) * 128 * 4
    sae = 4 * (2 * 128 * 1024 + 1024 + 128)
    # Two workers, and each may hold two checkpoints of weights and two moments.
    assert disk["runs"] == saes * (sae + plan.RECORDS_OF_AN_SAE) + 2 * 2 * 3 * sae
    states, words, text = 2 * 10 * 128 * 128 * 4, 1.2 * 8192 * 128 * 4, 10 * 127 * 128 * 4
    assert disk["reference"] == states + words + text + 20 * 127 * 262 + 1000 * 128 * 4


def test_held_out_states_are_not_kept_where_they_are_large(profile: Profile) -> None:
    def reference(contexts: int) -> float:
        disk = make_plan(change(profile, data={"held_out_contexts": contexts})).disk
        return disk["reference"]

    largest = plan.STATES // (2 * 128 * 128 * 4)
    assert reference(largest) - reference(largest + 1) == plan.STATES


def test_memory_grows_with_what_it_holds(profile: Profile) -> None:
    def memory(batch_tokens: int, **data: int) -> float:
        held = {"batch_tokens": batch_tokens, "held_out_contexts": 1, **data}
        return make_plan(change(profile, data=held, training={"workers": 2})).memory["cpu"]

    sae = 4 * (2 * 128 * 1024 + 1024 + 128)
    latents = plan.LATENT_COPIES * 4 * 1024  # of a token
    batch = 2**17
    assert memory(batch) == plan.NOTEBOOK + 2 * (plan.WORKER + 4 * sae + batch * (latents + 6 * 128 * 4))
    assert memory(2 * batch) - memory(batch) == 2 * batch * (latents + 6 * 128 * 4)
    assert memory(batch, train_tokens=50_000_000) == memory(batch)


def test_gpu_memory_holds_weights_moments_and_latents() -> None:
    gemma = load_profile("gemma-2-2b")
    wide = change(gemma, data={"batch_tokens": 2**14})
    sae = 4 * (2 * 2304 * 16384 + 16384 + 2304)
    batch = 2**14 * (plan.LATENT_COPIES * 16384 + 6 * 2304) * 4
    # Weights, gradients and two moments in float32; weights and gradients in bfloat16.
    assert make_plan(wide).memory["cuda"] == plan.CUDA_CONTEXT + 5 * sae + batch
    assert 2 * 2.6e9 < make_plan(gemma).memory["cuda"] < 24 * GB


def test_times_are_measured_ones(profile: Profile, paths: Paths) -> None:
    found = make_plan(profile)
    assert plan.time_note(profile, paths, found) == "about 0.4 h from nothing, measured on 2 CPU cores"
    gemma = load_profile("gemma-2-2b")
    assert plan.time_note(gemma, paths, make_plan(gemma)) == "not measured on one H200"
    # A step took 5 s here on average; two workers share the SAEs that are trained.
    write_json(paths.runs / "a" / "run.json", {"steps": 1000, "seconds": 4000.0})
    write_json(paths.runs / "b" / "run.json", {"steps": 500, "seconds": 3500.0})
    write_json(paths.runs / "c" / "run.json", {"steps": 0, "seconds": 0.0})
    trained = sum(count for group, count in found.saes.items() if group != "untrained")
    hours = 5 * 1000 * trained / 2 / 3600
    note = plan.time_note(profile, paths, found)
    assert note.endswith(f"; training {trained} SAEs: {hours:.2g} h, at 5e+03 ms a step as measured here")


def test_committed_rows_tell_the_time_where_nothing_was_trained(profile: Profile, paths: Paths) -> None:
    rows = {"run": {"steps": 1000, "seconds": 4000.0}, "scores": {}}
    with atomic_write(paths.figures / "rows" / "a.json.gz", "wb") as stream:
        stream.write(gzip.compress(json.dumps(rows).encode()))
    note = plan.time_note(profile, paths, make_plan(profile))
    assert note.endswith(", at 4e+03 ms a step as measured for the committed rows; rows of 1 SAEs are there")
    write_json(paths.runs / "b" / "run.json", {"steps": 500, "seconds": 500.0})
    assert ", at 1e+03 ms a step as measured here; rows of" in plan.time_note(profile, paths, make_plan(profile))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_can_be_planned_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("the network was asked"))
    known = load_profile(name)
    assert ("cuda" in make_plan(known).memory) == known.cost.needs_gpu


def test_too_little_disk(profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_plan(profile)
    with_free(monkeypatch)
    assert plan.blockers(profile, found, paths) == []
    half = sum(found.disk.values()) - found.disk["store"] / 2
    with_free(monkeypatch, disk=half)
    [line] = plan.blockers(profile, found, paths)
    assert line.startswith("disk: pocket needs 0.5 GB and ") and "SAE_LIB_OUTPUT" in line and "\n" not in line
    [fewer] = re.findall(r"lower data.train_tokens to ([\d_]+), or", line)
    assert sum(make_plan(change(profile, data={"train_tokens": int(fewer)})).disk.values()) <= half
    with_free(monkeypatch, disk=1e6)
    [line] = plan.blockers(profile, found, paths)
    assert "train_tokens" not in line


def test_what_is_there_counts_as_room(profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = make_plan(profile)
    paths.store.mkdir(parents=True)
    with open(paths.store / "activations-00000.npy", "wb") as file:
        file.truncate(int(sum(cost.disk.values())))
    with_free(monkeypatch, disk=1e5)
    assert plan.blockers(profile, cost, paths) == []


def test_too_little_memory(profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_plan(profile)
    with_free(monkeypatch, cpu=0.9 * found.memory["cpu"])
    [line] = plan.blockers(profile, found, paths)
    assert line.startswith("memory: pocket needs ") and "\n" not in line
    assert line.endswith("lower training.workers or data.batch_tokens or training.d_sae")
    assert make_plan(change(profile, training={"workers": 1})).memory["cpu"] <= 0.9 * found.memory["cpu"]


def test_a_gpu_is_missing_or_too_small(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = load_profile("gemma-2-2b")
    with_free(monkeypatch)
    [line] = plan.blockers(gemma, make_plan(gemma), paths)
    assert line.startswith("GPU: gemma-2-2b needs one") and "PROFILE=pocket" in line
    with_free(monkeypatch, cuda=80e9)
    assert plan.blockers(gemma, make_plan(gemma), paths) == []
    wide = change(gemma, training={"d_sae": 16384 * 8}, data={"batch_tokens": 8192})
    with_free(monkeypatch, cuda=40e9)
    [line] = plan.blockers(wide, make_plan(wide), paths)
    assert line.startswith("GPU memory: gemma-2-2b needs ") and "40.0 GB are free" in line
    assert line.endswith("lower data.batch_tokens or training.d_sae")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"layer": 4}}, "model.layer: 4 is beyond pocket, which has 4 layers: 0-3"),
        ({"model": {"device": "cuda"}}, "model.device: cuda is not available on this machine; choose auto or cpu"),
        (
            {"corpus": {"packages": ("numpy", "nosuchpackage_zz")}},
            "corpus.packages: 'nosuchpackage_zz' is not installed",
        ),
        (
            {"corpus": {"source": "files", "files": ("/nope.txt",)}, "evaluation": {"probing": ProbingConfig()}},
            "corpus.files: no such file: /nope.txt",
        ),
        (
            {"corpus": {"source": "files", "files": (str(PROFILES.parent / "data" / "pocket_lm" / "config.json"),)}},
            "probing.source: 'documentation' needs corpus.source documentation",
        ),
        (
            {"evaluation": {"probing": ProbingConfig(source="documentation", datasets=("x",))}},
            "probing.datasets: source 'documentation' has no dataset 'x'; it has package, kind, ",
        ),
    ],
)
def test_what_is_not_there(
    profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    with_free(monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    changed = change(profile, **changes)
    [line] = plan.blockers(changed, make_plan(changed), paths)
    assert line.startswith(says)


def test_texts_for_probing_are_read_before_anything_is_trained_for_them(
    profile: Profile, tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch)
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": f"some text {i}", "label": f"{i % 2}"}) + "\n" for i in range(20)))

    def stopping(**files: str) -> list[str]:
        config = ProbingConfig(
            source="files", files={"own": LabelledFiles(**files)}, train_per_task=8, test_per_task=4, min_per_class=2
        )
        return plan.blockers(change(profile, evaluation={"probing": config}), make_plan(profile), paths)

    assert stopping(train=str(file)) == []
    assert stopping(train="/nope.jsonl") == ["probing.files.own: no such file: /nope.jsonl"]
    [line] = stopping(train=str(file), label="kind")
    assert line == f"probing.files.own: {file} has no column 'kind' with labels; it has text, label"


def test_an_output_folder_that_cannot_be_written(
    profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch)

    def refused(**options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    line = f"cannot write into {paths.root} (Read-only file system); set SAE_LIB_OUTPUT to a folder of yours"
    assert plan.blockers(profile, make_plan(profile), paths) == [line]
    assert not paths.root.exists()


def test_a_configuration_that_cannot_be_fetched_is_one_line(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    unknown = change(profile, model={"name": "someone/some-model", "revision": "0" * 40})
    with pytest.raises(ArtifactError) as caught:
        make_plan(unknown)
    assert "someone/some-model" in str(caught.value) and "\n" not in str(caught.value)


def test_disk_of_a_real_run_is_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store, tokens and SAEs of a small run on the packaged model, within a quarter; every folder that it writes."""
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path))
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"{i} " + "a matrix of rows and columns " * 60}) + "\n" for i in range(120))
    )
    content = yaml.safe_load((PROFILES / "pocket.yaml").read_text())
    content["corpus"] = {"source": "files", "files": [str(text)], "held_out_fraction": 0.1, "calibration_fraction": 0.1}
    content["data"] |= {"train_tokens": 20_000, "held_out_contexts": 4, "calibration_contexts": 4, "shard_rows": 8_000}
    content["training"] |= {"steps": 4, "schedule_scale": 0.001, "workers": 1, "log_every": 1, "checkpoint_every": 2}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(content | {"name": "tiny"}))
    experiment = Experiment.open(str(file))
    experiment.build_tokens(experiment.language_model(whole=False).tokenizer)
    experiment.harvest(experiment.language_model(whole=False))
    specs = plan_runs(experiment.profile, groups=["main"])[::20]
    experiment.train(specs)
    expected, saes = make_plan(experiment.profile).disk, make_plan(experiment.profile).saes.total()
    checkpoints = 2 * 3 * 4 * (2 * 128 * 1024 + 1024 + 128)  # which are gone
    expected["runs"] = (expected["runs"] - checkpoints) / saes * len(specs)
    for name in ("store", "tokens", "runs"):
        there = sum(path.stat().st_size for path in (experiment.paths.root / name).rglob("*") if path.is_file())
        assert expected[name] == pytest.approx(there, rel=0.25), name
