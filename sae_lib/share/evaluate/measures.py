"""The metrics of an evaluation, each from an SAE and the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.probing.score import evaluate_probing
from sae_lib.metrics.reconstruction import evaluate_reconstruction
from sae_lib.metrics.stability.contexts import context_stability
from sae_lib.metrics.stability.tokens import token_stability
from sae_lib.share.evaluate.inputs import Inputs


@dataclass(frozen=True)
class Measured:
    """One metric: its numbers by name, a table behind them, and what to know before they are believed."""

    summary: dict[str, Any]
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    density: Float[Tensor, " d_sae"] | None = None
    notes: list[str] = field(default_factory=list)


def core(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.reconstruction.evaluate_reconstruction`, and the density of each latent.

    A reconstruction worse than a constant is a mistake in the set-up far more often than a bad SAE: a note says so.
    """
    notes = list(inputs.text_notes)
    summary, density = evaluate_reconstruction(sae, inputs.lm, inputs.core, inputs.settings.batch_contexts)
    if summary["explained_variance"] < 0:
        notes.append(
            f"explained variance {summary['explained_variance']:.2f}, worse than predicting the mean; check that "
            "model, layer and normalisation are those that the SAE was trained with"
        )
    return Measured(summary, density=density, notes=notes)


def absorption(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.absorption.score.evaluate_absorption`; the table has one row for each letter that counts."""
    result = evaluate_absorption(sae, inputs.absorption, inputs.settings.absorption)
    return Measured(result.summary, result.letters, notes=list(result.notes))


def probing(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.probing.score.evaluate_probing`; the table has one row for each task."""
    result = evaluate_probing(sae, inputs.probing, inputs.settings.probing)
    return Measured(result.summary, result.tasks)


def stability(sae: Autoencoder, inputs: Inputs) -> Measured:
    """`metrics.stability`: along the tokens of the held-out text, and across the contexts of absorption's words."""
    of_letter = evaluate_absorption(sae, inputs.absorption, inputs.settings.absorption).main_latents
    words = inputs.stability
    along = token_stability(sae, words.text_activations.to(sae.device), words.has_predecessor.to(sae.device))
    return Measured(along | context_stability(sae, words, of_letter))


MEASURES: dict[str, Callable[[Autoencoder, Inputs], Measured]] = {
    "core": core,
    "absorption": absorption,
    "probing": probing,
    "stability": stability,
}
