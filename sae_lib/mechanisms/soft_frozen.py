"""A control, not a method: an SAE whose decoder hardly learns. A measure that it does well on asks for no decoder."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import MechanismConfig
from sae_lib.autoencoders.method import GREY, Look
from sae_lib.autoencoders.topk import topk_method
from sae_lib.mechanisms.base import Mechanism, mechanism


class SoftFrozenConfig(MechanismConfig):
    """Decoder rows stay near where they started."""

    min_cosine: float = Field(0.8, gt=0.0, lt=1.0)


@mechanism("soft_frozen", SoftFrozenConfig)
class SoftFrozen(Mechanism):
    """After each step, a row d whose cosine with its start s (of norm 1) has fallen below c is moved to the nearest
    direction that has it, at the same norm, in the plane of the two:

        d <- ||d|| (c s + sqrt(1 - c^2) u),    u = (d - (d . s) s) / ||d - (d . s) s||

    Source: arXiv 2602.14111, where such SAEs match trained ones on most benchmarks.
    """

    cfg: SoftFrozenConfig

    def __init__(self, settings: SoftFrozenConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.start: Tensor = nn.Buffer(torch.zeros(1, d_sae))  # [d_in, d_sae] from the first step on

    @torch.no_grad()
    def before_update(self, sae: Autoencoder, step: Step) -> None:
        if step.index == 0:
            self.start = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).T.contiguous()

    @torch.no_grad()
    def after_update(self, sae: Autoencoder, optimizer: torch.optim.Optimizer, step: Step) -> None:
        sae.W_dec.copy_(near(sae.W_dec, self.start.T, self.cfg.min_cosine))


def near(rows: Float[Tensor, "row d_in"], start: Float[Tensor, "row d_in"], min_cosine: float) -> Tensor:
    """`rows`, those that have left the cone around their start (of norm 1) put back onto it."""
    norm = rows.norm(dim=1, keepdim=True)
    along = (rows * start).sum(dim=1, keepdim=True)
    aside = rows - along * start
    aside = aside / aside.norm(dim=1, keepdim=True).clamp_min(1e-12)
    on_cone = norm * (min_cosine * start + (1 - min_cosine**2) ** 0.5 * aside)
    return torch.where(along < min_cosine * norm, on_cone, rows)


# A TopK SAE in all else, as the other controls are.
topk_method("soft_frozen", "Soft-frozen decoder", {"soft_frozen": {}}, Look(GREY, "X", "-."), "control", toy_rate=None)
