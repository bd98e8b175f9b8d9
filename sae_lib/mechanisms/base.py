"""The hooks through which a mechanism takes part in training."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step


class Mechanism(nn.Module):
    """Hooks in the order of one optimiser step. A mechanism overrides those it needs.

    State lives in buffers, so that it is saved in checkpoints and moves between devices with everything else. A buffer
    that has dimensions counts the latents in its last one.
    """

    term = "penalty"
    """Name of `loss` in the training history."""
    needs_unmasked_reconstruction = False

    def mask(self, step: Step) -> Float[Tensor, "..."] | None:
        """Factor on the latents between encoder and decoder, broadcast to `[batch, d_sae]`; None leaves them alone."""
        return None

    def loss(self, step: Step) -> Float[Tensor, ""] | None:
        """A term added to the loss, coefficient included."""
        return None

    def before_update(self, sae: Autoencoder, step: Step) -> None:
        """After the backward pass, before clipping and the optimiser: see statistics, change gradients."""

    def after_update(self, sae: Autoencoder, optimizer: torch.optim.Optimizer, step: Step) -> None:
        """After the optimiser's step: change weights."""

    def finish(self, sae: Autoencoder) -> None:
        """Once, after the last step: write what evaluation needs into the weights."""

    def log(self) -> dict[str, float]:
        """Figures for the training history since the last call."""
        return {}


def moving_average(average: Tensor, value: Tensor, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * value, in place."""
    average.mul_(momentum).add_(value, alpha=1.0 - momentum)
