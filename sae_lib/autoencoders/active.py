"""Latents held by their entries that are not zero: a product and its gradients then cost what is active.

With L0 at a hundredth of d_sae, four of a step's five matrix products shrink to almost nothing; what stays is the
encoder's. On a GPU the dense products are faster, so this is for CPUs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.latents import Latents

LARGEST_SHARE = 1 / 10  # of the entries; above it the dense products are faster
SMALLEST_BATCH = 2**16  # entries; below it finding what is active costs more than it saves


class Entries:
    """Places in a matrix `[batch, d_sae]`, row by row and, within a row, by latent."""

    def __init__(self, flat: Int[np.ndarray, " n"], shape: tuple[int, int]) -> None:
        self.shape = shape
        self.flat = torch.from_numpy(flat)
        """row * d_sae + latent, ascending."""
        self.row_starts = torch.from_numpy(np.searchsorted(flat, np.arange(shape[0] + 1) * shape[1]))

    @cached_property
    def latent(self) -> Int[Tensor, " n"]:
        return self.flat.remainder(self.shape[1])

    @cached_property
    def row(self) -> Int[Tensor, " n"]:
        return torch.repeat_interleave(self.row_starts.diff())

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " latents_and_1"]]:
        """The entries' order by latent (and row), their rows in that order, and where each latent's begin."""
        numbers = np.arange(len(self.flat), dtype=np.int32)
        columns, starts = self.latent.numpy().astype(np.int32), self.row_starts.numpy().astype(np.int32)
        # SciPy's change of format is a counting sort.
        by_latent = csr_array((numbers, columns, starts), shape=self.shape).tocsc()
        order, row, starts = by_latent.data, by_latent.indices, by_latent.indptr
        return torch.from_numpy(order), torch.from_numpy(row), torch.from_numpy(starts)

    def sum_by_latent(self, values: Float[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        """The sum of each latent's `values`."""
        order, _, starts = self.by_latent
        return _sum_bags(order, values[:, None], starts).squeeze(1)

    def weighted_rows(
        self, rows: Float[Tensor, "rows d_in"], values: Float[Tensor, " n"], row: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "d_sae d_in"]:
        """For each latent the sum of `values` times the row of each of its entries (or `row`): f^T rows."""
        order, own, starts = self.by_latent
        row = own if row is None else row.index_select(0, order).to(own.dtype)
        return _sum_bags(row, rows, starts, values.index_select(0, order))


def find_entries(active: Bool[Tensor, "batch d_sae"], most: float = 1.0) -> Entries | None:
    """Where `active` is true; None where so many are that dense products are faster. `most` is a factor on how many."""
    flags = active.numpy()
    if np.count_nonzero(flags) > most * LARGEST_SHARE * flags.size:
        return None
    return Entries(np.flatnonzero(flags), (active.shape[0], active.shape[1]))


def worthwhile(x: Float[Tensor, "batch d_in"], d_sae: int, k: int | None = None) -> bool:
    """Whether to look for entries at all; `k` is how many a row will have, where that is known."""
    few = k is None or k <= LARGEST_SHARE * d_sae
    return few and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and len(x) * d_sae >= SMALLEST_BATCH


def encode_entries(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    bias: Float[Tensor, " d_sae"],
    pre: Float[Tensor, "batch d_sae"],
    entries: Entries,
) -> Float[Tensor, " n"]:
    """x W_enc + bias at the entries; `pre` is that product, known already. Gradients reach W_enc and the bias."""
    values: Tensor = _Encode.apply(W_enc, bias, x, pre, entries)
    return values


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W_enc: Tensor, bias: Tensor, x: Tensor, pre: Tensor, entries: Entries) -> Tensor:
        ctx.save_for_backward(x)
        ctx.entries = entries
        return pre.view(-1).index_select(0, entries.flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        entries: Entries = ctx.entries
        return entries.weighted_rows(x, grad).T, entries.sum_by_latent(grad), None, None, None


class _Decode(torch.autograd.Function):
    """Sums of decoder rows; `starts` cut the entries into one piece for each row of the output."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, entries: Entries, starts: Tensor) -> Tensor:
        ctx.save_for_backward(values, W_dec, starts)
        ctx.entries = entries
        return _sum_bags(entries.latent, W_dec, starts, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        values, W_dec, starts = ctx.saved_tensors
        entries: Entries = ctx.entries
        grad = grad.contiguous()
        of_values = _products_at(grad, W_dec, starts, entries.latent)
        if not ctx.needs_input_grad[1]:
            return of_values, None, None, None
        return of_values, entries.weighted_rows(grad, values, torch.repeat_interleave(starts.diff())), None, None


class _Change(torch.autograd.Function):
    """sum_i w_i ||f_i - f_{i-1}||^2 = sum_i w_i (||f_i||^2 + ||f_{i-1}||^2 - 2 f_i.f_{i-1}); gradients at entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, entries: Entries, paired: Tensor, both: bool) -> Tensor:
        weight = functional.pad(paired.to(values.dtype), (0, 1))  # w_i, and none after the last row
        weight[0] = 0.0
        mine, next_ = weight.index_select(0, entries.row), weight.index_select(0, entries.row + 1)
        size = entries.shape[1]
        padded = _zeros((entries.shape[0] + 2) * size, values.dtype)  # with a row before the first and after the last
        here = entries.flat + size
        padded.index_copy_(0, here, values)
        previous = padded.index_select(0, entries.flat)
        gradient = mine * (values - previous)
        if both:
            gradient = gradient + next_ * (values - padded.index_select(0, here + size))
        padded.index_fill_(0, here, 0.0)
        ctx.save_for_backward(gradient)
        return torch.dot(values, (mine + next_) * values) - 2.0 * torch.dot(values, mine * previous)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return 2.0 * grad * gradient, None, None, None


