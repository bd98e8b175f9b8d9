"""Stability along tokens: do activations go on from one token of a text to the next?"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.stored_reference import require_finite, require_width

MIN_DENSITY = 1e-3

_CHUNK_ELEMENTS = 2**22


class _PairSums(NamedTuple):
    """Sums over pairs of neighbouring tokens; `a` is the activation at the earlier token, `b` at the later one.

    Those per latent are of a, b, a^2, b^2, a b, and of a being on and b being on. A pair of zeros adds nothing to
    any, so only what is on is visited.
    """

    pairs: int
    both: int
    """Pairs and latents on at both tokens."""
    kept: float
    """Sum of |a| + |b| - |b - a|."""
    magnitude: float
    """Sum of |a| + |b|."""
    per_latent: Float[Tensor, "7 d_sae"]
    """In float64, on the CPU."""


@torch.no_grad()
def token_stability(
    sae: Autoencoder, rows: Float[Tensor, "row d_in"], has_predecessor: Bool[Tensor, " row"], seed: int = 0
) -> dict[str, float]:
    """How much latents change from one token to the next, and how far they are correlated.

    Over all pairs of neighbouring tokens (t - 1, t) of one context, with activations f of decoder rows of unit norm:

        token_change = mean |f_t,i - f_t-1,i| over pairs and latents i that are on at t - 1 or t
                       / mean of f_t-1,i and f_t,i where they are on

    The division takes the scale of the activations out: 0 where nothing changes, 1 where no latent stays on,
    below 2 always.

        token_autocorrelation = mean over latents of the Pearson correlation of f_t,i and f_t-1,i over pairs

    over latents whose density is `MIN_DENSITY` or more. Both again with all rows in a random order
    (`_shuffled`): what tokens from anywhere in the text give. A latent that marks a topic or a document
    is steady by both, one that marks a word is not, and neither is the better one.

    `rows`: residual streams in token order; `has_predecessor`: whether the row before is the token before, in the same
    context; never so of the first; `seed`: orders the shuffled rows.

    Returns token_change, token_change_shuffled, token_autocorrelation, token_autocorrelation_shuffled (NaN where there
    is no pair or no latent), token_latents, how many latents the correlations are over, and token_pairs.

    Raises ArtifactError: the SAE has another width than the rows, or gives NaN or infinite latents.
    """
    require_width(sae, rows.shape[1], "the rows have")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    observed = _pair_sums(sae, rows, has_predecessor)
    shuffled = _pair_sums(sae, rows[order.to(rows.device)], has_predecessor)
    frequent = observed.per_latent[5:].sum(dim=0) >= MIN_DENSITY * 2 * observed.pairs
    r, r_shuffled = (_correlation(sums)[frequent] for sums in (observed, shuffled))
    return {
        "token_change": _change(observed),
        "token_change_shuffled": _change(shuffled),
        "token_autocorrelation": r.nanmean().item(),
        "token_autocorrelation_shuffled": r_shuffled.nanmean().item(),
        "token_latents": int(r.isfinite().sum()),
        "token_pairs": observed.pairs,
    }


def _pair_sums(sae: Autoencoder, rows: Float[Tensor, "row d_in"], has_predecessor: Bool[Tensor, " row"]) -> _PairSums:
    norms = sae.W_dec.float().norm(dim=1)
    per_latent = torch.zeros(7, sae.d_sae, dtype=torch.float64, device=sae.device)
    both, kept, magnitude = 0, 0.0, 0.0

    def add(place: int, latent: Int[Tensor, " entry"], values: Float[Tensor, " entry"] | None = None) -> None:
        per_latent[place] += torch.bincount(latent, values, minlength=sae.d_sae)

    chunk = max(1, _CHUNK_ELEMENTS // sae.d_sae)
    for start in range(1, len(rows), chunk):
        # One row more in front, the predecessor of the first.
        f = sae.encode(rows[start - 1 : start + chunk].to(sae.device, sae.dtype)).float() * norms
        require_finite(f)
        later = F.pad(has_predecessor[start : start + chunk].to(sae.device), (1, 0))
        earlier = later.roll(-1)
        row, latent = f.nonzero(as_tuple=True)
        value = f[row, latent].double()
        for place, side in enumerate((earlier[row], later[row])):
            on, at = value[side], latent[side]
            add(place, at, on)
            add(2 + place, at, on * on)
            add(5 + place, at)
            magnitude += on.abs().sum().item()
        b, at = value[later[row]], latent[later[row]]
        a = f[row[later[row]] - 1, at].double()
        add(4, at, a * b)
        both += int((a != 0).sum())
        kept += (a.abs() + b.abs() - (b - a).abs()).sum().item()
    return _PairSums(int(has_predecessor[1:].sum()), both, kept, magnitude, per_latent.cpu())


def _change(sums: _PairSums) -> float:
    on = int(sums.per_latent[5:].sum())
    if not on:
        return math.nan
    return (sums.magnitude - sums.kept) / (on - sums.both) / (sums.magnitude / on)


def _correlation(sums: _PairSums) -> Float[Tensor, " d_sae"]:
    """Pearson correlation of each latent with itself one token later; NaN where one of the two never varies."""
    a, b, aa, bb, ab = sums.per_latent[:5] / max(sums.pairs, 1)
    variance_a, variance_b = aa - a * a, bb - b * b
    # What never varies has a variance of rounding size instead of 0.
    varies = (variance_a > 1e-12 * aa) & (variance_b > 1e-12 * bb)
    return torch.where(varies, (ab - a * b) / (variance_a * variance_b).clamp(min=1e-300).sqrt(), math.nan)
