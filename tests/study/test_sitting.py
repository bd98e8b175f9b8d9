"""A long study, a sitting at a time: what is known is not computed again, with or without the weights."""

from __future__ import annotations

import gzip
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from sae_lib.__main__ import main
from sae_lib.profiles.profile import load_profile
from sae_lib.profiles.runs import ABLATION_GROUPS, FOLLOWED, Calibration, plan_runs
from sae_lib.study import comparisons, scoring, sitting
from sae_lib.study.experiment import Experiment
from sae_lib.study.extras import METRICS, TRAJECTORY
from sae_lib.study.pipeline import run
from sae_lib.study.rows import keep, restore, rows_folder, scores_of
from sae_lib.study.sitting import Step, sit, steps
from sae_lib.training.trainer import Trainer
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import ROOT
from tests.report.synthetic import toy_summary
from tests.study.test_stages import write_profile

KNOWN = Calibration(coefficients={}, dropout_probability=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sitting")


@pytest.fixture(scope="module")
def profile(folder):
    """Methods of the main table that are told their L0, have a coefficient to find, and follow what another's sweep
    gives; no ablations."""
    path = write_profile(folder, "sitting", workers=1)
    content = yaml.safe_load(path.read_text())
    content["methods"] = {"topk": content["methods"]["topk"]}
    content["sweep"]["coefficients"] = {name: [0.01, 1.0] for name in ("atm", "dropout", "standard")}
    content["sweep"] |= {"levels": [4, 16], "seeds": [7]}
    content |= {"as_written": {"paper_standard": {}}, "controls": ["permuted"]}
    atm = {"atm_c": [0.0, 1.0], "atm_r": [1.0], "atm_grid_seeds": [7]}
    content["ablations"] = content.get("ablations", {}) | {"collapse": True, "layer_groups": 2} | atm
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def experiment(profile, folder, monkeypatch):
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(folder / "out"))
    monkeypatch.setattr(sitting, "FIRST_ABLATIONS", ())
    monkeypatch.setattr(sitting, "LAST_ABLATIONS", ())
    monkeypatch.setattr(sitting, "EXPLAINING", ("as_written",))
    return Experiment.open(str(profile))


