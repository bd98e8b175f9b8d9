"""The squared difference of consecutive rows of latents, in few passes over `[batch, d_sae]`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _Change(torch.autograd.Function):
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


def squared_change(f: Float[Tensor, "batch d_sae"], paired: Float[Tensor, " pairs"], both: bool) -> Float[Tensor, ""]:
    """sum_i w_i ||f_i - f_{i-1}||^2, w_i (`paired`) being 0 or 1 for each row but the first."""
    change: Tensor = _Change.apply(f, paired, both)
    return change
