"""The plan: sizes and times by hand, a real run beside them, and what a run is refused for."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.profiles.profile import PROFILES, Estimates, Profile, load_profile
from sae_lib.profiles.runs import RunSpec, plan_runs
from sae_lib.study import plan, plan_input, plan_sizes, plan_speed
from sae_lib.study.experiment import Experiment
from sae_lib.study.plan_sizes import GiB, model_size, run_sizes
from sae_lib.util import files as disk_module
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import Paths
from tests.tiny_models import FAMILIES, configuration, save_tiny_model

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yaml"))
RATES = {
    "hardware": "a machine", "gemm_gflops": 100.0, "memory_gb_s": 10.0, "step_over_floor": 2.0,
    "latent_bytes": 40.0, "step_overhead_ms": 1.0,
    "harvest_over_floor": 3.0, "score_s": {"reconstruction": 1.0, "absorption": 2.0, "stability": 3.0, "probing": 4.0},
    "fixed_s": {"01": 1.0, "02": 2.0, "03": 3.0, "04": 4.0, "05": 5.0}, "probing_tokens": 1000, "needs_gpu": False,
}  # fmt: skip


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


def with_runs(monkeypatch: pytest.MonkeyPatch, profile: Profile, **groups: list[int]) -> None:
    """Plan these seeds of TopK in these groups, and nothing else."""
    config = profile.sae_config("topk")
    runs = [
        RunSpec(group, "topk", "", seed, config, trained=group != "untrained")  # type: ignore[arg-type]
        for group, seeds in groups.items()
        for seed in seeds
    ]
    monkeypatch.setattr(plan, "plan_runs", lambda profile: runs)


def with_free(
    monkeypatch: pytest.MonkeyPatch, *, disk: float = 1e15, cpu: float = 1e15, cuda: float | None = None
) -> None:
    """A machine with so many free bytes, and a GPU where `cuda` says how many it has."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda folder: usage._replace(free=int(disk)))
    monkeypatch.setattr(plan, "free_memory", lambda device: {"cpu": cpu, "cuda": cuda}[device])
    monkeypatch.setattr(plan, "has_gpu", lambda: cuda is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_size_is_that_of_the_weights(tmp_path: Path, family: str) -> None:
    size = model_size(save_tiny_model(tmp_path, family, layers=3))
    config = configuration(family, layers=3)
    model = AutoModelForCausalLM.from_config(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert size.weights() == matrices
    assert size.layers == 3 and size.d_in == 16 and size.vocab == config.vocab_size
    assert size.weights(2) == matrices - size.block
    assert size.flops_per_token(2) == 4 * size.block


def test_published_sizes() -> None:
    """Parameters as the models' pages state them: 2.61 B, 124 M and 70.4 M."""
    known = {"google/gemma-2-2b": 2_614_341_888, "openai-community/gpt2": 124_439_808}
    known["EleutherAI/pythia-70m-deduped"] = 70_426_624
    model = load_profile("pocket").model
    for name, parameters in known.items():
        size = model_size(model.model_copy(update={"name": name}))
        assert size.weights() == pytest.approx(parameters, rel=0.002)


def test_packaged_model_has_its_size(profile: Profile) -> None:
    size = model_size(profile.model)
    file = plan_sizes.model_folder("pocket", None, weights=True) / "model.safetensors"
    assert 2 * size.weights() == pytest.approx(file.stat().st_size, rel=0.01)  # kept in bfloat16


def test_configuration_without_a_width_is_refused(tmp_path: Path, profile: Profile) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 7}))
    with pytest.raises(ArtifactError, match=r"config\.json of \S+ names no hidden_size"):
        model_size(profile.model.model_copy(update={"name": str(tmp_path)}))


@pytest.mark.parametrize("field", ["score_s", "fixed_s"])
def test_rates_are_complete(profile: Profile, field: str) -> None:
    rates = profile.estimates.model_dump()
    rates[field].popitem()
    with pytest.raises(ValidationError, match=f"{field} needs seconds, 0 or more, for (probing|05)"):
        Estimates.model_validate(rates)


