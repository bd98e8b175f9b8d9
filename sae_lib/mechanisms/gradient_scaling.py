"""TemporalSAE's third mechanism: rare features learn faster."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import MechanismConfig, Momentum
from sae_lib.mechanisms.base import Mechanism, mechanism, moving_average


class GradientScalingConfig(MechanismConfig):
    """TemporalSAE Eq. 7: gradients of latent i times clip(1 / (eps + h_i), s_min, s_max)."""

    s_min: float = Field(0.1, gt=0.0)
    s_max: float = Field(10.0, gt=0.0)
    epsilon: float = Field(1e-6, gt=0.0)
    momentum: Momentum = 0.99
    placement: Literal["pre_adam", "post_adam"] = "pre_adam"
    """Scale the gradient (as written; Adam then divides most of it out) or the optimiser's update."""

    @model_validator(mode="after")
    def _ordered(self) -> "GradientScalingConfig":
        if self.s_min > self.s_max:
            raise ValueError(f"s_min {self.s_min} is above s_max {self.s_max}")
        return self


@mechanism("gradient_scaling", GradientScalingConfig)
class GradientScaling(Mechanism):
    """s_i = clip(1 / (eps + h_i), s_min, s_max); the gradients of latent i are multiplied by s_i (TemporalSAE Eq. 7).

    h_i <= 1 is the activation-rate EMA of Eq. 5, so with the published bounds 0.1 is never reached and every latent
    that fires on under 10 % of the tokens gets 10.
    """

    cfg: GradientScalingConfig

    def __init__(self, settings: GradientScalingConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.rate: Tensor = nn.Buffer(torch.zeros(d_sae))
        self._before: list[Tensor] = []

    def scale(self) -> Float[Tensor, " d_sae"]:
        """s_i of Eq. 7."""
        return (1.0 / (self.cfg.epsilon + self.rate)).clamp(self.cfg.s_min, self.cfg.s_max)

    @torch.no_grad()
    def before_update(self, sae: Autoencoder, step: Step) -> None:
        moving_average(self.rate, step.firing_rate, self.cfg.momentum)
        if self.cfg.placement == "post_adam":
            self._before = [tensor.detach().clone() for tensor, _ in sae.per_latent()]
            return
        scale = self.scale()
        for tensor, dim in sae.per_latent():
            if tensor.grad is not None:
                tensor.grad.movedim(dim, -1).mul_(scale)

    @torch.no_grad()
    def after_update(self, sae: Autoencoder, optimizer: torch.optim.Optimizer, step: Step) -> None:
        if self.cfg.placement == "pre_adam":
            return
        scale = self.scale()
        for before, (tensor, dim) in zip(self._before, sae.per_latent(), strict=True):
            now, then = tensor.movedim(dim, -1), before.movedim(dim, -1)
            now.copy_(then + scale * (now - then))
        self._before = []
