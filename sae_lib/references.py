"""What the metrics need of an experiment's language model: computed once, kept on disk, opened once in a process.

Every SAE is scored against the same activations, prompts and ground-truth probes, so none of this is done per SAE.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lib.corpus import load_tokens
from sae_lib.language_model import LanguageModel
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.probing.reference import ProbingReference, build_probing_reference
from sae_lib.metrics.reconstruction import CoreReference, build_core_reference
from sae_lib.metrics.stability.reference import StabilityReference, build_stability_reference
from sae_lib.stages import Experiment
from sae_lib.workers import kept


def language_model(experiment: Experiment) -> LanguageModel:
    """The whole language model, loaded once in a process."""
    lm: LanguageModel = kept(experiment.source, "language model", lambda: experiment.language_model(whole=True))
    return lm


def core_reference(experiment: Experiment) -> CoreReference:
    """What reconstruction and behaviour are measured against, on the held-out text."""

    def make() -> CoreReference:
        batch = experiment.profile.evaluation.batch_contexts
        lm = language_model(experiment)
        return build_core_reference(lm, _held_out(experiment), batch, experiment.paths.reference)

    reference: CoreReference = kept(experiment.source, "core reference", make)
    return reference


def absorption_reference(experiment: Experiment) -> AbsorptionReference:
    """Words, residual streams at the words in spelling prompts, and the ground-truth probe."""

    def make() -> AbsorptionReference:
        settings = experiment.profile.evaluation.absorption
        return build_absorption_reference(language_model(experiment), settings, experiment.paths.reference)

    reference: AbsorptionReference = kept(experiment.source, "absorption reference", make)
    return reference


def stability_reference(experiment: Experiment) -> StabilityReference:
    """The same words in many contexts, and consecutive tokens of the held-out text."""

    def make() -> StabilityReference:
        settings = experiment.profile.evaluation
        return build_stability_reference(
            language_model(experiment), absorption_reference(experiment), settings.absorption, settings.stability,
            _held_out(experiment), experiment.paths.reference,
        )  # fmt: skip

    reference: StabilityReference = kept(experiment.source, "stability reference", make)
    return reference


def probing_reference(experiment: Experiment) -> ProbingReference:
    """The texts of the probing tasks as the language model sees them."""

    def make() -> ProbingReference:
        profile = experiment.profile
        return build_probing_reference(
            language_model(experiment), profile.evaluation.probing, profile.corpus, experiment.paths.reference,
            experiment.corpus_cache,
        )  # fmt: skip

    reference: ProbingReference = kept(experiment.source, "probing reference", make)
    return reference


def _held_out(experiment: Experiment) -> Int[Tensor, "context position"]:
    return torch.from_numpy(np.array(load_tokens(experiment.paths.tokens, "held_out"), dtype=np.int64))
