"""The latents of one batch while training: what losses and mechanisms ask of them, whichever way they are held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Latents:
    """f, `[batch, d_sae]`, never negative: held as a matrix here, by its entries in `active.ActiveLatents`.

    Gradients flow through `dense`, `l1`, `times`, `reordered`, `decode`, `decode_groups` and `change`; what describes
    each latent over the batch (`rate` and the means) has none.
    """

    def __init__(self, f: Float[Tensor, "batch d_sae"]) -> None:
        self.f = f
        self.n_rows, self.d_sae = f.shape

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All of them, zeros included."""
        return self.f

    def l1(self) -> Float[Tensor, ""]:
        """||f||_1, mean over rows, in fp32."""
        return self.f.sum(dtype=torch.float32) / self.n_rows

    def times(self, factor: Float[Tensor, "..."]) -> Latents:
        """f * factor, for a factor >= 0 that is broadcast to `[batch, d_sae]`."""
        return Latents(self.f * factor)

    def reordered(self, order: Int[Tensor, " d_sae"]) -> Latents:
        """f with latent `order[i]` in place i."""
        return Latents(self.f[:, order])

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """f W_dec."""
        return _matching(self.f, W_dec) @ W_dec

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        """f W_dec of the first `sizes[0]` latents alone, of the next `sizes[1]` alone, and so on."""
        parts = zip(self.f.split(list(sizes), dim=1), W_dec.split(list(sizes)), strict=True)
        return [_matching(f, directions) @ directions for f, directions in parts]

    def change(self, paired: Bool[Tensor, " batch"], *, both: bool) -> Float[Tensor, ""]:
        """Sum of ||f_i - f_{i-1}||^2 over the rows that are `paired` (row 0 never is). The gradient reaches f_i, and
        f_{i-1} if `both`.
        """
        return _Change.apply(self.f.float(), paired[1:].float(), both)

    def rate(self) -> Float[Tensor, " d_sae"]:
        """Share of the rows on which each latent is above zero."""
        return self.f.detach().sign().mean(dim=0, dtype=torch.float32)

    def mean(self) -> Float[Tensor, " d_sae"]:
        """E[f_i] over rows."""
        return self.f.detach().mean(dim=0, dtype=torch.float32)

    def mean_square(self) -> Float[Tensor, " d_sae"]:
        """E[f_i^2] over rows."""
        return self.f.detach().float().square().mean(dim=0)

    def mean_product(self, error: Float[Tensor, "batch d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """E[f_i error] over rows."""
        return self.f.detach().to(error.dtype).T @ error / self.n_rows


def _matching(f: Tensor, W_dec: Tensor) -> Tensor:
    """f in the dtype of W_dec, unless autocast chooses one for both."""
    return f if torch.is_autocast_enabled(f.device.type) else f.to(W_dec.dtype)


class _Change(torch.autograd.Function):
    """sum_i w_i ||f_i - f_{i-1}||^2, w_i (`paired`) being 0 or 1 for each row but the first."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, paired: Tensor, both: bool) -> Tensor:
        change = (f[1:] - f[:-1]).mul_(paired[:, None])
        ctx.save_for_backward(change)
        ctx.both = both
        return torch.dot(change.view(-1), change.view(-1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (change,) = ctx.saved_tensors
        gradient = change.new_empty(len(change) + 1, change.shape[1])
        gradient[0] = 0.0
        torch.mul(change, 2.0 * grad, out=gradient[1:])
        if ctx.both:
            gradient[:-1] -= gradient[1:].clone()
        return gradient, None, None