def test_disk_by_hand(profile: Profile) -> None:
    changed = change(
        profile,
        data={"train_tokens": 12_700, "held_out_contexts": 10, "calibration_contexts": 20, "context_length": 128},
        training={"d_sae": 1024, "workers": 2},
        estimates={"probing_tokens": 1000},
    )
    sizes = run_sizes(changed, model_size(profile.model), saes=3)
    # Rows of 128 bf16 values, int32 context and uint16 position.
    assert sizes.disk["store"] == 12_700 * (256 + 6)
    assert sizes.disk["tokens"] == (100 + 10 + 20) * 128 * 4
    sae = 4 * (2 * 128 * 1024 + 1024 + 128)
    assert sizes.disk["runs"] == 3 * (sae + plan_sizes.RECORDS_OF_AN_SAE)
    # Two workers, and each may hold two checkpoints of weights and two moments.
    assert sizes.checkpoints == 2 * 2 * 3 * sae
    states, words, text = 2 * 10 * 128 * 128 * 4, 1.2 * 8192 * 128 * 4, 10 * 127 * 128 * 4
    assert sizes.disk["reference"] == states + words + text + 20 * 127 * 262 + 1000 * 128 * 4
    in_memory = run_sizes(change(changed, data={"store": "memory"}), model_size(profile.model), saes=3)
    assert in_memory.disk["store"] == 0
    assert in_memory.host["training"] - sizes.host["training"] == 3 * 12_700 * 262  # this process and two workers


def test_held_out_states_are_not_kept_where_they_are_large(profile: Profile) -> None:
    def reference(contexts: int) -> float:
        changed = change(profile, data={"held_out_contexts": contexts}, evaluation={})
        return run_sizes(changed, model_size(profile.model), saes=1).disk["reference"]

    most = plan_sizes.STATES // (2 * 128 * 128 * 4)
    assert reference(most) - reference(most + 1) == plan_sizes.STATES


def test_memory_grows_with_what_it_holds(profile: Profile) -> None:
    model = model_size(profile.model)
    base = run_sizes(profile, model, saes=1).host
    sae = 4 * (2 * 128 * 1024 + 1024 + 128)
    latents = plan_sizes.LATENT_COPIES * 512 * 1024 * 4
    processes = plan_sizes.NOTEBOOK + 2 * plan_sizes.WORKER
    assert base["training"] == processes + 2 * (4 * sae + latents + 6 * 512 * 128 * 4)
    doubled = run_sizes(change(profile, data={"batch_tokens": 1024}), model, saes=1).host
    assert doubled["training"] - base["training"] == 2 * (latents + 6 * 512 * 128 * 4)
    longer = run_sizes(change(profile, data={"train_tokens": 50_000_000}), model, saes=1).host
    assert longer == base


def test_gpu_memory_holds_weights_moments_and_latents() -> None:
    gemma = load_profile("gemma-2-2b")
    sizes = run_sizes(gemma, model_size(gemma.model), saes=1)
    sae = 4 * (2 * 2304 * 16384 + 16384 + 2304)
    batch = 2048 * (plan_sizes.LATENT_COPIES * 16384 + 6 * 2304) * 4
    # Weights, gradients and two moments in float32; weights and gradients in bfloat16.
    assert sizes.gpu["training"] == plan_sizes.CUDA_CONTEXT + 5 * sae + batch
    assert sizes.gpu["evaluation"] > 2 * 2.6e9 and sizes.gpu["evaluation"] < 24 * GiB
    stored = run_sizes(change(gemma, data={"store": "memory"}), model_size(gemma.model), saes=1)
    assert stored.gpu["training"] - sizes.gpu["training"] == 10_000_000 * (2 * 2304 + 6)
    assert stored.host == sizes.host


