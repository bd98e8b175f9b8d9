"""The standard SAE: ReLU and an L1 penalty."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.active import ActiveLatents, EncoderProduct, entries_above
from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.latents import Latents


class Standard(Autoencoder):
    """L = ||x - x_hat||_2^2 + lambda_1 ||f||_1 with f = ReLU(x W_enc + b_enc) (TemporalSAE Eq. 1-2).

    The penalty needs decoder rows of fixed norm, or it is escaped by small f and large W_dec.
    """

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.relu(pre)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        assert step.pre is not None
        return step.pre.relu_()  # nothing else needs the pre-activations

    def activate_entries(self, step: Step, product: EncoderProduct) -> Latents | None:
        entries = entries_above(product.pre, 0.0)
        return None if entries is None else ActiveLatents(product.at(entries), entries)

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        assert step.f is not None
        return self.cfg.l1_coefficient * self.sparsity_ramp(step) * step.f.l1()
