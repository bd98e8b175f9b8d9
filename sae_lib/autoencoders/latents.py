"""The latents of one batch while training: as a matrix, or by the entries that are not zero, so that products and their
gradients cost what is active. With L0 at a hundredth of d_sae, four of a step's five matrix products shrink to almost
nothing; what stays is the encoder's. On a GPU dense products are faster, so this is for CPUs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders import kernels

warnings.filterwarnings("ignore", "Sparse (CSR tensor support is in beta|invariant checks are)", UserWarning)
LARGEST_SHARE = 1 / 10  # of the entries; above it the dense products are faster
SMALLEST_BATCH = 2**16  # entries; below it finding what is active costs more than it saves


class Latents:
    """f, `[batch, d_sae]`, never negative: held as a matrix here, by its entries in `ActiveLatents`. What describes
    each latent over the batch (`rate` and the means) has no gradient."""

    def __init__(self, values: Float[Tensor, "batch d_sae"]) -> None:
        self.values = values
        self.n_rows, self.d_sae = values.shape

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All of them, zeros included."""
        return self.values

    def l1(self) -> Float[Tensor, ""]:
        """||f||_1, mean over rows, in fp32."""
        return self.values.sum(dtype=torch.float32) / self.n_rows

    def times(self, factor: Float[Tensor, "..."]) -> Latents:
        """f * factor, for a factor >= 0 that is broadcast to `[batch, d_sae]`."""
        return Latents(self.values * factor)

    def reordered(self, order: Int[Tensor, " d_sae"]) -> Latents:
        """f with latent `order[i]` in place i."""
        return Latents(self.values[:, order])

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """f W_dec."""
        return self._matching(W_dec) @ W_dec

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        """f W_dec of the first `sizes[0]` latents alone, of the next `sizes[1]` alone, and so on."""
        parts = zip(self._matching(W_dec).split(list(sizes), dim=1), W_dec.split(list(sizes)), strict=True)
        return [f @ directions for f, directions in parts]

    def _matching(self, W_dec: Tensor) -> Tensor:
        """f in the dtype of W_dec, unless autocast chooses one for both."""
        f = self.values
        return f if torch.is_autocast_enabled(f.device.type) else f.to(W_dec.dtype)

    def change(self, paired: Bool[Tensor, " batch"], *, both: bool) -> Float[Tensor, ""]:
        """Sum of ||f_i - f_{i-1}||^2 over the rows that are `paired` (row 0 never is). The gradient reaches f_i, and
        f_{i-1} if `both`."""
        f = self.values.float()
        changed = (f.detach()[1:] - f.detach()[:-1]).mul_(paired[1:, None].float())

        def gradient(factor: Tensor) -> Tensor:
            found = changed.new_empty(f.shape)
            found[0] = 0.0
            torch.mul(changed, factor, out=found[1:])
            if both:
                found[:-1] -= found[1:].clone()
            return found

        return _Known.apply(f, torch.dot(changed.view(-1), changed.view(-1)), gradient)

    def rate(self) -> Float[Tensor, " d_sae"]:
        """Share of the rows on which each latent is above zero."""
        return self._mean(self.values.detach().sign())

    def mean(self) -> Float[Tensor, " d_sae"]:
        """E[f_i] over rows."""
        return self._mean(self.values.detach())

    def mean_square(self) -> Float[Tensor, " d_sae"]:
        """E[f_i^2] over rows."""
        return self._mean(self.values.detach().float().square())

    def _mean(self, values: Float[Tensor, "..."]) -> Float[Tensor, " d_sae"]:
        return values.mean(dim=0, dtype=torch.float32)

    def mean_product(self, error: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """E[f_i error] over rows."""
        return self.values.detach().to(error.dtype).T @ error / self.n_rows


class _Known(torch.autograd.Function):
    """A sum of squares, whose gradient by `f` is what `gradient` makes of twice its own."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, total: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient(2.0 * grad), None, None


class Entries:
    """Places in a matrix `[batch, d_sae]`, row by row and, within a row, by latent; and what the matrix has there."""

    def __init__(self, latent: np.ndarray, found: np.ndarray, row_starts: np.ndarray, d_sae: int) -> None:
        self.shape = (len(row_starts) - 1, d_sae)
        self.latent, self.found, self.row_starts = map(torch.from_numpy, (latent, found, row_starts))

    @cached_property
    def flat(self) -> Int[Tensor, " n"]:
        """row * d_sae + latent, ascending."""
        rows = np.arange(self.shape[0]) * self.shape[1]
        return self.latent + torch.from_numpy(np.repeat(rows, np.diff(self.row_starts.numpy())))

    def where(self, kept: Bool[Tensor, " n"]) -> Entries:
        """Some of them."""
        before = functional.pad(kept.cumsum(dim=0, dtype=self.latent.dtype), (1, 0))
        latent, found = self.latent.numpy()[kept.numpy()], self.found.numpy()[kept.numpy()]
        return Entries(latent, found, before[self.row_starts].numpy(), self.shape[1])

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " latents_and_1"]]:
        """The entries' order by latent (and row), their rows in that order, and where each latent's begin."""
        number = np.arange(len(self.latent), dtype=np.int32)
        turned = csr_matrix((number, self.latent.numpy(), self.row_starts.numpy()), self.shape).tocsc()
        return torch.from_numpy(turned.data), torch.from_numpy(turned.indices), torch.from_numpy(turned.indptr)

    def sum_by_latent(self, values: Float[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        """The sum of each latent's `values`."""
        return values.new_zeros(self.shape[1]).index_add_(0, self.latent, values)

    def weighted_rows(
        self, rows: Float[Tensor, "rows d_in"], values: Float[Tensor, " n"], row: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "d_sae d_in"]:
        """For each latent the sum of `values` times the row of each of its entries (or `row`): f^T rows."""
        order, own, starts = self.by_latent
        row = own if row is None else row.index_select(0, order).to(own.dtype)
        return _sum_bags(row, rows, starts, values.index_select(0, order))


def entries_above(
    values: Float[Tensor, "batch d_sae"], bound: Float[Tensor, " d_sae"] | float, share: float | None = None
) -> Entries | None:
    """Where `values` are above the bound; None where that is more than `share` of all entries."""
    most = int((LARGEST_SHARE if share is None else share) * values.numel())
    limits = bound.numpy() if isinstance(bound, Tensor) else np.full(values.shape[1], bound, dtype=np.float32)
    found = kernels.above(values.numpy(), limits, most)
    return None if found is None else Entries(*found, values.shape[1])


def worthwhile(x: Float[Tensor, "batch d_in"], d_sae: int, k: float | None = None) -> bool:
    """Whether to look for entries at all; `k` is how many a row will have, where that is known."""
    few = k is None or k <= LARGEST_SHARE * d_sae
    return few and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and len(x) * d_sae >= SMALLEST_BATCH


@torch.no_grad()
def encoder_product(
    x: Float[Tensor, "batch d_in"], W_enc: Float[Tensor, "d_in d_sae"], bias: Float[Tensor, " d_sae"]
) -> Float[Tensor, "batch d_sae"]:
    """x W_enc + bias, without gradient (that of `Encode` has one), in memory that the next product takes over."""

    def joined(purpose: str, matrix: Tensor, column: Tensor) -> Tensor:
        space = kernels.space(purpose, (len(matrix), matrix.shape[1] + 1), matrix.dtype)
        return torch.cat([matrix, column], dim=1, out=space)

    # The bias as one more row of W_enc: adding it to a product would take a pass over all latents.
    inputs, weights = joined("inputs", x, x.new_ones(len(x), 1)), joined("weights", W_enc.T, bias[:, None])
    return torch.mm(inputs, weights.T, out=kernels.space("pre", (len(x), len(bias)), x.dtype))


class Encode(torch.autograd.Function):
    """x W_enc + bias, which is known as `pre`: at entries found in it, or, for None, all of it in memory of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, bias: Tensor, pre: Tensor, entries: Entries | None) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.entries = entries
        return pre.clone() if entries is None else entries.found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, W_enc = ctx.saved_tensors
        entries: Entries | None = ctx.entries
        if entries is None:
            of_x = grad @ W_enc.T if ctx.needs_input_grad[0] else None
            return of_x, (grad.T @ x).T, grad.sum(dim=0), None, None
        of_x = _sum_bags(entries.latent, W_enc.T, entries.row_starts, grad) if ctx.needs_input_grad[0] else None
        return of_x, entries.weighted_rows(x, grad).T, entries.sum_by_latent(grad), None, None


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
        places = torch.sparse_csr_tensor(starts, entries.latent, torch.zeros_like(values), (len(grad), len(W_dec)))
        of_values = torch.sparse.sampled_addmm(places, grad, W_dec.detach().T, beta=0.0).values()
        if not ctx.needs_input_grad[1]:
            return of_values, None, None, None
        # The rows of the output are those of the entries, unless a row is decoded in several pieces.
        row = None if len(starts) == len(entries.row_starts) else torch.repeat_interleave(starts.diff())
        return of_values, entries.weighted_rows(grad, values, row), None, None


class ActiveLatents(Latents):
    """Held by entries: `values` where f may be above zero."""

    def __init__(self, values: Float[Tensor, " n"], entries: Entries) -> None:
        self.values, self.entries = values, entries
        self.n_rows, self.d_sae = entries.shape

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        zeros = self.values.new_zeros(self.n_rows * self.d_sae)
        return zeros.index_copy(0, self.entries.flat, self.values).view(self.n_rows, self.d_sae)

    def times(self, factor: Float[Tensor, "..."]) -> ActiveLatents:
        place = self.entries.latent if factor.ndim == 1 else self.entries.flat
        return ActiveLatents(self.values * factor.view(-1).index_select(0, place), self.entries)

    def reordered(self, order: Int[Tensor, " d_sae"]) -> ActiveLatents:
        place = order.argsort().to(self.entries.latent.dtype)[self.entries.latent.long()]
        by_place = torch.argsort(self.entries.flat - self.entries.latent + place)
        found, starts = self.entries.found.detach()[by_place].numpy(), self.entries.row_starts.numpy()
        entries = Entries(place[by_place].numpy(), found, starts, self.d_sae)
        return ActiveLatents(self.values[by_place], entries)

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        return _Decode.apply(self.values, W_dec, self.entries, self.entries.row_starts)

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        firsts = torch.arange(self.n_rows)[:, None] * self.d_sae + torch.tensor([0, *sizes[:-1]]).cumsum(0)
        bounds = torch.cat([firsts.view(-1), torch.tensor([self.n_rows * self.d_sae])])
        starts = torch.searchsorted(self.entries.flat, bounds).to(self.entries.latent.dtype)
        parts: Tensor = _Decode.apply(self.values, W_dec, self.entries, starts)
        return list(parts.view(self.n_rows, len(sizes), -1).unbind(dim=1))

    def change(self, paired: Bool[Tensor, " batch"], *, both: bool) -> Float[Tensor, ""]:
        weight = functional.pad(paired.to(self.values.dtype), (0, 1))
        weight[0] = 0.0
        places = (tensor.numpy() for tensor in (*self.entries.by_latent, weight))
        total, gradient = kernels.change(self.values.detach().numpy(), *places, both)
        half = torch.from_numpy(gradient)
        return _Known.apply(self.values, self.values.new_tensor(total), lambda factor: factor * half)

    def _mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        return self.entries.sum_by_latent(values) / self.n_rows

    def mean_product(self, error: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_sae d_in"]:
        return self.entries.weighted_rows(error, self.values.detach() / self.n_rows)


def _sum_bags(index: Tensor, table: Tensor, starts: Tensor, weight: Tensor | None = None) -> Tensor:
    """For each bag i the sum of table[index], times `weight`, over entries starts[i] to starts[i + 1]."""
    weight = None if weight is None else weight.detach()
    return functional.embedding_bag(
        index, table.detach(), starts, mode="sum", per_sample_weights=weight, include_last_offset=True
    )