def test_times_by_hand(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    with_runs(monkeypatch, profile, main=[1, 2, 3, 4, 5, 6], sweep=[7, 8], factorial=[1, 9, 10], untrained=[1])
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 8)
    changed = change(
        profile,
        training={"steps": 1000, "d_sae": 1000, "workers": 2},
        data={"train_tokens": 500_000, "batch_tokens": 500},
        estimates=RATES,
    )
    floor = 10 * 500 * 128 * 1000 / 100e9 + 28 * (2 * 128 * 1000 + 1000 + 128) / 10e9
    model = model_size(profile.model)
    assert plan.step_floor(changed, 128) == pytest.approx(floor)
    assert plan.token_floor(changed, model) == 2 * 3 * 245_760 / 100e9  # three blocks of 245,760 weights
    train = 1000 * (2 * floor + 40 * 500 * 1000 / 10e9 + 1e-3) / 2
    token = 3 * 2 * 3 * 245_760 / 100e9
    # Of the factorial, one is of the main group and made once; 03 has two of the four scores.
    by_hand = {
        "01": 1 + 500_000 * token,
        "02": 2 + 8 * train,
        "03": 3 + 2 * (train + 3 / 2),
        "04": 4 + 1000 * token + 9 * 10 / 2,
        "05": 5.0,
    }
    assert plan.estimate(changed, speed=1.0).seconds == pytest.approx(by_hand)
    twice = plan.estimate(changed, speed=2.0).seconds
    assert twice == pytest.approx({number: seconds / 2 for number, seconds in by_hand.items()})
    four = plan.estimate(changed, speed=1.0, processes=4).seconds
    assert four["01"] == pytest.approx(1 + 500_000 * token / 4) and four["02"] == pytest.approx(2 + 8 * train / 4)
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 1)
    assert plan.estimate(changed, speed=1.0).seconds["02"] == pytest.approx(2 + 8 * 2 * train)
    in_memory = plan.estimate(change(changed, data={"store": "memory"}), speed=1.0).seconds
    assert in_memory["02"] == pytest.approx(2 + 8 * 2 * train + 500_000 * token)  # harvested again


def test_this_machine_is_timed_beside_the_named_one(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    rate = plan_speed.gemm_gflops(64, 16, 32, "float32", "cpu")
    assert rate > 0 and torch.get_num_threads() == threads
    asked: list[Any] = []

    def measured(*arguments: Any) -> float:
        asked.append(arguments)
        return 326.0

    monkeypatch.setattr(plan_speed, "gemm_gflops", measured)
    cost = plan.estimate(change(profile, estimates={"gemm_gflops": 163.0}))
    assert asked == [(512, 128, 1024, "float32", "cpu")]
    assert cost.speed == 2.0
    assert plan.speed_note(profile, cost) == "here, 2 times as fast as: 2 CPU cores"
    gemma = load_profile("gemma-2-2b")
    monkeypatch.setattr(plan_speed, "has_gpu", lambda: False)
    assert plan_speed.speed_here(gemma, 2304) is None
    assert plan.speed_note(gemma, plan.estimate(gemma)) == f"times are of: {gemma.estimates.hardware}"
    monkeypatch.setattr(plan_speed, "has_gpu", lambda: True)
    plan_speed.speed_here(gemma, 2304)
    assert asked[-1] == (2048, 2304, 16384, "bfloat16", "cuda")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_can_be_planned_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("the network was asked"))
    known = load_profile(name)
    cost = plan.estimate(known, speed=1.0)
    assert set(cost.seconds) == {"01", "02", "03", "04", "05"} and min(cost.seconds.values()) > 0
    assert bool(cost.sizes.gpu) == known.estimates.needs_gpu
    assert "GB of RAM" in plan.memory_note(known)


