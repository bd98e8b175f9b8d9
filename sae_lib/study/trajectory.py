"""Absorption along a run: an SAE is trained once more, bit for bit as before, and scored at some of its steps.

A score of a finished SAE does not say how it came about. What is found is kept in the run's folder, and with its rows
(`rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment, concat, tag
from sae_lib.study.scoring import score_inputs, score_keys, stored, table_as_json, table_from_json
from sae_lib.training.trainer import Trainer
from sae_lib.util.files import write_json
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import for_each, kept

ALONG = Stage("absorption along a run", 1)
TRAJECTORY = "trajectory"
POINTS = 20  # evenly over a run, its end among them
METRICS = ("absorption_fraction", "absorption_full", "main_latent_f1")


def trajectory_key(experiment: Experiment) -> str:
    """What a trajectory depends on beside the run."""
    return result_key(ALONG, score_keys(experiment)["absorption"], POINTS)


def not_followed(experiment: Experiment, specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Those of `specs` whose trajectory is not known."""
    key, store_key = trajectory_key(experiment), experiment.store_key
    return [spec for spec in specs if stored(experiment.run_folder(spec, store_key), TRAJECTORY, key) is None]


def trajectory(experiment: Experiment, specs: Sequence[RunSpec], *, compute: bool = True) -> pd.DataFrame:
    """Absorption of trained SAEs at some of their steps, one row each; `step` counts from 0, and the score is of what
    the step left. Without `compute` only of those of which it is known.
    """
    key, store_key = trajectory_key(experiment), experiment.store_key
    if compute and (waiting := not_followed(experiment, specs)):
        with experiment.writing():
            score_inputs(experiment).reference("absorption")  # once here, so that the workers only read it
            work = partial(_follow, key)
            for_each(work, experiment, [[spec] for spec in waiting], experiment.workers, "along the run")
    frames = []
    for spec in specs:
        folder = experiment.run_folder(spec, store_key)
        if (found := stored(folder, TRAJECTORY, key)) is not None:
            frames.append(tag(table_from_json(found), spec, folder.name))
    return concat(frames)


def _follow(key: str, experiment: Experiment, job: list[RunSpec]) -> None:
    store, profile, inputs = kept(experiment, "store", experiment.store), experiment.profile, score_inputs(experiment)
    training = profile.training
    every = max(1, training.steps // POINTS)
    for spec in job:
        trainer = Trainer(spec.config, store, profile.data, training, spec.seed, experiment.device)
        rows: list[dict[str, float]] = []
        while trainer.index < training.steps:
            trainer.step()
            if trainer.index % every == 0 or trainer.index == training.steps:
                sae = trainer.snapshot()
                found = evaluate_absorption(sae, inputs.reference("absorption"), inputs.settings("absorption")).summary
                rows.append({"step": trainer.index - 1} | {metric: found[metric] for metric in METRICS})
        content = {"key": key, **table_as_json(pd.DataFrame(rows))}
        write_json(experiment.run_folder(spec, store.key) / f"{TRAJECTORY}.json", content)
