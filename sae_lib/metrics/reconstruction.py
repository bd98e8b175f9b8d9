"""How well an SAE reconstructs the residual stream, and how much of the language model's behaviour survives.

Special positions (BOS, EOS, padding) stay in the forward pass and out of every mean: no SAE is trained on
them, and BOS alone has a norm that would drown all other tokens.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.core_reference import CoreReference, build_core_reference, losses
from sae_lib.metrics.statistics import ReconstructionSums
from sae_lib.metrics.stored_reference import require_width

__all__ = ["CoreReference", "build_core_reference", "evaluate_reconstruction"]


@torch.no_grad()
def evaluate_reconstruction(
    sae: Autoencoder, lm: LanguageModel, reference: CoreReference, batch: int = 16
) -> tuple[dict[str, float], Float[Tensor, " d_sae"]]:
    """Reconstruction, sparsity and behaviour of an SAE on the reference's contexts.

    The reconstruction replaces the residual stream at the positions that are not special, and there only.

    Returns:
        A dictionary with l0, l1, mse, cosine, explained_variance, dead_fraction (`ReconstructionSums`),
        ce_clean, ce_zero, ce_sae, kl_zero, kl_sae (nats per token),
        ce_score = (ce_zero - ce_sae) / (ce_zero - ce_clean) and kl_score = (kl_zero - kl_sae) / kl_zero (1:
        nothing lost, 0: as bad as zeros; NaN where zeros change nothing), tokens; and the density of each
        latent.

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
        "ce_sae": ce_sae,
        "ce_score": _ratio(reference.ce_zero - ce_sae, reference.ce_zero - reference.ce_clean),
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
