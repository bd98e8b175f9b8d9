"""How well an SAE reconstructs the residual stream, and how much of the language model's behaviour survives.

Special positions (BOS, EOS, padding) stay in the forward pass and out of every mean: no SAE is trained on
them, and BOS alone has a norm that would drown all other tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.core_reference import CoreReference, build_core_reference, losses
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register
from sae_lib.metrics.statistics import ReconstructionSums
from sae_lib.metrics.stored_reference import require_width
from sae_lib.util.strict import Strict

__all__ = ["CoreReference", "build_core_reference", "evaluate_reconstruction"]

DENSITY_BINS = np.linspace(-6.0, 0.0, 31)  # log10 of the firing rate


class ReconstructionConfig(Strict):
    """How the held-out text is read."""

    batch_contexts: int = Field(16, ge=1)
    """Contexts in one forward pass."""


@torch.no_grad()
def evaluate_reconstruction(
    sae: Autoencoder, lm: LanguageModel, reference: CoreReference, batch: int = 16
) -> tuple[dict[str, float], Float[Tensor, " d_sae"]]:
    """Reconstruction, sparsity and behaviour of an SAE on the reference's contexts.

    The reconstruction replaces the residual stream at the positions that are not special, and there only.

    Returns:
        A dictionary with l0, l1, mse, cosine, explained_variance, dead_fraction (`ReconstructionSums`),
        ce_clean, ce_zero, ce_mean, ce_sae, kl_zero, kl_sae (nats per token),
        ce_score = (ce_zero - ce_sae) / (ce_zero - ce_clean) and kl_score = (kl_zero - kl_sae) / kl_zero (1:
        nothing lost, 0: as bad as zeros; NaN where zeros change nothing), ce_score_mean (ce_score with ce_mean
        for ce_zero: 0 is as bad as the residual stream's mean, a harder start than zeros), tokens; and the
        density of each latent.

    Raises:
        ArtifactError: the SAE has another width than the residual stream.
    """
    require_width(sae, lm.d_in, "the language model's residual stream has")
    splice = _Reconstruct(sae)
    sums = losses(lm, reference, splice, batch)
    ce_sae, kl_sae = sums.ce, sums.kl
    metrics = {
        **splice.sums.metrics(reference.variance),
        "ce_clean": reference.ce_clean,
        "ce_zero": reference.ce_zero,
        "ce_mean": reference.ce_mean,
        "ce_sae": ce_sae,
        "ce_score": _ratio(reference.ce_zero - ce_sae, reference.ce_zero - reference.ce_clean),
        "ce_score_mean": _ratio(reference.ce_mean - ce_sae, reference.ce_mean - reference.ce_clean),
        "kl_zero": reference.kl_zero,
        "kl_sae": kl_sae,
        "kl_score": _ratio(reference.kl_zero - kl_sae, reference.kl_zero),
        "tokens": float(splice.sums.rows),
    }
    return metrics, splice.sums.density()


class _Reconstruct:
    """Puts an SAE's reconstruction in place where the mask is true, and adds up what it sees on the way."""

    def __init__(self, sae: Autoencoder) -> None:
        self.sae = sae
        self.sums = ReconstructionSums(sae.d_sae, sae.device)

    def __call__(
        self, residual: Float[Tensor, "context position d_in"], mask: Bool[Tensor, "context position"]
    ) -> Float[Tensor, "context position d_in"]:
        rows = residual[mask].to(self.sae.device)
        f = self.sae.encode(rows.to(self.sae.dtype))
        x_hat = self.sae.decode(f)
        self.sums.add(rows, f, x_hat)
        spliced = residual.clone()
        spliced[mask] = x_hat.to(residual.device, residual.dtype)
        return spliced


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def density_table(density: Float[Tensor, " d_sae"]) -> pd.DataFrame:
    """How many latents fire at which rate: `count` in bins of log10 of the rate, by their left edges."""
    # Clipped after the logarithm: a rate of 1e-6 in single precision lies just outside the first bin.
    rates = np.log10(density.double().numpy().clip(min=1e-12)).clip(DENSITY_BINS[0], DENSITY_BINS[-1])
    return pd.DataFrame({"log10_rate_left": DENSITY_BINS[:-1], "count": np.histogram(rates, bins=DENSITY_BINS)[0]})


def _reference(inputs: Inputs) -> CoreReference:
    batch = inputs.settings("reconstruction").batch_contexts
    return build_core_reference(inputs.lm, inputs.held_out, batch, inputs.folder)


def _evaluate(saes: Sequence[Autoencoder], inputs: Inputs, earlier: Sequence[Earlier]) -> list[Measured]:
    batch, measured = inputs.settings("reconstruction").batch_contexts, []
    for sae in saes:
        summary, density = evaluate_reconstruction(sae, inputs.lm, inputs.reference("reconstruction"), batch)
        variance = summary["explained_variance"]
        # A reconstruction worse than a constant is a mistake in the set-up far more often than a bad SAE.
        note = (
            f"explained variance {variance:.2f}, worse than predicting the mean; check that model, layer and "
            "normalisation are those that the SAE was trained with"
        )
        notes = (note,) if variance < 0 else ()
        measured.append(Measured(summary, {"density": density_table(density)}, density=density, notes=notes))
    return measured


register(
    Score(
        name="reconstruction",
        version=2,
        settings=ReconstructionConfig,
        reference=_reference,
        evaluate=_evaluate,
        columns={
            "l0": Column("L0", "none", 1, quality=True),
            "l1": Column("L1", "none", 1, quality=True),
            "explained_variance": Column("explained variance", "higher", 3, quality=True),
            "cosine": Column("cosine", "higher", 3, quality=True),
            "mse": Column("MSE", "lower", 4, quality=True),
            "ce_score": Column("CE score", "higher", 3, quality=True),
            "ce_score_mean": Column("CE score, mean", "higher", 3, quality=True),
            "kl_score": Column("KL score", "higher", 3, quality=True),
            "kl_sae": Column("KL", "lower", 3, quality=True),
            "dead_fraction": Column("dead share", "lower", 3, quality=True),
        },
    )
)