@pytest.mark.parametrize("hours", ["nan", "-1", "inf", "-1e400"])
def test_a_time_that_is_none_is_refused(profile, experiment, hours, capsys):
    assert main(["study", "--profile", str(profile), f"--hours={hours}"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: hours: (nan|-1|inf|-inf) is no time to go on for; give a number of 0 or more", line)


def planned(profile, monkeypatch, missing=()):
    """The steps where every decision falls on what is known already."""
    monkeypatch.setattr(sitting, "evaluate", lambda *_: SimpleNamespace(rows=None))
    monkeypatch.setattr(sitting, "choose_atm", lambda rows: None)
    monkeypatch.setattr(Experiment, "calibrate", lambda _: KNOWN)
    monkeypatch.setattr(Experiment, "match_fair", lambda _, known, method: known)
    return list(steps(Experiment.open(str(profile)), missing))


def test_what_depends_on_a_sweep_waits_for_it(profile, monkeypatch):
    whole = planned(profile, monkeypatch)
    every = [step.what for step in whole]
    for group, first, last in (
        ("sweep", "sweep of dropout", None),
        ("atm_grid", "sweep of atm for a fair ATM", "a fair ATM"),
        ("fair_sweep", "sweep of dropout for a fair ATM", "a fair ATM"),
    ):
        spec = next(spec for step in whole for spec in step.specs if spec.group == group)
        end = every.index(last) + 1 if last else len(every)
        left = every[: every.index(first)] + every[end:]
        assert [step.what for step in planned(profile, monkeypatch, [spec])] == left


def test_the_order_begins_with_what_needs_no_sweep(profile, monkeypatch):
    plan, seeds = planned(profile, monkeypatch), load_profile(profile).training.seeds
    assert [spec.method for spec in plan[0].specs] == ["topk", "untrained", "permuted"]
    assert [step.what for step in plan[: len(seeds)]] == [f"told their L0, and controls, seed {s}" for s in seeds]
    assert [step.what for step in plan[len(seeds) :][:6]] == [
        "planted absorption", "carrier test", "targeted probe perturbation",
        "coefficients as written, and a sweep of the L1 methods", "sweep of dropout", "main table, the first seeds",
    ]  # fmt: skip
    assert [s.method for s in plan[len(seeds) + 3].specs] == ["paper_standard", *["atm"] * 2, *["standard"] * 2]
    [along] = [step.specs for step in plan if step.extra is TRAJECTORY]
    assert {(s.group, s.method, s.seed) for s in along} == {
        ("as_written", "paper_standard", seeds[0]), ("main", "topk", seeds[0]),
    }  # fmt: skip
    named = {(s.group, s.method, s.label, s.seed) for step in plan for s in step.specs}
    assert named == {(s.group, s.method, s.label, s.seed) for s in plan_runs(load_profile(profile), KNOWN)}


def test_each_sae_of_a_step_gets_the_scores_of_its_group(experiment, monkeypatch):
    specs = [plan_runs(experiment.profile, KNOWN, [group])[0] for group in ("atm_grid", "as_written")]  # made together
    assert scores_of(specs[0]) != scores_of(specs[1])
    monkeypatch.setattr(sitting, "steps", lambda *_: [Step("groups of two kinds", specs)])
    for name in ("prepare", "train", "calibration_l0"):
        monkeypatch.setattr(Experiment, name, lambda *_: None)
    for name in ("restore", "keep", "write_tables", "publish", "is_known"):
        monkeypatch.setattr(sitting, name, lambda *_: None)
    monkeypatch.setattr(sitting, "score_keys", lambda _: {})
    monkeypatch.setattr(Experiment, "run_folders", lambda _, some: dict.fromkeys(some))
    given = {}
    monkeypatch.setattr(sitting, "evaluate", lambda _, some, scores: given.update(dict.fromkeys(some, scores)))
    assert sit(experiment, 1.0)
    assert given == {spec: scores_of(spec) for spec in specs}


def test_a_sitting_ends_with_rows_and_tables_and_the_next_one_computes_nothing(experiment, monkeypatch):
    assert not sit(experiment, 0.0), "nothing is known yet"
    assert sit(experiment, 1.0)
    folder = experiment.paths.figures
    first = pd.read_parquet(folder / "results" / "evaluation_main.parquet")
    table = (folder / "table_main.md").read_text()
    assert set(first["method"]) == {"topk", "untrained", "permuted", "standard", "atm", "dropout", "paper_standard"}
    ablations = pd.read_parquet(folder / "results" / "evaluation_ablations.parquet")
    assert {*ablations["group"]} == {"atm_grid", "fair_sweep", "atm_fair"} and (folder / "table_atm_fair.md").is_file()
    assert not {*ablations.loc[ablations["group"] == "atm_grid", "seed"]} & {
        *first.loc[first["group"] == "main", "seed"]
    }
    assert len(list(rows_folder(experiment.paths).glob("*.json.gz"))) == len({*first["run"], *ablations["run"]})
    along = pd.read_parquet(folder / "results" / "trajectory.parquet")
    assert {*along["method"]} == {"paper_standard", "topk"}
    for method, part in along.groupby("method"):
        assert part["step"].is_monotonic_increasing and part["step"].iloc[-1] == experiment.profile.training.steps - 1
        end = first[(first["method"] == method) & first["group"].isin(FOLLOWED)].iloc[0]
        assert part["absorption_full"].iloc[-1] == pytest.approx(end["absorption_full"], nan_ok=True), "the same SAE"
    assert all((folder / f"{name}.png").is_file() for name in ("collapse", "tokens", "planted"))
    ablated = pd.read_parquet(folder / "results" / "perturbation.parquet")
    assert {*ablated["method"]} == {"topk", "untrained", "permuted"} and (ablated["n"] <= 50).all()
    ends = pd.read_parquet(folder / "results" / "endings.parquet")
    assert {*ends["method"]} == {"topk", "untrained", "permuted"} and (ends["ending"] == "all").sum() == len(
        {*ends["run"]}
    )
    told = pd.read_parquet(folder / "results" / "interpretation.parquet")
    assert {*told["method"]} == {"topk", "untrained", "permuted"} and (folder / "table_interpretation.md").is_file()
    layers = pd.read_parquet(folder / "results" / "layer_groups.parquet").groupby(["layer", "kind"])["seed"].nunique()
    assert {layer for layer, _ in layers.index} == {0, 1, 2, 3} and layers.nunique() == 1
    assert (folder / "table_layer_groups.md").is_file() and (folder / "table_perturbation.md").is_file()
    before = {file.name: file.read_bytes() for file in rows_folder(experiment.paths).iterdir()}
    next(rows_folder(experiment.paths).iterdir()).unlink()  # as if a sitting had been interrupted after its scores
    assert sit(experiment, 0.0)
    assert {file.name: file.read_bytes() for file in rows_folder(experiment.paths).iterdir()} == before

    shutil.rmtree(experiment.paths.runs)
    monkeypatch.setattr(Trainer, "step", lambda self: pytest.fail("an SAE of which rows are known was trained"))
    assert sit(experiment, 1.0)
    again = pd.read_parquet(folder / "results" / "evaluation_main.parquet")
    pd.testing.assert_frame_equal(along, pd.read_parquet(folder / "results" / "trajectory.parquet"))
    pd.testing.assert_frame_equal(first, again)
    assert (folder / "table_main.md").read_text() == table
    assert {file.name: file.read_bytes() for file in rows_folder(experiment.paths).iterdir()} == before


def test_all_rows_that_are_known_are_shown_and_nothing_of_older_ones(experiment):
    folder = experiment.paths.figures
    spec = next(s for s in plan_runs(experiment.profile, None, ["main"]) if s.method == "topk")
    run = experiment.run_folder(spec, experiment.store_key)
    row = rows_folder(experiment.paths) / f"{run.name}.json.gz"
    content = row.read_bytes()
    shutil.rmtree(run)
    row.unlink()
    (folder / "table_factorial.md").write_text("of another day")
    assert not sit(experiment, 0.0), "the first step lacks an SAE"
    shown = pd.read_parquet(folder / "results" / "evaluation_main.parquet")
    assert {*shown["method"]} == {"untrained", "permuted", "standard", "atm", "dropout", "paper_standard", "topk"}
    assert {*shown.loc[shown["method"] == "topk", "group"]} == {"sweep"} and not (
        folder / "table_factorial.md"
    ).exists()
    row.write_bytes(content)
    restore(experiment, [spec])
    assert (run / "run.json").is_file()


@pytest.fixture
def spec(experiment):
    """A TopK SAE of which no run folder is there, only rows."""
    spec = plan_runs(experiment.profile, None, ["main"], ["topk"])[0]
    shutil.rmtree(experiment.run_folder(spec, experiment.store_key), ignore_errors=True)
    return spec


def test_who_needs_weights_trains_them_again(experiment, spec):
    run = experiment.run_folder(spec, experiment.store_key)
    restore(experiment, [spec])
    assert (run / "run.json").is_file() and not (run / "sae.safetensors").is_file()
    assert len(experiment.train([spec])) > 0, "its curves are known without its weights"
    assert experiment.autoencoder(spec).d_sae == 64 and (run / "sae.safetensors").is_file()


def test_rows_of_another_version_of_a_metric_are_not_restored(experiment, spec, monkeypatch):
    keys = scoring.score_keys(experiment)
    monkeypatch.setattr("sae_lib.study.rows.score_keys", lambda _: keys | {"absorption": "another version"})
    restore(experiment, [spec])
    assert not experiment.run_folder(spec, experiment.store_key).exists()


WITHOUT = [gzip.compress(content) for content in (b'{"run": {}}', b'{"run": {}, "scores": {}}')]


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"{"), *WITHOUT])
def test_damaged_rows_are_named(experiment, spec, tmp_path, monkeypatch, content):
    run = experiment.run_folder(spec, experiment.store_key)
    monkeypatch.setattr("sae_lib.study.rows.rows_folder", lambda _: tmp_path)
    (tmp_path / f"{run.name}.json.gz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"rows: .* cannot be read .*restore it with git"):
        restore(experiment, [spec])
    assert not run.exists()


def test_an_unfinished_run_is_not_kept(experiment, tmp_path, monkeypatch):
    spec = plan_runs(experiment.profile, None, ["as_written"])[0]
    restore(experiment, [spec])
    (experiment.run_folder(spec, experiment.store_key) / "absorption.json").unlink()
    monkeypatch.setattr("sae_lib.study.rows.rows_folder", lambda _: tmp_path)
    keep(experiment, [spec])
    assert not list(tmp_path.iterdir())


def test_a_trajectory_without_letters_is_kept(experiment, monkeypatch):
    nothing = SimpleNamespace(summary=dict.fromkeys(METRICS, math.nan))
    monkeypatch.setattr("sae_lib.study.extras.evaluate_absorption", lambda *_: nothing)
    found = replace(TRAJECTORY, points=2).of(
        experiment, plan_runs(experiment.profile, None, ["as_written"])[:1]
    )  # another key
    steps_taken = experiment.profile.training.steps
    assert found["step"].tolist() == [steps_taken // 2 - 1, steps_taken - 1]
    assert found["absorption_full"].isna().all()


def test_a_study_of_methods_alone_ends_with_the_toys(profile, folder, monkeypatch):
    """`make field`: no mechanism is taken apart, and no notebook is run."""
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(folder / "field"))
    content = yaml.safe_load(profile.read_text()) | {"name": "alone", "as_written": {}}
    content["sweep"]["coefficients"] = {"standard": [0.01, 1.0]}
    content["methods"] |= {"matryoshka_4": content["methods"]["topk"]}
    toys = {"methods": ["standard", "topk"], "challengers": ["consistent"]}
    content["ablations"] = {"papers": False, "toy": {"field": toys}, "masked_tokens": [0.2]}
    path = folder / "alone.yaml"
    path.write_text(yaml.safe_dump(content))
    experiment = Experiment.open(str(path))
    assert not plan_runs(experiment.profile, KNOWN, ABLATION_GROUPS)
    with pytest.raises(ArtifactError, match=r"ablations.papers: .* make study PROFILE=alone"):
        run(experiment.profile, {}, notebooks=ROOT / "notebooks")
    rows = toy_summary((42, 43))
    idea = rows["experiment"].eq("field") & rows["method"].eq("consistent")
    monkeypatch.setattr(Experiment, "ground_truth", lambda self: (rows[~idea], pd.DataFrame()))
    monkeypatch.setattr(comparisons, "compare_challengers", lambda experiment: rows[idea])
    assert not sit(experiment, 0) and sit(experiment, 1)
    monkeypatch.setattr(Experiment, "ground_truth", lambda self: pytest.fail("computed twice"))
    for name in ("compare_challengers", "compare_masked"):
        monkeypatch.setattr(comparisons, name, lambda experiment: pytest.fail("computed twice"))
    assert sit(experiment, 1)
    folder = experiment.paths.figures
    masked = pd.read_parquet(folder / "results" / "masked.parquet")
    assert {*masked["masked"]} == {0.0, 0.2} and {*masked["method"]} == {"matryoshka_4"}
    of_seed = masked.set_index(["masked", "seed"])["explained_variance"]
    assert of_seed.notna().all() and (of_seed[0.2] != of_seed[0.0]).all(), "another store"
    assert (experiment.paths.root / "masked" / "0.2" / "manifest.json").is_file()
    assert "Consistent encoder" in (folder / "table_bar.md").read_text() and (folder / "table_masked.md").is_file()
    board = pd.read_csv(folder / "table_leaderboard.csv")
    assert {*board.query("metric == 'seconds_of_topk'")["row"]} == {"Standard", "TopK", "Matryoshka (4 levels)"}
    assert not (folder / "table_factorial.csv").exists() and (folder / "table_ground_truth.csv").exists()