@lru_cache(maxsize=1)
def _zeros(size: int, dtype: torch.dtype) -> Float[Tensor, " size"]:
    """Zeros to work in, which whoever takes them leaves as zeros: new memory of this size costs more than its use."""
    return torch.zeros(size, dtype=dtype)


class ActiveLatents(Latents):
    """Held by entries: `values` where f may be above zero."""

    def __init__(self, values: Float[Tensor, " n"], entries: Entries) -> None:
        self.values, self.entries = values, entries
        self.n_rows, self.d_sae = entries.shape

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        zeros = self.values.new_zeros(self.n_rows * self.d_sae)
        return zeros.index_copy(0, self.entries.flat, self.values).view(self.n_rows, self.d_sae)

    def l1(self) -> Float[Tensor, ""]:
        return self.values.sum() / self.n_rows

    def times(self, factor: Float[Tensor, "..."]) -> ActiveLatents:
        place = self.entries.latent if factor.ndim == 1 else self.entries.flat
        return ActiveLatents(self.values * factor.view(-1).index_select(0, place), self.entries)

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        x_hat: Tensor = _Decode.apply(self.values, W_dec, self.entries, self.entries.row_starts)
        return x_hat

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        firsts = torch.arange(self.n_rows)[:, None] * self.d_sae + torch.tensor([0, *sizes[:-1]]).cumsum(0)
        bounds = torch.cat([firsts.view(-1), torch.tensor([self.n_rows * self.d_sae])])
        starts = torch.searchsorted(self.entries.flat, bounds)
        parts: Tensor = _Decode.apply(self.values, W_dec, self.entries, starts)
        return list(parts.view(self.n_rows, len(sizes), -1).unbind(dim=1))

    def change(self, paired: Bool[Tensor, " batch"], *, both: bool) -> Float[Tensor, ""]:
        change: Tensor = _Change.apply(self.values, self.entries, paired, both)
        return change

    def rate(self) -> Float[Tensor, " d_sae"]:
        return self.entries.sum_by_latent(self.values.detach().sign()) / self.n_rows

    def mean(self) -> Float[Tensor, " d_sae"]:
        return self.entries.sum_by_latent(self.values.detach()) / self.n_rows

    def mean_square(self) -> Float[Tensor, " d_sae"]:
        return self.entries.sum_by_latent(self.values.detach().square()) / self.n_rows

    def mean_product(self, error: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_sae d_in"]:
        return self.entries.weighted_rows(error, self.values.detach()) / self.n_rows


def _sum_bags(
    index: Int[Tensor, " n"],
    table: Float[Tensor, "rows columns"],
    starts: Int[Tensor, " bags_and_1"],
    weight: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "bags columns"]:
    """For each bag i the sum of table[index], times `weight`, over entries starts[i] to starts[i + 1]."""
    weight = None if weight is None else weight.detach()
    return functional.embedding_bag(
        index, table.detach(), starts, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _products_at(
    rows: Float[Tensor, "rows d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    starts: Int[Tensor, " rows_and_1"],
    latent: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """rows W_dec^T at the entries only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch calls its CSR tensors a beta
        places = torch.sparse_csr_tensor(starts, latent, rows.new_zeros(len(latent)), (len(rows), len(W_dec)))
        return torch.sparse.sampled_addmm(places, rows, W_dec.detach().T, beta=0.0).values()
