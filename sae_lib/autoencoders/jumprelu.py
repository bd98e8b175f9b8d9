"""The JumpReLU SAE: one learned threshold per latent."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.sae_config import SAEConfig


class _Jump(torch.autograd.Function):
    """(z H(z - theta), mean over rows of sum H(z - theta)): latents and their L0. The gradient to theta goes through a
    rectangle kernel of width `bandwidth`:

    d(z H(z - theta)) / d theta ~ -(theta / bandwidth) rect((z - theta) / bandwidth)
    d H(z - theta) / d theta    ~ -(1 / bandwidth)     rect((z - theta) / bandwidth)

    The kernel is taken on the pre-activation z. Taken on z H(z - theta), as one release of a peer does, it sees only
    its upper half, and L0 does not reach its target.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        f = torch.where(z > theta, z, 0.0)
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return f, (f > 0).to(z.dtype).sum() / len(z)

    @staticmethod
    def backward(ctx: Any, grad_f: Tensor, grad_l0: Tensor) -> tuple[Tensor, Tensor, None]:
        z, theta = ctx.saved_tensors
        distance = z - theta
        inside = (distance.abs() < ctx.bandwidth / 2).to(z.dtype)
        through_f = theta * (inside * grad_f).sum(dim=0)
        through_l0 = grad_l0 / len(z) * inside.sum(dim=0)
        return torch.where(distance > 0, grad_f, 0.0), -(through_f + through_l0) / ctx.bandwidth, None


class JumpReLU(Autoencoder):
    """f = z H(z - theta), z = x W_enc + b_enc (Rajamanoharan et al. 2024, arXiv 2407.14435).

    L = ||x - x_hat||_2^2 + lambda (L0 / target - 1)^2, the form that aims at a given L0. `threshold` is fp32 and is
    kept above 0.
    """

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        self.threshold = nn.Parameter(torch.full((config.d_sae,), config.initial_threshold))
        self._l0: Tensor | None = None  # of the current training step

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.where(pre > self.threshold.clamp_min(0.0), pre, 0.0)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        # Projected rather than clamped in the graph: a clamp has no gradient below 0, so the latent could never return.
        self.threshold.data.clamp_(min=0.0)
        f, self._l0 = _Jump.apply(step.pre, self.threshold, self.cfg.bandwidth)
        return f

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        assert self._l0 is not None and self.cfg.target_l0 is not None
        warmup = self.cfg.sparsity_warmup_steps
        ramp = min(1.0, step.index / warmup) if warmup else 1.0
        l0, self._l0 = self._l0, None
        return self.cfg.l0_coefficient * ramp * (l0 / self.cfg.target_l0 - 1.0).square()

    def in_units_of_x(self) -> list[Tensor]:
        return [*super().in_units_of_x(), self.threshold]
