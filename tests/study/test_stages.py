"""The stages end to end on the packaged model: harvest, calibrate, train on two processes, evaluate."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.data.activations import ActivationStore
from sae_lib.profiles.profile import PROFILES
from sae_lib.profiles.runs import RunSpec, plan_runs, sweep_runs
from sae_lib.study.experiment import Experiment, _while_masking, choose_atm
from sae_lib.study.extras import PLANTED_CURVE
from sae_lib.study.scoring import evaluate
from sae_lib.util import parallel as workers
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json
from sae_lib.util.paths import ROOT
from tests.util.test_ranks import TORCHRUN

SMALL = {
    "corpus": {"source": "documentation", "packages": ["networkx"], "lessons_fraction": 0.2},
    "data": {
        "context_length": 128, "train_tokens": 4096, "held_out_contexts": 2, "calibration_contexts": 2, "window": 16,
        "batch_tokens": 256, "shard_rows": 2048,
    },
    "evaluation": {
        "reconstruction": {"batch_contexts": 2},
        "absorption": {"max_words": 600, "probe_epochs": 3, "sparse_min_steps": 2},
        "stability": {"words_per_letter": 2, "contexts": 2},
        "probing": {
            "source": "documentation", "context": 32, "train_per_task": 8, "test_per_task": 4, "min_per_class": 2,
            "datasets": ["markup"],
        },
    },
}  # fmt: skip


def write_profile(folder: Path, name: str, workers: int, **training: Any) -> Path:
    """The smoke profile, smaller still."""
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text()) | SMALL | {"name": name}
    content["training"] |= {
        "d_sae": 64, "steps": 12, "schedule_scale": 0.0025, "workers": workers, "seeds": [42], "ablation_seeds": [42],
        **training,
    }  # fmt: skip
    for method in ("topk", "batchtopk", "matryoshka_2", "matryoshka_4"):
        content["methods"][method] |= {"k": 8}
    content["as_written"]["topk"] = {"k": 8}
    content["as_written"]["jumprelu"] = {"target_l0": 32}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture
def opened(folder, monkeypatch):
    """An experiment with its activations, by number of workers."""
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(folder))

    def open_(workers: int) -> Experiment:
        experiment = Experiment.open(str(write_profile(folder, f"small{workers}", workers)))
        experiment.prepare()
        return experiment

    return open_


def main_runs(experiment: Experiment) -> list[RunSpec]:
    return plan_runs(experiment.profile, None, ["main", "untrained"], ("topk", "atm", "untrained"))


def test_two_processes_train_the_same_saes_as_one(opened):
    alone, pair = opened(1), opened(2)
    assert ActivationStore.open(alone.paths.store).key == ActivationStore.open(pair.paths.store).key
    histories = [experiment.train(main_runs(experiment)) for experiment in (alone, pair)]
    assert histories[0].drop(columns="run").equals(histories[1].drop(columns="run"))
    for experiment in (alone, pair):
        events = experiment.paths.root / "tensorboard"
        assert {str(file.parent.relative_to(events)) for file in events.rglob("events.out.tfevents.*")} == {
            f"main/{method}/-/seed-42" for method in ("topk", "atm")
        }
        files = {file: file.stat().st_mtime_ns for file in events.rglob("events.out.tfevents.*")}
        experiment.train(main_runs(experiment))
        assert files == {file: file.stat().st_mtime_ns for file in events.rglob("events.out.tfevents.*")}
    assert_same_saes(alone, pair)
    for spec in main_runs(alone):
        run = read_json(alone.run_folder(spec, alone.store_key) / "run.json")
        assert (run["method"], run["group"]) == (spec.method, spec.group)


def assert_same_saes(one: Experiment, other: Experiment) -> None:
    for spec in main_runs(one):
        first, second = one.autoencoder(spec).state_dict(), other.autoencoder(spec).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_controls_at_the_same_sparsity(opened):
    """A permuted decoder is made from the trained SAE, which is trained first where it is not there."""
    experiment = opened(2)
    specs = plan_runs(experiment.profile, None, ["control"])
    experiment.train(specs)
    permuted, frozen = specs
    trained = experiment.autoencoder(permuted.permuted_from)
    sae, start = experiment.autoencoder(permuted), build_autoencoder(frozen.config, trained.d_in, frozen.seed)
    x = torch.randn(20, trained.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.encode(x), trained.encode(x))
    same = (sae.W_dec[:, None] == trained.W_dec[None]).all(dim=2)
    assert same.sum() == sae.d_sae and (same.sum(dim=0) == 1).all() and not torch.equal(sae.W_dec, trained.W_dec)
    assert torch.cosine_similarity(experiment.autoencoder(frozen).W_dec, start.W_dec).min() >= 0.8 - 1e-5
    runs = [read_json(experiment.run_folder(s, experiment.store_key) / "run.json") for s in (permuted, frozen)]
    assert [(run["method"], run["group"], run["steps"]) for run in runs] == [
        ("permuted", "control", 12), ("soft_frozen", "control", 12),
    ]  # fmt: skip
    rows = evaluate(experiment, [permuted.permuted_from, *specs]).rows.set_index("method")
    assert rows.loc["permuted", "explained_variance"] < rows.loc["topk", "explained_variance"]
    assert rows.loc["permuted", "probing_k1"] == rows.loc["topk", "probing_k1"]
    assert rows.loc["permuted", "main_latent_f1"] == rows.loc["topk", "main_latent_f1"]
    shown = ("absorption_fraction_null", "absorption_full_random", "main_latent_f1_null", "ce_score_mean", "kl_sae")
    assert rows[[*shown]].notna().all(axis=None)
    curve = PLANTED_CURVE.of(experiment, [permuted.permuted_from])
    assert [*curve["planted"]] == [0, 0.25, 0.5, 0.75, 1] and set(curve["method"]) == {"topk"}
    for name in ("absorption_fraction", "absorption_full"):
        assert curve.loc[0, name] == rows.loc["topk", name]
    file = experiment.run_folder(permuted.permuted_from, experiment.store_key) / "planted.json"
    made = file.stat().st_mtime_ns
    assert PLANTED_CURVE.of(experiment, [permuted.permuted_from]).equals(curve) and file.stat().st_mtime_ns == made


RANK = """
import sys
from sae_lib.__main__ import main
from sae_lib.study import distributed
from sae_lib.profiles.runs import ABLATION_GROUPS, MAIN_GROUPS, plan_runs

