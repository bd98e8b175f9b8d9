"""The standard SAE: ReLU and an L1 penalty."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step


class Standard(Autoencoder):
    """L = ||x - x_hat||_2^2 + lambda_1 ||f||_1 with f = ReLU(x W_enc + b_enc) (TemporalSAE Eq. 1-2).

    The penalty needs decoder rows of fixed norm, or it is escaped by small f and large W_dec.
    """

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.relu(pre)

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        assert step.f is not None
        warmup = self.cfg.sparsity_warmup_steps
        ramp = min(1.0, step.index / warmup) if warmup else 1.0
        return self.cfg.l1_coefficient * ramp * step.f.sum(dim=1).mean()  # f >= 0: the sum is the L1 norm
