"""TemporalSAE's first mechanism: latents should not change from one time step to the next."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import TemporalConfig
from sae_lib.mechanisms.base import Mechanism

SATURATED = 0.01  # alpha within this of 0 or 1 counts as saturated


class TemporalPenalty(Mechanism):
    """lambda_2 alpha_t ||f_t - f_{t-1}||_2^2 with alpha_t = sigmoid(5 (beta_t - L_recon(t))) and
    beta_t = gamma beta_{t-1} + (1 - gamma) L_recon(t) (TemporalSAE Eq. 3, 4, 8).

    The norm is averaged over the rows that have a predecessor. `TemporalConfig` names other readings of "time step",
    of the gradient, and of alpha. With losses in the hundreds alpha, as written, is 0 or 1 at almost every step:
    `log()["alpha_saturated"]` is that share.
    """

    term = "temporal"

    beta: Tensor
    begun: Tensor
    previous: Tensor
    alpha: Tensor
    saturated: Tensor
    counted: Tensor

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.cfg = config
        for name in ("beta", "begun", "alpha", "saturated", "counted"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("previous", torch.zeros(0, 0))

    def loss(self, step: Step) -> Float[Tensor, ""] | None:
        assert step.f is not None and step.reconstruction is not None
        alpha = self._alpha(step.reconstruction)
        if self.cfg.pairing == "none":
            return None
        scale = alpha if self.cfg.gradient_through_scale else alpha.detach()
        return self.cfg.coefficient * scale * self._difference(step)

    def _difference(self, step: Step) -> Float[Tensor, ""]:
        """Mean over rows of ||f_t - f_{t-1}||^2."""
        assert step.f is not None
        if self.cfg.pairing == "adjacent_token":
            total = step.f.change(step.has_predecessor, both=self.cfg.gradient == "both")
            return total / step.has_predecessor[1:].sum().clamp_min(1)
        f = step.f.dense().float()
        if self.cfg.pairing == "variance":
            return 2.0 * f.var(dim=0, unbiased=False).sum()
        # Same shape unless this is the first step: then there is nothing to compare with.
        before = self.previous if self.previous.shape == f.shape else f.detach()
        self.previous = f.detach().clone()
        return (f - before).square().sum(dim=1).mean()

    def _alpha(self, reconstruction: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """alpha_t, after beta has taken in this step's loss."""
        seen = reconstruction.detach()
        start = seen if self.cfg.tracker_start == "first_loss" else torch.zeros_like(seen)
        before = torch.where(self.begun > 0, self.beta, start)
        average = self.cfg.momentum * before + (1.0 - self.cfg.momentum) * seen
        if self.cfg.tracker == "decayed_max":
            average = torch.maximum(self.cfg.momentum * before, seen)
        self.beta.copy_(average)
        self.begun.fill_(1.0)
        if self.cfg.scale == "constant":
            alpha = torch.ones_like(reconstruction)
        else:
            gap = self.beta - reconstruction
            if self.cfg.scale == "relative":
                gap = gap / self.beta.clamp_min(1e-12)
            alpha = torch.sigmoid(self.cfg.sharpness * gap)
        self.alpha.copy_(alpha.detach())
        self.saturated += ((self.alpha < SATURATED) | (self.alpha > 1 - SATURATED)).to(self.saturated.dtype)
        self.counted += 1
        return alpha

    def log(self) -> dict[str, float]:
        figures = {"alpha": float(self.alpha), "alpha_saturated": float(self.saturated / self.counted.clamp_min(1))}
        self.saturated.zero_()
        self.counted.zero_()
        return figures

    def before_update(self, sae: Autoencoder, step: Step) -> None:
        """Nothing: this mechanism acts through the loss alone."""
