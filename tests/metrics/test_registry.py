"""A metric is one file: its settings, its score, its columns; everything else reads the registry."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sae_lib.metrics.registry import COLUMNS, SCORES, Score, register, with_needs
from sae_lib.profiles.runs import plan_runs
from sae_lib.report.tables.main import quality_table
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import evaluate, score_keys
from sae_lib.util.files import read_json
from tests.study.test_stages import write_profile

SHARPNESS = '''
"""Sharpness: the share of a decoder row's norm that lies in its largest entry."""

from sae_lib.metrics.registry import Column, Measured, Score, register


def evaluate(saes, inputs, earlier):
    shares = (sae.W_dec.abs().amax(dim=1) / sae.W_dec.norm(dim=1) for sae in saes)
    return [Measured({"sharpness": share.mean().item()}) for share in shares]


columns = {"sharpness": Column("sharpness", "none", 3, quality=True)}
register(Score("sharpness", version=1, evaluate=evaluate, columns=columns))
'''


@pytest.fixture
def metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file beside the package that registers a metric."""
    (tmp_path / "sharpness_metric.py").write_text(SHARPNESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for workers
    importlib.import_module("sharpness_metric")
    yield
    del SCORES["sharpness"], COLUMNS["sharpness"], sys.modules["sharpness_metric"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def experiment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(folder))
    experiment = Experiment.open(str(write_profile(folder, "two", 2)))
    lm = experiment.language_model(whole=False)
    experiment.build_tokens(lm.tokenizer)
    experiment.harvest(lm)
    return experiment


def test_one_file_brings_a_metric_into_the_rows_and_the_quality_table(experiment: Experiment, metric: None) -> None:
    specs = [s for s in plan_runs(experiment.profile, None, ["main", "untrained"]) if s.method in ("topk", "untrained")]
    experiment.train(specs)
    rows = evaluate(experiment, specs, ["reconstruction", "sharpness"]).rows
    for row, spec in zip(rows.itertuples(), specs, strict=True):
        weights = experiment.autoencoder(spec).W_dec
        assert row.sharpness == pytest.approx((weights.abs().amax(dim=1) / weights.norm(dim=1)).mean().item())
    assert "sharpness –" in quality_table(rows).shown


def test_another_version_makes_a_score_and_those_that_read_it_stale(experiment: Experiment) -> None:
    def stale(name: str) -> set[str]:
        with pytest.MonkeyPatch.context() as patched:
            newer = Score(**{**vars(SCORES[name]), "version": SCORES[name].version + 1})
            patched.setitem(SCORES, name, newer)
            return {score for score, key in score_keys(experiment).items() if key != before[score]}

    before = score_keys(experiment)
    assert stale("probing") == {"probing"}
    assert stale("absorption") == {"absorption", "null_absorption", "stability"}


def test_only_a_stale_score_is_computed_again(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [s for s in plan_runs(experiment.profile, None, ["main"]) if s.method == "topk"]
    experiment.train(specs)
    evaluate(experiment, specs, ["absorption", "stability"])
    run = experiment.run_folder(specs[0], experiment.store_key)
    before = {name: (run / f"{name}.json").stat().st_mtime_ns for name in ("absorption", "stability")}
    newer = Score(**{**vars(SCORES["stability"]), "version": 2})
    monkeypatch.setitem(SCORES, "stability", newer)
    evaluate(experiment, specs, ["stability"])
    after = {name: (run / f"{name}.json").stat().st_mtime_ns for name in before}
    assert after["absorption"] == before["absorption"] and after["stability"] > before["stability"]


def test_stability_does_not_read_an_absorption_of_another_key(folder: Path, experiment: Experiment) -> None:
    """It asks for the absorption that belongs to it, and that is computed first."""
    specs = [s for s in plan_runs(experiment.profile, None, ["main"]) if s.method == "topk"]
    experiment.train(specs)
    evaluate(experiment, specs, ["absorption"])
    run = experiment.run_folder(specs[0], experiment.store_key)
    profile = write_profile(folder, "two", 2)
    content = yaml.safe_load(profile.read_text())
    content["evaluation"]["absorption"]["min_probe_f1"] = 0.0
    profile.write_text(yaml.safe_dump(content))
    edited = Experiment.open(str(profile))
    rows = evaluate(edited, specs, ["stability"]).rows
    assert read_json(run / "absorption.json")["key"] == score_keys(edited)["absorption"]
    assert rows["letters"].item() > 0


def test_what_a_score_needs_comes_before_it() -> None:
    assert with_needs(["stability"]) == ("absorption", "stability")
    needy = Score("needy", 1, SCORES["probing"].evaluate, {}, needs=("nothing",))
    with pytest.raises(ValueError, match="score 'needy' needs unknown scores"):
        register(needy)
