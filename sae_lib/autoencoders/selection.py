"""Which activations are the strongest: of each row (TopK), or of a whole batch (BatchTopK)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders import kernels
from sae_lib.autoencoders.active import LARGEST_SHARE, Entries, entries_above
from sae_lib.autoencoders.base import indicator
from sae_lib.autoencoders.latent_group import ALONE, LatentGroup

# BatchTopK guesses from the step before what will be strong enough, so that few others are above it.
GUESS_FACTOR = 0.95
CANDIDATES = 3  # times what is kept at most: above it sorting all is faster


def kth_largest(values: Float[Tensor, "*rows n"], k: int) -> Float[Tensor, "*rows 1"]:
    """The k-th largest value of each row."""
    if values.device.type == "cpu":
        # numpy's vectorised quickselect is about ten times faster than torch.topk on a CPU.
        place = values.shape[-1] - k
        found = np.partition(values.float().numpy(), place, axis=-1)[..., place : place + 1]
        return torch.from_numpy(found.copy()).to(values.dtype)
    return values.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)


def strong_everywhere(
    values: Float[Tensor, "*rows n"], k: int, group: LatentGroup
) -> Float[Tensor, "*rows candidates"]:
    """Of each row, values among which are the k largest of all pieces: k of each piece, -inf where it has fewer."""
    if group.world == 1:
        return values
    mine = values.topk(min(k, values.shape[-1]), dim=-1).values
    return group.whole(functional.pad(mine, (0, k - mine.shape[-1]), value=-torch.inf), dim=-1)


def strongest(
    pre: Float[Tensor, "*batch latents"], k: int, group: LatentGroup = ALONE
) -> Float[Tensor, "*batch latents"]:
    """ReLU(pre), with all but the k largest of each row (those of all pieces) set to zero."""
    if group.world > 1:
        # One choice for all pieces: equal values at the border are kept by some of them, the same in every process.
        everywhere = strong_everywhere(torch.relu(pre.detach()), k, group)
        chosen = torch.zeros_like(everywhere).scatter_(-1, everywhere.topk(k, dim=-1).indices, 1.0)
        values, indices = torch.relu(pre).topk(min(k, pre.shape[-1]), dim=-1)
        mine = chosen[..., group.rank * k :][..., : values.shape[-1]]
        return torch.zeros_like(pre).scatter(-1, indices, values * mine)
    if pre.device.type == "cpu":
        least = kth_largest(pre.detach(), k).clamp_min(torch.finfo(pre.dtype).tiny)
        kept = indicator(torch.ge, pre, least)
        if (kept.sum(dim=-1) <= k).all():
            return pre * kept
    # On a GPU, and where equal values make it more than k.
    values, indices = torch.relu(pre).topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def strongest_of_rows(pre: Float[Tensor, "batch d_sae"], k: int) -> Entries:
    """Where the positive ones of each row's k largest are; of equal values the first."""
    return Entries(*kernels.strongest_of_rows(pre.numpy(), k), pre.shape[1])


def strongest_of_batch(
    pre: Float[Tensor, "batch d_sae"], count: int, guess: float
) -> tuple[Entries | None, Float[Tensor, ""]]:
    """Where the positive ones of the batch's `count` largest are, and the smallest of those. The guess of the smallest
    changes the time it takes and nothing else. Where several equal the smallest, all of them are kept. None for the
    entries where they are many.
    """
    tiny = torch.finfo(pre.dtype).tiny
    candidates = entries_above(pre, guess, CANDIDATES * LARGEST_SHARE) if guess else None
    if candidates is None or len(candidates.found) < count:
        smallest = kth_largest(pre.flatten(), count).squeeze().clamp_min(tiny)
        return entries_above(pre, float(np.nextafter(smallest.numpy(), np.float32(0)))), smallest
    smallest = kth_largest(candidates.found, count).squeeze().clamp_min(tiny)
    return candidates.where(candidates.found >= smallest), smallest
