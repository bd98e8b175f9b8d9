"""How well an SAE reconstructs the residual stream, and how much of the language model's behaviour survives.

Special positions (BOS, EOS, padding) stay in the forward pass and out of every mean: no SAE is trained on
them, and BOS alone has a norm that would drown all other tokens.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.errors import ArtifactError
from sae_lib.language_model import LanguageModel
from sae_lib.metrics.statistics import ReconstructionSums

# Log-probabilities are computed for so many numbers at a time: what a core's cache holds, or 64 rows of a
# vocabulary of 256,000 on a GPU.
_CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


@dataclass(frozen=True)
class CoreReference:
    """Held-out contexts and what they give without any SAE. Losses are in nats per token.

    CE is the loss of predicting the next token, averaged over positions whose own token is not special; KL is
    KL(clean || changed) of the next-token distribution, over the same positions and the last one.
    """

    tokens: Int[Tensor, "context position"]
    kept: Bool[Tensor, "context position"]
    """Positions that are not special."""
    mean: Float[Tensor, " d_in"]
    """Mean of the residual stream over the kept positions, float64, on the CPU."""
    variance: float
    """Mean of ||x - mean||^2 over the kept positions."""
    ce_clean: float
    ce_zero: float
    """CE with the residual stream set to zero at the kept positions."""
    kl_zero: float


@torch.no_grad()
def build_core_reference(lm: LanguageModel, tokens: Int[Tensor, "context position"], batch: int = 16) -> CoreReference:
    """Clean and zero-ablated losses and the residual stream's moments on held-out contexts.

    The zero-ablation replaces the same positions as an SAE's reconstruction does, so an SAE that outputs
    zeros scores exactly 0. (SAEBench sets special positions to zero as well, in this run only.)

    Args:
        tokens: contexts with BOS in front; kept on the CPU.
        batch: contexts in one forward pass; the logits of so many are held at a time.

    Raises:
        ArtifactError: every position is special, or none is followed by another.
    """
    tokens = tokens.cpu().long()
    kept = ~torch.isin(tokens, torch.tensor(sorted(lm.special_ids)))
    if not kept[:, :-1].any():
        raise ArtifactError("corpus: the held-out contexts hold special tokens only; give it more text")
    moments, losses = _Moments(lm.d_in), _LossSums()
    for part, mask in zip(tokens.split(batch), kept.split(batch), strict=True):
        moments.mask = mask
        losses.add(lm.logits(part, moments), lm.logits(part, _Zero(mask)), part, mask)
    mean = moments.total / kept.sum()
    return CoreReference(
        tokens=tokens,
        kept=kept,
        mean=mean,
        variance=moments.squares / int(kept.sum()) - mean.pow(2).sum().item(),
        ce_clean=losses.ce_clean / losses.predictions,
        ce_zero=losses.ce_changed / losses.predictions,
        kl_zero=losses.kl / losses.positions,
    )


@torch.no_grad()
def evaluate_reconstruction(
    sae: Autoencoder, lm: LanguageModel, reference: CoreReference, batch: int = 16
) -> tuple[dict[str, float], Float[Tensor, " d_sae"]]:
    """Reconstruction, sparsity and behaviour of an SAE on the reference's contexts.

    The reconstruction replaces the residual stream at the positions that are not special, and there only.
    Clean logits are computed again for each batch: those of a whole corpus would not fit.

    Returns:
        A dictionary with l0, l1, mse, cosine, explained_variance, dead_fraction (`ReconstructionSums`),
        ce_clean, ce_zero, ce_sae, kl_zero, kl_sae (nats per token),
        ce_score = (ce_zero - ce_sae) / (ce_zero - ce_clean) and kl_score = (kl_zero - kl_sae) / kl_zero (1:
        nothing lost, 0: as bad as zeros; NaN where zeros change nothing), tokens; and the density of each
        latent.

    Raises:
        ArtifactError: the SAE has another width than the residual stream.
    """
    if sae.d_in != lm.d_in:
        raise ArtifactError(
            f"sae: d_in is {sae.d_in}, the language model's residual stream has {lm.d_in}; "
            "evaluate it on the model and layer it was trained on"
        )
    splice = _Reconstruct(sae)
    losses = _LossSums()
    for part, mask in zip(reference.tokens.split(batch), reference.kept.split(batch), strict=True):
        splice.mask = mask
        losses.add(lm.logits(part), lm.logits(part, splice), part, mask)
    ce_sae, kl_sae = losses.ce_changed / losses.predictions, losses.kl / losses.positions
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


class _Zero:
    """Sets the residual stream to zero where the mask is true."""

    def __init__(self, mask: Bool[Tensor, "context position"]) -> None:
        self.mask = mask

    def __call__(self, residual: Tensor) -> Tensor:
        return residual.masked_fill(self.mask.to(residual.device)[..., None], 0)


class _Reconstruct:
    """Puts an SAE's reconstruction in place where the mask is true, and adds up what it sees on the way."""

    def __init__(self, sae: Autoencoder) -> None:
        self.sae = sae
        self.sums = ReconstructionSums(sae.d_sae, sae.device)
        self.mask = torch.zeros(0, 0, dtype=torch.bool)

    def __call__(self, residual: Tensor) -> Tensor:
        mask = self.mask.to(residual.device)
        rows = residual[mask].to(self.sae.device)
        f = self.sae.encode(rows.to(self.sae.dtype))
        x_hat = self.sae.decode(f)
        self.sums.add(rows, f, x_hat)
        spliced = residual.clone()
        spliced[mask] = x_hat.to(residual.device, residual.dtype)
        return spliced


