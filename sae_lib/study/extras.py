"""What is measured of a few SAEs only: absorption along a run, absorption that was planted, whether it carries,
the circuits of letters, what probes lose without latents, absorption of word endings, and automatic interpretation.

A score of a finished SAE does not say how it came about, nor how much of what is there it finds. Each SAE has a table
of its own, kept in the run's folder, and with its rows (`rows`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.metrics.absorption.answers import carrier_test, letter_circuits
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.null import ending_absorption, ending_reference
from sae_lib.metrics.absorption.planted import planted_absorption
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.probing.perturbation import build_spurious_reference, perturbation
from sae_lib.metrics.scores import SCORES
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment, concat, tag
from sae_lib.study.scoring import score_inputs, score_keys, table_as_json, table_from_json
from sae_lib.training.run import stored
from sae_lib.training.trainer import Trainer
from sae_lib.util.files import write_json
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import for_each, kept

INTERPRETATION = SCORES["interpretation"]
METRICS = ("absorption_fraction", "absorption_full", "main_latent_f1")


@dataclass(frozen=True)
class Extra:
    """A table of a trained SAE: its file, what it depends on beside the SAE, how it is made."""

    name: str
    stage: Stage
    measure: Callable[[Experiment, Autoencoder], pd.DataFrame]
    points: int = 0
    """How often it is measured along the run, evenly, its end among them; 0: of the finished SAE alone."""
    reads: str = "absorption"
    """The score whose settings and reference it shares."""

    def key(self, experiment: Experiment) -> str:
        """What the table depends on beside the run."""
        along = [self.points] if self.points else []
        return result_key(self.stage, score_keys(experiment)[self.reads], *along)

    def missing(self, experiment: Experiment, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Those of `specs` whose table is not known."""
        key, runs = self.key(experiment), experiment.run_folders(specs)
        return [spec for spec, run in runs.items() if stored(run, self.name, key) is None]

    def known(self, experiment: Experiment, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """The tables that are known of `specs`, below each other."""
        key, frames = self.key(experiment), []
        for spec, run in experiment.run_folders(specs).items():
            if (found := stored(run, self.name, key)) is not None:
                frames.append(tag(table_from_json(found), spec, run.name))
        return concat(frames)

    def of(self, experiment: Experiment, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """The tables of all `specs`, made where they are missing."""
        if waiting := self.missing(experiment, specs):
            if not self.points:
                experiment.need_weights(waiting)
            with experiment.writing():
                score_inputs(experiment).reference(self.reads)  # once here, so that the workers only read it
                work = partial(_measure, self, self.key(experiment))
                for_each(work, experiment, [[spec] for spec in waiting], experiment.workers, self.stage.name)
        return self.known(experiment, specs)


def _measure(extra: Extra, key: str, experiment: Experiment, job: list[RunSpec]) -> None:
    for spec, run in experiment.run_folders(job).items():
        if extra.points:
            along = _snapshots(experiment, spec, extra.points)
            table = concat([extra.measure(experiment, sae).assign(step=step) for step, sae in along])
            table = table[["step", *METRICS]]
        else:
            table = extra.measure(experiment, load_autoencoder(run, experiment.device))
        write_json(run / f"{extra.name}.json", {"key": key, **table_as_json(table)})


def _snapshots(experiment: Experiment, spec: RunSpec, points: int) -> Iterator[tuple[int, Autoencoder]]:
    """The SAE trained once more, bit for bit as before: what some of its steps left, with the step, counted from 0."""
    store, training = kept(experiment, "store", experiment.store), experiment.profile.training
    trainer = Trainer(spec.config, store, experiment.profile.data, training, spec.seed, experiment.device)
    while trainer.index < training.steps:
        trainer.step()
        if trainer.index % max(1, training.steps // points) == 0 or trainer.index == training.steps:
            yield trainer.index - 1, trainer.snapshot()


def _letters(experiment: Experiment) -> tuple[AbsorptionReference, AbsorptionConfig]:
    inputs = score_inputs(experiment)
    return inputs.reference("absorption"), inputs.settings("absorption")


def _absorption(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    found = evaluate_absorption(sae, *_letters(experiment)).summary
    return pd.DataFrame([{metric: found[metric] for metric in METRICS}])


def _planted(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    return planted_absorption(sae, *_letters(experiment))


def _carriers(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    return carrier_test(sae, score_inputs(experiment))


def _circuits(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    return letter_circuits(sae, score_inputs(experiment))


def _endings(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    letters, config = _letters(experiment)
    return ending_absorption(sae, kept(experiment, "endings", lambda: ending_reference(letters, config)), config)


def _interpreted(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    return pd.DataFrame([found.summary for found in INTERPRETATION.evaluate([sae], score_inputs(experiment), [{}])])


def _perturbed(experiment: Experiment, sae: Autoencoder) -> pd.DataFrame:
    inputs, config = score_inputs(experiment), score_inputs(experiment).settings("probing")
    confounded = kept(experiment, "confounded", lambda: build_spurious_reference(inputs))
    return perturbation(sae, inputs.reference("probing"), confounded, config)


TRAJECTORY = Extra("trajectory", Stage("absorption along a run", 1), _absorption, points=20)
PLANTED_CURVE = Extra("planted", Stage("planted absorption", 1), _planted)
CARRIERS = Extra("carriers", Stage("carrier test", 1), _carriers)
PERTURBED = Extra("perturbation", Stage("targeted perturbation", 1), _perturbed, reads="probing")
CIRCUITS = Extra("circuits", Stage("letter circuits", 2), _circuits)
ENDINGS = Extra("endings", Stage("absorption of endings", 1), _endings)
INTERPRETED = Extra(INTERPRETATION.name, INTERPRETATION.stage, _interpreted, reads=INTERPRETATION.name)
EXTRAS = (TRAJECTORY, PLANTED_CURVE, CARRIERS, CIRCUITS, PERTURBED, ENDINGS, INTERPRETED)
