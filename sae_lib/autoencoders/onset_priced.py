"""An idea: what lasts costs less than what begins. TemporalSAE's thought without its pull on values."""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Step, architecture
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.standard import STANDARD, Standard, StandardConfig


class OnsetPricedConfig(StandardConfig):
    """The standard SAE's settings, and what a latent that was on before is let off."""

    architecture: str = "onset_priced"
    discount: float = Field(0.9, ge=0.0, le=1.0)
    """Share of the penalty that a latent is let off where it was on at the token before; 0 is the standard SAE."""


@architecture(OnsetPricedConfig)
class OnsetPriced(Standard):
    """L = ||x - x_hat||^2 + lambda_1 sum_i f_i(t) (1 - s 1[f_i(t - 1) > 0]), the token before in the same window.

    A parent that lasts becomes cheap beside a child that comes and goes, so that little is saved by absorbing it. It
    should help the more the longer features last; not on shuffled tokens, nor with first letters, which do not last.
    """

    cfg: OnsetPricedConfig

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        f = step.f.dense()
        before = (f.detach()[:-1] > 0) & step.has_predecessor[1:, None]
        let_off = self.cfg.discount * (torch.sum(f[1:] * before) / len(f))
        return self.cfg.l1_coefficient * self.sparsity_ramp(step) * (step.f.l1() - let_off)


ONSET: dict[str, Any] = STANDARD | {"architecture": "onset_priced"}
register(Method("onset_priced", "Onset-priced", ONSET, Look("#999933", "v", (0, (4, 2, 1, 2))), "field", toy_rate=5e-2))
