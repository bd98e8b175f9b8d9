"""What is measured of a few SAEs only: absorption along a run, absorption that was planted, whether it carries,
the circuits of letters, what probes lose without latents, absorption of word endings, and automatic interpretation.

A score of a finished SAE does not say how it came about, nor how much of what is there it finds. Each SAE has a table
of its own, kept in the run's folder, and with its rows (`rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.metrics.absorption.carrier import carrier_test
from sae_lib.metrics.absorption.circuits import build_circuit_reference, letter_circuits
from sae_lib.metrics.absorption.endings import ending_absorption, ending_reference
from sae_lib.metrics.absorption.planted import planted_absorption
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.probing.perturbation import perturbation
from sae_lib.metrics.probing.reference import ProbingPart, build_spurious_reference
from sae_lib.metrics.scores import SCORES
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment, concat, tag
from sae_lib.study.scoring import score_inputs, score_keys, stored, table_as_json, table_from_json
from sae_lib.training.trainer import Trainer
from sae_lib.util.files import write_json
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import for_each, kept

ALONG = Stage("absorption along a run", 1)
PLANTED = Stage("planted absorption", 1)
CARRIER = Stage("carrier test", 1)
CIRCUIT = Stage("letter circuits", 2)
PERTURBATION = Stage("targeted perturbation", 1)
ENDING = Stage("absorption of endings", 1)
INTERPRETATION = SCORES["interpretation"]
POINTS = 20  # evenly over a run, its end among them
METRICS = ("absorption_fraction", "absorption_full", "main_latent_f1")


@dataclass(frozen=True)
class Extra:
    """A table of a trained SAE: its file, what it depends on beside the SAE, how it is made."""

    name: str
    stage: Stage
    measure: Callable[[Experiment, RunSpec], pd.DataFrame]
    needs_weights: bool = True
    settings: tuple[int, ...] = ()
    reads: str = "absorption"
    """The score whose settings and reference it shares."""

    def key(self, experiment: Experiment) -> str:
        """What the table depends on beside the run."""
        return result_key(self.stage, score_keys(experiment)[self.reads], *self.settings)

    def missing(self, experiment: Experiment, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Those of `specs` whose table is not known."""
        key, store_key = self.key(experiment), experiment.store_key
        return [spec for spec in specs if stored(experiment.run_folder(spec, store_key), self.name, key) is None]

    def known(self, experiment: Experiment, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """The tables that are known of `specs`, below each other."""
        key, store_key, frames = self.key(experiment), experiment.store_key, []
        for spec in specs:
            folder = experiment.run_folder(spec, store_key)
            if (found := stored(folder, self.name, key)) is not None:
                frames.append(tag(table_from_json(found), spec, folder.name))
        return concat(frames)

    def of(self, experiment: Experiment, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """The tables of all `specs`, made where they are missing."""
        if waiting := self.missing(experiment, specs):
            if self.needs_weights:
                experiment.need_weights(waiting)
            with experiment.writing():
                score_inputs(experiment).reference(self.reads)  # once here, so that the workers only read it
                work = partial(_measure, self, self.key(experiment))
                for_each(work, experiment, [[spec] for spec in waiting], experiment.workers, self.stage.name)
        return self.known(experiment, specs)


def _measure(extra: Extra, key: str, experiment: Experiment, job: list[RunSpec]) -> None:
    for spec in job:
        content = {"key": key, **table_as_json(extra.measure(experiment, spec))}
        write_json(experiment.run_folder(spec, experiment.store_key) / f"{extra.name}.json", content)


def _along_the_run(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """The SAE is trained once more, bit for bit as before, and scored at some of its steps, one row each; `step` counts
    from 0, and the score is of what the step left."""
    store, training = kept(experiment, "store", experiment.store), experiment.profile.training
    inputs = score_inputs(experiment)
    every = max(1, training.steps // POINTS)
    trainer = Trainer(spec.config, store, experiment.profile.data, training, spec.seed, experiment.device)
    rows: list[dict[str, float]] = []
    while trainer.index < training.steps:
        trainer.step()
        if trainer.index % every == 0 or trainer.index == training.steps:
            sae = trainer.snapshot()
            found = evaluate_absorption(sae, inputs.reference("absorption"), inputs.settings("absorption")).summary
            rows.append({"step": trainer.index - 1} | {metric: found[metric] for metric in METRICS})
    return pd.DataFrame(rows)


def _planted(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """How much planted absorption the score finds: one row per share. It takes as long as five absorption scores."""
    inputs = score_inputs(experiment)
    sae = load_autoencoder(experiment.run_folder(spec, experiment.store_key), experiment.device)
    return planted_absorption(sae, inputs.reference("absorption"), inputs.settings("absorption"))


def _carriers(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """Whether absorbing latents carry the letter: two rows."""
    inputs = score_inputs(experiment)
    sae = load_autoencoder(experiment.run_folder(spec, experiment.store_key), experiment.device)
    return carrier_test(sae, inputs.lm, inputs.reference("absorption"), inputs.settings("absorption"))


def _circuits(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """How many latents the model's spelling goes through: a row for each size of circuit."""
    inputs, config = score_inputs(experiment), score_inputs(experiment).settings("absorption")
    reference = inputs.reference("absorption")
    circuits = build_circuit_reference(inputs.lm, reference, config, inputs.folder)
    sae = load_autoencoder(experiment.run_folder(spec, experiment.store_key), experiment.device)
    return letter_circuits(sae, inputs.lm, reference, circuits, config)


def _endings(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """Absorption where the general feature is how a word ends: a row for each ending, and their mean."""
    inputs, config = score_inputs(experiment), score_inputs(experiment).settings("absorption")
    reference = kept(experiment, "endings", lambda: ending_reference(inputs.reference("absorption"), config))
    sae = load_autoencoder(experiment.run_folder(spec, experiment.store_key), experiment.device)
    return ending_absorption(sae, reference, config)


def _interpreted(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """Whether latents can be told from examples of where they fire: one row."""
    inputs = score_inputs(experiment)
    sae = load_autoencoder(experiment.run_folder(spec, experiment.store_key), experiment.device)
    return pd.DataFrame([found.summary for found in INTERPRETATION.evaluate([sae], inputs, [{}])])


def _perturbed(experiment: Experiment, spec: RunSpec) -> pd.DataFrame:
    """What probes lose without the latents that matter to one of them: a row for each number of latents."""
    inputs = score_inputs(experiment)
    config = inputs.settings("probing")

    def confounded() -> ProbingPart:
        return build_spurious_reference(inputs.lm, config, inputs.corpus, inputs.folder, inputs.corpus_cache)

    sae = load_autoencoder(experiment.run_folder(spec, experiment.store_key), experiment.device)
    return perturbation(sae, inputs.reference("probing"), kept(experiment, "confounded", confounded), config)


TRAJECTORY = Extra("trajectory", ALONG, _along_the_run, needs_weights=False, settings=(POINTS,))
PLANTED_CURVE = Extra("planted", PLANTED, _planted)
CARRIERS = Extra("carriers", CARRIER, _carriers)
PERTURBED = Extra("perturbation", PERTURBATION, _perturbed, reads="probing")
CIRCUITS = Extra("circuits", CIRCUIT, _circuits)
ENDINGS = Extra("endings", ENDING, _endings)
INTERPRETED = Extra(INTERPRETATION.name, INTERPRETATION.stage, _interpreted, reads=INTERPRETATION.name)
EXTRAS = (TRAJECTORY, PLANTED_CURVE, CARRIERS, CIRCUITS, PERTURBED, ENDINGS, INTERPRETED)
