"""TemporalSAE's first mechanism: latents should not change from one time step to the next."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Step
from sae_lib.autoencoders.config import MechanismConfig, Momentum
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.standard import PAPER, STANDARD, TEMPORAL_PAPER
from sae_lib.mechanisms.base import Mechanism, mechanism

SATURATED = 0.01  # alpha within this of 0 or 1 counts as saturated


class TemporalConfig(MechanismConfig):
    """TemporalSAE Eq. 3-4: alpha_t ||f_t - f_{t-1}||^2, alpha_t = sigmoid(5 (beta_t - L_recon))."""

    coefficient: float = Field(1e-4, ge=0.0)
    pairing: Literal["adjacent_token", "previous_batch", "variance", "none"] = "adjacent_token"
    """What f_{t-1} is: the previous token of the context; the same row of the previous optimiser step; a shuffled row,
    written as the variance penalty 2 sum Var(f) that it amounts to; or nothing."""
    gradient: Literal["detached", "both"] = "detached"
    """Whether the gradient also flows through f_{t-1}."""
    scale: Literal["raw", "relative", "constant"] = "raw"
    """alpha as written; with (beta - L) / beta in place of beta - L; or alpha = 1."""
    gradient_through_scale: bool = False
    """Whether alpha is differentiated: it would reward a higher reconstruction loss."""
    tracker: Literal["ema", "decayed_max"] = "ema"
    """beta as the formula says (EMA), or the maximum that the text says, decaying with the same momentum."""
    tracker_start: Literal["first_loss", "zero"] = "first_loss"
    momentum: Momentum = 0.99
    sharpness: float = Field(5.0, gt=0.0)

    @model_validator(mode="after")
    def _gradient_has_two_ends(self) -> "TemporalConfig":
        if self.gradient == "both" and self.pairing != "adjacent_token":
            raise ValueError(f"gradient 'both' needs pairing 'adjacent_token'; with '{self.pairing}' take 'detached'")
        return self


@mechanism("temporal", TemporalConfig)
class TemporalPenalty(Mechanism):
    """lambda_2 alpha_t ||f_t - f_{t-1}||_2^2 with alpha_t = sigmoid(5 (beta_t - L_recon(t))) and
    beta_t = gamma beta_{t-1} + (1 - gamma) L_recon(t) (TemporalSAE Eq. 3, 4, 8).

    The norm is averaged over the rows that have a predecessor. With losses in the hundreds alpha, as written, is 0 or 1
    at almost every step: `log()["alpha_saturated"]` is that share.
    """

    cfg: TemporalConfig

    def __init__(self, settings: TemporalConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.beta: Tensor = nn.Buffer(torch.zeros(()))
        self.begun: Tensor = nn.Buffer(torch.zeros(()))
        self.alpha: Tensor = nn.Buffer(torch.zeros(()))
        self.saturated: Tensor = nn.Buffer(torch.zeros(()))
        self.counted: Tensor = nn.Buffer(torch.zeros(()))
        self.previous: Tensor = nn.Buffer(torch.zeros(0, 0))

    def loss(self, step: Step) -> Float[Tensor, ""] | None:
        alpha = self._alpha(step.reconstruction)
        if self.cfg.pairing == "none":
            return None
        scale = alpha if self.cfg.gradient_through_scale else alpha.detach()
        return self.cfg.coefficient * scale * self._difference(step)

    def _difference(self, step: Step) -> Float[Tensor, ""]:
        """Mean over rows of ||f_t - f_{t-1}||^2."""
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
        gap = self.beta - reconstruction
        if self.cfg.scale == "relative":
            gap = gap / self.beta.clamp_min(1e-12)
        constant = self.cfg.scale == "constant"
        alpha = torch.ones_like(reconstruction) if constant else torch.sigmoid(self.cfg.sharpness * gap)
        self.alpha.copy_(alpha.detach())
        self.saturated += ((self.alpha < SATURATED) | (self.alpha > 1 - SATURATED)).to(self.saturated.dtype)
        self.counted += 1
        return alpha

    def log(self) -> dict[str, float]:
        figures = {"alpha": float(self.alpha), "alpha_saturated": float(self.saturated / self.counted.clamp_min(1))}
        self.saturated.zero_()
        self.counted.zero_()
        return figures


TEMPORAL_SAE: dict[str, Any] = PAPER | {"temporal": {}, "resampling": {}, "gradient_scaling": {}}
GREEN = Look("#029e73", "P", (0, (6, 2)))
register(Method("temporal_sae", "TemporalSAE", TEMPORAL_SAE, GREEN, toy_rate=5e-2, papers=(TEMPORAL_PAPER,)))


# Standard with nothing but a penalty on changes of the latents; its coefficient is the toy study's.
for _key, _name, _pairing, _look in (
    ("temporal_strong", "Adjacent-token penalty", "adjacent_token", Look("#00441b", "*", (0, (7, 2, 2, 2)))),
    ("temporal_previous", "Previous-batch penalty", "previous_batch", Look("#ece133", "p", (0, (3, 3)))),
    ("variance", "Variance penalty", "variance", Look("#fbafe4", "d", (0, (1, 1)))),
):
    register(Method(_key, _name, STANDARD | {"temporal": {"pairing": _pairing}}, _look, "toy", toy_rate=5e-2))
