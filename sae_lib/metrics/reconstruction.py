"""How well an SAE reconstructs the residual stream, and how much of the language model's behaviour survives.

Special positions (BOS, EOS, padding) stay in the forward pass and out of every mean: no SAE is trained on
them, and BOS alone has a norm that would drown all other tokens.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.core_reference import CoreReference, build_core_reference, losses
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register
from sae_lib.metrics.stored_reference import require_width
from sae_lib.util.strict import Strict

ROWS = 4096  # encoded at a time without a language model
DENSITY_BINS = np.linspace(-6.0, 0.0, 31)  # log10 of the firing rate


class ReconstructionConfig(Strict):
    batch_contexts: int = Field(16, ge=1)
    """Contexts in one forward pass."""


class ReconstructionSums:
    """An SAE on rows of activations x, with latents f and reconstructions x_hat: running sums in float64 of what is
    computed in float32 or better, whatever the type of the rows.

    - l0 = mean number of f_i != 0; l1 = mean of sum_i f_i
    - mse = mean over rows and over d_in of (x - x_hat)^2
    - cosine = mean of cos(x, x_hat), 0 where x_hat = 0
    - density_i = share of rows with f_i != 0; dead_fraction = share of latents with density 0
    """

    def __init__(self, sae: Autoencoder) -> None:
        self.sae, self.rows = sae, 0
        self.squared_error, self.l1, self.cosine = torch.zeros(3, dtype=torch.float64, device=sae.device)
        self.on = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)

    def reconstruct(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """Reconstruct rows on the SAE's device, and add them up."""
        f = self.sae.encode(x.to(self.sae.dtype))
        x_hat = self.sae.decode(f)
        self.rows += len(x)
        self.squared_error += (x.float() - x_hat.float()).pow(2).sum(dtype=torch.float64)
        self.l1 += f.float().sum(dtype=torch.float64)
        self.cosine += F.cosine_similarity(x.float(), x_hat.float(), dim=1).sum(dtype=torch.float64)
        self.on += (f != 0).sum(dim=0)
        return x_hat

    def splice(self, residual: Float[Tensor, "row d_in"], kept: Int[Tensor, " kept"]) -> Float[Tensor, "row d_in"]:
        """The residual stream with its reconstruction in the rows `kept`."""
        x_hat = self.reconstruct(residual.index_select(0, kept).to(self.sae.device))
        return residual.index_copy(0, kept, x_hat.to(residual.device, residual.dtype))

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of rows on which each latent is on, on the CPU."""
        return (self.on.double() / self.rows).float().cpu()

    def metrics(self, variance: float) -> dict[str, float]:
        """l0, l1, mse, cosine, dead_fraction, and with `variance` the mean of ||x - mean(x)||^2 over the rows

            explained_variance = 1 - mean ||x - x_hat||^2 / variance

        which is centred: predicting the mean gives 0. SAEBench 0.6.0 divides by S - (S / d)^2 instead, with
        S = mean ||x||^2, which is no variance.
        """
        error = self.squared_error.item() / self.rows
        return {
            "l0": int(self.on.sum()) / self.rows,
            "l1": self.l1.item() / self.rows,
            "mse": error / self.sae.d_in,
            "cosine": self.cosine.item() / self.rows,
            "explained_variance": 1 - error / variance if variance else math.nan,
            "dead_fraction": (self.on == 0).double().mean().item(),
        }


@torch.no_grad()
def reconstruction_statistics(
    sae: Autoencoder, activations: Float[Tensor, "row d_in"]
) -> tuple[dict[str, float], Float[Tensor, " d_sae"]]:
    """`ReconstructionSums.metrics` of activations, without a language model, and the density of each latent."""
    sums = ReconstructionSums(sae)
    for rows in activations.split(ROWS):
        sums.reconstruct(rows.to(sae.device))
    exact = activations.double()
    return sums.metrics((exact - exact.mean(dim=0)).pow(2).sum(dim=1).mean().item()), sums.density()


@torch.no_grad()
def evaluate_reconstruction(
    sae: Autoencoder, lm: LanguageModel, reference: CoreReference, batch: int = 16
) -> tuple[dict[str, float], Float[Tensor, " d_sae"]]:
    """Reconstruction, sparsity and behaviour of an SAE on the reference's contexts, and the density of each latent.

    The reconstruction replaces the residual stream at the positions that are not special, and there only. The numbers
    are those of `ReconstructionSums`; ce_clean, ce_zero, ce_mean, ce_sae, kl_zero, kl_sae (nats per token);

        ce_score = (ce_zero - ce_sae) / (ce_zero - ce_clean),    kl_score = (kl_zero - kl_sae) / kl_zero

    (1: nothing lost, 0: as bad as zeros; NaN where zeros change nothing); ce_score_mean, with ce_mean for ce_zero, a
    harder start; tokens.

    Raises ArtifactError: the SAE has another width than the residual stream.
    """
    require_width(sae, lm.d_in, "the language model's residual stream has")
    seen = ReconstructionSums(sae)
    ce, kl = losses(lm, reference, seen.splice, batch)
    clean, zero, mean = reference.ce_clean, reference.ce_zero, reference.ce_mean

    def share(lost: float, start: float, end: float) -> float:
        return (start - lost) / (start - end) if start - end else math.nan

    metrics = seen.metrics(reference.variance) | {
        "ce_clean": clean,
        "ce_zero": zero,
        "ce_mean": mean,
        "ce_sae": ce,
        "ce_score": share(ce, zero, clean),
        "ce_score_mean": share(ce, mean, clean),
        "kl_zero": reference.kl_zero,
        "kl_sae": kl,
        "kl_score": share(kl, reference.kl_zero, 0.0),
        "tokens": float(seen.rows),
    }
    return metrics, seen.density()


def density_table(density: Float[Tensor, " d_sae"]) -> pd.DataFrame:
    """How many latents fire at which rate: `count` in bins of log10 of the rate, by their left edges."""
    # Clipped after the logarithm: a rate of 1e-6 in single precision lies just outside the first bin.
    rates = np.log10(density.double().numpy().clip(min=1e-12)).clip(DENSITY_BINS[0], DENSITY_BINS[-1])
    return pd.DataFrame({"log10_rate_left": DENSITY_BINS[:-1], "count": np.histogram(rates, bins=DENSITY_BINS)[0]})


def _evaluate(saes: Sequence[Autoencoder], inputs: Inputs, earlier: Sequence[Earlier]) -> list[Measured]:
    batch, measured = inputs.settings("reconstruction").batch_contexts, []
    for sae in saes:
        summary, density = evaluate_reconstruction(sae, inputs.lm, inputs.reference("reconstruction"), batch)
        told = (
            f"explained variance {summary['explained_variance']:.2f}, worse than predicting the mean; check that "
            "model, layer and normalisation are those that the SAE was trained with"
        )
        notes = (told,) if summary["explained_variance"] < 0 else ()
        measured.append(Measured(summary, {"density": density_table(density)}, density=density, notes=notes))
    return measured


register(
    Score(
        name="reconstruction",
        version=2,
        settings=ReconstructionConfig,
        reference=lambda inputs: build_core_reference(
            inputs.lm, inputs.held_out, inputs.settings("reconstruction").batch_contexts, inputs.folder
        ),
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