def few(profile, calibration, groups):
    assert groups != ABLATION_GROUPS or calibration == "with a fair ATM", "c and r are chosen before they are trained"
    specs = plan_runs(profile, None, ["main", "untrained"]) if groups == MAIN_GROUPS else []
    return [spec for spec in specs if spec.method in ("topk", "atm", "untrained")]

distributed.plan_runs = few
distributed.Experiment.calibrate = lambda experiment: None
distributed.Experiment.calibrate_atm = lambda experiment, known, grid: "with a fair ATM"
sys.exit(main(["rank", *sys.argv[1:]]))
"""


def test_notebooks_find_done_what_two_ranks_did(opened, folder, monkeypatch):
    alone = opened(1)
    alone.train(main_runs(alone))
    profile = write_profile(folder, "ranks", 1)
    (folder / "rank.py").write_text(RANK)
    command = [*TORCHRUN, str(folder / "rank.py"), "--profile", str(profile)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("[2 ranks]")] == [
        f"[2 ranks] {what}" for what in ("tokens and activations", "sweep, main comparison", "ablations", "evaluation")
    ]
    shared = Experiment.open(str(profile))
    assert shared.store_key == alone.store_key
    for module in ("experiment", "scoring"):
        monkeypatch.setattr(
            f"sae_lib.study.{module}.for_each", lambda work, source, jobs, *_, **__: jobs and pytest.fail(work)
        )
    shared.train(main_runs(shared))
    rows = evaluate(shared, main_runs(shared)).rows
    assert list(rows["method"]) == [spec.method for spec in main_runs(shared)]
    assert_same_saes(alone, shared)


def test_evaluation_gives_a_tidy_row_for_each_sae_and_is_not_repeated(opened, monkeypatch):
    experiment = opened(1)
    specs = main_runs(experiment)
    experiment.train(specs)
    first = evaluate(experiment, specs)
    assert list(first.rows["method"]) == [spec.method for spec in specs]
    assert (first.rows["l0"] > 0).all() and first.rows["explained_variance"].notna().all()
    assert first.rows.loc[first.rows["method"] == "topk", "l0"].item() == pytest.approx(8, abs=0.5)
    assert set(first.tables["letters"]["letter"]) <= set("abcdefghijklmnopqrstuvwxyz")
    assert (first.tables["density"].groupby("run")["count"].sum() == 64).all()
    assert first.tables["tasks"].groupby("run")["task"].nunique().min() > 1
    by_run = first.tables["tasks"].groupby("run")["k1"].mean()
    assert first.rows.set_index("run")["probing_k1"].to_dict() == pytest.approx(by_run.to_dict())
    assert first.rows["context_words"].notna().all() and first.rows["token_change"].between(0, 2).all()
    monkeypatch.setattr("sae_lib.study.scoring._evaluate_job", lambda *job: pytest.fail("evaluated again"))
    assert evaluate(experiment, specs).rows.equals(first.rows)


def test_calibration_reads_its_own_documents_once_and_meets_the_range(opened, monkeypatch):
    experiment = opened(1)
    chosen = experiment.calibrate()
    for method, values in experiment.profile.sweep.coefficients.items():
        assert min(values) * 0.999 <= chosen.coefficients[method] <= max(values) * 1.001
    assert 0 < chosen.dropout_probability < 1
    specs = sweep_runs(experiment.profile, "atm")
    measured = experiment.calibration_l0(specs)
    monkeypatch.setattr("sae_lib.study.experiment.load_autoencoder", lambda *_: pytest.fail("measured again"))
    assert experiment.calibration_l0(specs) == measured


def test_where_atm_never_masked_there_is_no_rate_to_take_over():
    logged = {"l1_coefficient": [0.1, 0.1, 0.5], "mask_rate": [0.0, 0.0, 0.2], "removed": [0.3, 0.3, 0.1]}
    history = pd.DataFrame(logged)
    assert _while_masking(history, "mask_rate", 0.4) == 0.2 and _while_masking(history, "removed", 0.4) == 0.1
    with pytest.raises(ArtifactError, match=r"^methods\.atm\.masking: ATM never masked a latent"):
        _while_masking(history, "mask_rate", 0.11)
    with pytest.raises(ArtifactError, match=r"no 'removed' in its log: an older version made it; run `make clean`"):
        _while_masking(history.drop(columns="removed"), "removed", 0.4)


def test_the_chosen_atm_absorbs_least_where_reconstruction_is_kept():
    columns = ["group", "c", "absorption_fraction", "explained_variance"]
    cells = [
        ("atm_grid", 0.0, 0.3, 0.90), ("atm_grid", 0.0, 0.1, 0.88), ("atm_grid", 0.5, 0.1, 0.86),
        ("atm_grid", 0.5, 0.2, 0.86), ("atm_grid", 1.0, 0.0, 0.7), ("atm_importance", 2.0, 0.0, 0.99),
    ]  # fmt: skip
    grid = pd.DataFrame(cells, columns=columns).assign(r=1.0)
    assert choose_atm(grid).c == 0.5, "the mean over seeds decides, a cell that loses 0.05 does not count"
    assert choose_atm(grid.assign(absorption_fraction=math.nan)).c == 0.0, "without letters the first one"


PARENT = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import os
from sae_lib.util.parallel import begin_worker

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(120)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks the process up in /proc")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{worker}").exists()


def test_altered_activations_are_refused_before_anything_is_trained_on_them(opened, folder, monkeypatch):
    experiment = opened(2)
    monkeypatch.setattr(workers, "_KEPT", {})
    (shard, *_) = sorted(experiment.paths.store.glob("activations-*.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8] + bytes(8))
    specs = [spec for spec in plan_runs(experiment.profile, None, ["main"]) if spec.method == "standard"]
    says = rf"{shard.name} in \S+ is altered; remove it and harvest again \(notebook 01_data\), that file alone"
    with pytest.raises(ArtifactError, match=says):
        experiment.train(specs)
    assert not experiment.run_folder(specs[0], experiment.store_key).exists()
    shard.unlink()
    experiment.harvest(experiment.language_model(whole=False))
    assert shard.read_bytes() == whole


def test_a_store_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(folder / "empty"))
    experiment = Experiment.open(str(write_profile(folder, "small1", 1)))
    with pytest.raises(ArtifactError, match="notebook 01_data"):
        experiment.train(main_runs(experiment))