class _Moments:
    """Leaves the residual stream as it is and adds up its first two moments where the mask is true, in
    float64."""

    def __init__(self, d_in: int) -> None:
        self.total = torch.zeros(d_in, dtype=torch.float64)
        self.squares = 0.0
        self.mask = torch.zeros(0, 0, dtype=torch.bool)

    def __call__(self, residual: Tensor) -> Tensor:
        rows = residual[self.mask.to(residual.device)].double()
        self.total += rows.sum(dim=0).cpu()
        self.squares += rows.pow(2).sum().item()
        return residual


class _LossSums:
    """Sums of CE and KL over kept positions, from logits, a chunk of positions at a time."""

    def __init__(self) -> None:
        self.ce_clean = self.ce_changed = self.kl = 0.0
        self.predictions = self.positions = 0

    def add(
        self,
        clean: Float[Tensor, "context position vocab"],
        changed: Float[Tensor, "context position vocab"],
        tokens: Int[Tensor, "context position"],
        kept: Bool[Tensor, "context position"],
    ) -> None:
        """Add a batch. A context's last position has no next token: it counts for KL and not for CE."""
        following = F.pad(tokens[:, 1:], (0, 1), value=-1)[kept].to(clean.device)
        where = kept.flatten().nonzero().flatten().to(clean.device)
        clean, changed = clean.flatten(0, 1), changed.flatten(0, 1)
        rows = max(1, _CHUNK_ELEMENTS[clean.device.type] // clean.shape[1])
        sums = torch.zeros(3, dtype=torch.float64, device=clean.device)
        for index, target in zip(where.split(rows), following.split(rows), strict=True):
            log_p = clean[index].float().log_softmax(dim=1)
            log_q = changed[index].float().log_softmax(dim=1)
            token, has_next = target.clamp(min=0)[:, None], (target >= 0)[:, None]
            sums[0] -= (log_p.gather(1, token) * has_next).sum(dtype=torch.float64)
            sums[1] -= (log_q.gather(1, token) * has_next).sum(dtype=torch.float64)
            sums[2] += (log_p.exp() * (log_p - log_q)).sum(dim=1).sum(dtype=torch.float64)
        ce_clean, ce_changed, kl = sums.tolist()
        self.ce_clean += ce_clean
        self.ce_changed += ce_changed
        self.kl += kl
        self.predictions += int((following >= 0).sum())
        self.positions += len(following)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