def test_too_little_disk(profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = plan.estimate(profile, speed=1.0)
    with_free(monkeypatch)
    assert plan.blockers(profile, cost, paths) == []
    without_store = cost.disk_bytes - cost.sizes.disk["store"]
    # Room for half the store, and for all of it in memory.
    half = without_store + cost.sizes.disk["store"] / 2
    with_free(monkeypatch, disk=half)
    assert plan.blockers(profile, cost, paths) == []
    asked = change(profile, data={"store": "disk"})
    [line] = plan.blockers(asked, cost, paths)
    assert line.startswith("disk: pocket needs 0.5 GB and ") and "SAE_LIB_OUTPUT" in line and "\n" not in line
    assert "set data.store to memory, or lower data.train_tokens to 250_000, or" in line
    fewer = plan.estimate(change(profile, data={"train_tokens": 250_000}), speed=1.0)
    assert fewer.disk_bytes <= half
    with_free(monkeypatch, disk=1e6)
    [line] = plan.blockers(profile, cost, paths)
    assert "train_tokens" not in line and "data.store" not in line


def test_what_is_there_counts_as_room(profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = plan.estimate(profile, speed=1.0)
    paths.store.mkdir(parents=True)
    with open(paths.store / "activations-00000.npy", "wb") as file:
        file.truncate(int(cost.disk_bytes))
    with_free(monkeypatch, disk=1e5)
    assert plan.blockers(profile, cost, paths) == []


def test_too_little_memory(profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = plan.estimate(profile, speed=1.0)
    peak = max(cost.sizes.host.values())
    with_free(monkeypatch, cpu=0.9 * peak)
    [line] = plan.blockers(profile, cost, paths)
    assert line.startswith("memory: pocket needs ") and line.endswith("set training.workers to 1") and "\n" not in line
    alone = plan.estimate(change(profile, training={"workers": 1}), speed=1.0)
    assert max(alone.sizes.host.values()) <= 0.9 * peak
    stored = change(profile, data={"store": "memory", "train_tokens": 100_000_000})
    with_free(monkeypatch, cpu=peak)
    [line] = plan.blockers(stored, plan.estimate(stored, speed=1.0), paths)
    assert line.endswith("set data.store to disk")
    with_free(monkeypatch, cpu=1e6)
    [line] = plan.blockers(profile, cost, paths)
    assert "run on a machine with 2 GB free" in line


def test_too_little_gpu_memory(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = load_profile("gemma-2-2b")
    cost = plan.estimate(gemma, speed=1.0)
    with_free(monkeypatch, cuda=80e9)
    assert plan.blockers(gemma, cost, paths) == []
    wide = change(gemma, training={"d_sae": 16384 * 8}, data={"batch_tokens": 8192})
    with_free(monkeypatch, cuda=40e9)
    [line] = plan.blockers(wide, plan.estimate(wide, speed=1.0), paths)
    assert line.startswith("GPU memory: gemma-2-2b needs ") and "(training)" in line
    field, _, value = line.partition("set data.batch_tokens to ")[2].partition(" ")
    smaller = change(wide, data={"batch_tokens": int(field)})
    assert not value and max(run_sizes(smaller, model_size(gemma.model), 1).gpu.values()) <= 40e9


def test_no_gpu(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = load_profile("gemma-2-2b")
    with_free(monkeypatch)
    [line] = plan.blockers(gemma, plan.estimate(gemma, speed=1.0), paths)
    assert line.startswith("GPU: gemma-2-2b needs one") and "PROFILE=pocket" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"layer": 4}}, "model.layer: 4 is beyond pocket, which has 4 layers: 0-3"),
        ({"model": {"device": "cuda"}}, "model.device: cuda is not available on this machine; choose auto or cpu"),
        (
            {"corpus": {"packages": ("numpy", "nosuchpackage_zz")}},
            "corpus.packages: 'nosuchpackage_zz' is not installed",
        ),
        ({"corpus": {"source": "files", "files": ("/nope.txt",)}}, "corpus.files: no such file: /nope.txt"),
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
    [line] = plan.blockers(change(profile, **changes), plan.estimate(profile, speed=1.0), paths)
    assert line.startswith(says)


def test_an_output_folder_that_cannot_be_written(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, disk=0)
    cost = plan.estimate(profile, speed=1.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "file" / "below"))
    advice = "set SAE_LIB_OUTPUT to a folder that you may write"
    assert plan.blockers(profile, cost, Paths("pocket")) == [f"output: {tmp_path}/file is not a folder; {advice}"]

    def refused(**options: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "new"))
    monkeypatch.setattr(plan_input.tempfile, "TemporaryFile", refused)
    line = f"output: cannot write in {tmp_path} (Read-only file system); {advice}"
    assert plan.blockers(profile, cost, Paths("pocket")) == [line]
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_downloaded_need_room(
    tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemma = load_profile("gemma-2-2b")
    cost = plan.estimate(gemma, speed=1.0)
    usage = shutil.disk_usage("/")
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with_free(monkeypatch, cuda=80e9)
    room: Callable[[Path], Any] = lambda folder: usage._replace(free=10**9 if folder == cache else 10**15)  # noqa: E731
    monkeypatch.setattr(disk_module.shutil, "disk_usage", room)
    [line] = plan.blockers(gemma, cost, paths)
    assert line.startswith("disk: the weights of google/gemma-2-2b are up to 10.5 GB") and "HF_HOME" in line


def test_a_configuration_that_cannot_be_fetched_is_one_line(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    unknown = change(profile, model={"name": "someone/some-model", "revision": "0" * 40})
    with pytest.raises(ArtifactError) as caught:
        plan.estimate(unknown)
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
    expected = run_sizes(experiment.profile, model_size(experiment.profile.model), len(specs)).disk
    for name in ("store", "tokens", "runs"):
        there = sum(path.stat().st_size for path in (experiment.paths.root / name).rglob("*") if path.is_file())
        assert expected[name] == pytest.approx(there, rel=0.25), name
