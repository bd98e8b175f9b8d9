"""Which activations are the strongest: of each row (TopK), or of a whole batch (BatchTopK)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.active import LARGEST_SHARE, Entries, find_entries
from sae_lib.autoencoders.base import indicator
from sae_lib.autoencoders.latent_group import ALONE, LatentGroup

GROUP_SIZES = (1, 2, 4, 8)
GROUPS_FOR_EACH = 4  # groups for each of the k largest, at least
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
    """Where the positive ones of each row's k largest are; of equal values the first.

    The row is cut into more than k groups. The k-th largest of the groups' maxima has k values that are no smaller, so
    it is at most the k-th largest of all; and few others are above it, because two of the largest rarely share a group.
    """
    rows, n = pre.shape
    size = max(size for size in GROUP_SIZES if (n % size == 0 and n >= GROUPS_FOR_EACH * k * size) or size == 1)
    bound = kth_largest(pre.view(rows, size, n // size).amax(dim=1), k).clamp_min_(torch.finfo(pre.dtype).tiny)
    candidates = find_entries(np.greater_equal, pre, bound, share=1.0)
    assert candidates is not None
    width = int(candidates.row_starts.diff().max())
    if width <= k:
        return candidates
    values = pre.view(-1).index_select(0, candidates.flat)
    # All rows' candidates side by side; a row with fewer than k keeps all it has.
    table = values.new_zeros(rows, width)
    shift = candidates.of_row(torch.arange(rows) * width - candidates.row_starts[:-1])
    table.view(-1)[torch.arange(len(values)) + shift] = values
    smallest = candidates.of_row(kth_largest(table, k).squeeze(1))
    kept = candidates.where(values >= smallest)
    if int(kept.row_starts.diff().max()) <= k:
        return kept
    return candidates.where(_with_first_equal(values > smallest, values == smallest, candidates, k))


def _with_first_equal(
    above: Bool[Tensor, " n"], equal: Bool[Tensor, " n"], entries: Entries, k: int
) -> Bool[Tensor, " n"]:
    """`above`, and of each row as many of the first that are `equal` as make k together."""
    before = functional.pad(torch.stack([above, equal]).cumsum(dim=1), (1, 0))
    of_rows = before[:, entries.row_starts]
    number = before[1, 1:] - entries.of_row(of_rows[1, :-1])
    return above | equal & (number <= entries.of_row(k - of_rows[0].diff()))


def strongest_of_batch(
    pre: Float[Tensor, "batch d_sae"], count: int, guess: float
) -> tuple[Entries | None, Float[Tensor, ""]]:
    """Where the positive ones of the batch's `count` largest are, and the smallest of those. The guess of the smallest
    changes the time it takes and nothing else. Where several equal the smallest, all of them are kept. None for the
    entries where they are many.
    """
    tiny = torch.finfo(pre.dtype).tiny
    candidates = find_entries(np.greater, pre, guess, CANDIDATES * LARGEST_SHARE) if guess else None
    if candidates is None or len(candidates.flat) < count:
        smallest = kth_largest(pre.flatten(), count).squeeze().clamp_min(tiny)
        return find_entries(np.greater_equal, pre, smallest), smallest
    values = pre.view(-1).index_select(0, candidates.flat)
    smallest = kth_largest(values, count).squeeze().clamp_min(tiny)
    return candidates.where(values >= smallest), smallest
