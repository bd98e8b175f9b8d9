"""Which activations are the strongest: of each row (TopK), or of a whole batch (BatchTopK)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.active import Entries, find_entries
from sae_lib.autoencoders.base import indicator
from sae_lib.autoencoders.latent_group import ALONE, LatentGroup

# What will be strong enough is guessed from the step before, so that most rows have their k above it and few others.
GUESS_QUANTILE = 0.02
GUESS_FACTOR = 0.95
CANDIDATES = 3  # times k: more of them in a row are rare


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


def strongest_of_rows(
    pre: Float[Tensor, "batch d_sae"], k: int, guess: float, size: Float[Tensor, " batch"]
) -> tuple[Entries | None, float]:
    """Where the positive ones of each row's k largest are, and the next guess. The guess, in units of the `size` of a
    row (its input's norm), changes the time it takes and nothing else. None for the entries where they are many, or
    where equal values make it more than k.
    """
    tiny = torch.finfo(pre.dtype).tiny
    candidates = find_entries(pre > guess * size[:, None], CANDIDATES) if guess else None
    if candidates is None:
        least = kth_largest(pre, k).clamp_min_(tiny)
        entries = find_entries(pre >= least)
    else:
        values = pre.view(-1).index_select(0, candidates.flat)
        least, odd = _kth_of_rows(values, candidates, k)
        least[odd] = kth_largest(pre[odd], k)
        least.clamp_min_(tiny)
        kept = candidates.flat.numpy()[(values >= least.view(-1).index_select(0, candidates.row)).numpy()]
        entries = Entries(_with_rows(kept, odd, pre[odd] >= least[odd]), (pre.shape[0], pre.shape[1]))
    if entries is not None and int(entries.row_starts.diff().max()) > k:
        entries = None
    return entries, GUESS_FACTOR * float((least.squeeze(1) / size.clamp_min(tiny)).quantile(GUESS_QUANTILE))


def strongest_of_batch(
    pre: Float[Tensor, "batch d_sae"], count: int, guess: float
) -> tuple[Entries | None, Float[Tensor, ""]]:
    """Where the positive ones of the batch's `count` largest are, and the smallest of those. `guess` is as above; where
    several equal the smallest, all of them are kept. None for the entries where they are many.
    """
    candidates = find_entries(pre > guess, CANDIDATES) if guess else None
    if candidates is None or len(candidates.flat) < count:
        smallest = kth_largest(pre.flatten(), count).squeeze().clamp_min(torch.finfo(pre.dtype).tiny)
        return find_entries(pre >= smallest), smallest
    values = pre.view(-1).index_select(0, candidates.flat)
    smallest = kth_largest(values, count).squeeze().clamp_min(torch.finfo(pre.dtype).tiny)
    return Entries(candidates.flat.numpy()[(values >= smallest).numpy()], candidates.shape), smallest


def _kth_of_rows(
    values: Float[Tensor, " n"], entries: Entries, k: int
) -> tuple[Float[Tensor, "batch 1"], Int[Tensor, " odd"]]:
    """The k-th largest value of each row, and the rows where it is not: those with fewer than k entries, and those with
    so many that all other rows would have to be looked at as widely.
    """
    rows, width = entries.shape[0], CANDIDATES * k
    place = torch.arange(len(values)) - entries.row_starts.index_select(0, entries.row)
    fits = (place < width).numpy()
    table = values.new_full((rows * width,), -torch.inf)
    where = (entries.row * width + place).numpy()[fits]
    table[torch.from_numpy(where)] = torch.from_numpy(values.numpy()[fits])
    counts = entries.row_starts.diff()
    odd = ((counts < k) | (counts > width)).nonzero().squeeze(1)
    return kth_largest(table.view(rows, width), k), odd


def _with_rows(
    flat: Int[np.ndarray, " n"], rows: Int[Tensor, " r"], active: Bool[Tensor, "r d_sae"]
) -> Int[np.ndarray, " m"]:
    """The places `flat`, those of some rows replaced by where `active` is true."""
    if not len(rows):
        return flat
    n = active.shape[1]
    others = flat[~np.isin(flat // n, rows.numpy())]
    row, latent = np.nonzero(active.numpy())
    return np.sort(np.concatenate([others, rows.numpy()[row] * n + latent]))
