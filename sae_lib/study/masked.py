"""Masked regularisation: one method on activations of texts in which some tokens are hidden."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from sae_lib.profiles.runs import RunSpec, plan_runs
from sae_lib.study.experiment import Experiment, concat
from sae_lib.study.scoring import evaluate, score_keys
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.paths import Paths

MASKED = Stage("masked regularisation", 1)
METHOD = "matryoshka_4"  # as the paper has it


def masked_key(experiment: Experiment) -> str:
    """What the rows of `compare_masked` depend on."""
    runs = [experiment.run_key(spec, experiment.store_key) for spec in _specs(experiment)]
    return result_key(MASKED, runs, list(experiment.profile.ablations.masked_tokens), score_keys(experiment))


def compare_masked(experiment: Experiment) -> pd.DataFrame:
    """The rows of `METHOD` in the main table, and with each share of `ablations.masked_tokens`; the share is column
    `masked`. Each share has an activation store of its own, beside the other; every metric reads whole texts."""
    frames = []
    for share in (0.0, *experiment.profile.ablations.masked_tokens):
        hidden = _with_masked(experiment, share) if share else experiment
        if share:
            hidden.harvest(hidden.language_model(whole=False))
        specs = _specs(hidden)
        hidden.train(specs, f"masked {share:g}")
        frames.append(evaluate(hidden, specs).rows.assign(masked=share))
    return concat(frames)


def _specs(experiment: Experiment) -> list[RunSpec]:
    return [spec for spec in plan_runs(experiment.profile, None, ["main"]) if spec.method == METHOD]


def _with_masked(experiment: Experiment, share: float) -> Experiment:
    data = experiment.profile.data.model_copy(update={"masked_tokens": share})
    paths = Paths(experiment.paths.profile)
    paths.store = experiment.paths.root / "masked" / f"{share:g}"
    return replace(experiment, profile=experiment.profile.model_copy(update={"data": data}), paths=paths)
