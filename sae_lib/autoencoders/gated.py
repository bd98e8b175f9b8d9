"""The Gated SAE: which latents fire, and how strongly, are decided apart."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step, architecture, indicator, squared_error
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.autoencoders.latents import Entries, entries_above
from sae_lib.autoencoders.method import Look, Method, register


class GatedConfig(SAEConfig):
    l1_scale: ClassVar[float] = 10.0  # its penalty is on the gate alone

    architecture: str = "gated"
    l1_coefficient: float = Field(0.0, ge=0.0)


@architecture(GatedConfig)
class Gated(Autoencoder):
    """f = 1[pi_gate > 0] ReLU(pi_mag), pi_gate = u + b_gate, pi_mag = exp(r_mag) u + b_mag, u = (x - b_dec) W_enc
    (Rajamanoharan et al. 2024, arXiv 2404.16014, Eq. 3-8). The step function has no gradient, so the gate learns from
    an L1 penalty on ReLU(pi_gate) and from the error of what ReLU(pi_gate) reconstructs by a frozen decoder:

        L = ||x - x_hat||_2^2 + lambda_1 ||ReLU(pi_gate)||_1 + ||x - x_hat_frozen(ReLU(pi_gate))||_2^2

    Magnitudes are free of the penalty. `pre_activations` are u.
    """

    cfg: GatedConfig
    offsets, gains = ("b_gate", "b_mag"), ("r_mag",)
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return magnitude(pre, self.b_mag, self.r_mag) * indicator(torch.gt, pre + self.b_gate, torch.zeros(()))

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        return entries_above(pre, -self.b_gate.detach())

    def activate_training(self, step: Step) -> Float[Tensor, "..."]:
        b_gate, b_mag, r_mag = step.at_places(self.b_gate, self.b_mag, self.r_mag)
        gate = torch.relu_(step.pre + b_gate)
        step.kept = step.held(gate)
        return magnitude(step.pre, b_mag, r_mag) * gate.detach().sign()

    activate_entries = activate_training

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        return self.cfg.l1_coefficient * self.sparsity_ramp(step) * step.kept.l1()

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""]:
        return squared_error(step.x, step.kept.decode(self.W_dec.detach()) + self.b_dec.detach())


def magnitude(u: Float[Tensor, "*n"], b_mag: Tensor, r_mag: Tensor) -> Float[Tensor, "*n"]:
    """ReLU(pi_mag)."""
    return torch.relu_(torch.addcmul(b_mag, r_mag.exp(), u))


# SAEBench's trainer, as dictionary_learning has it.
GATED: dict[str, Any] = {
    "architecture": "gated",
    "subtract_b_dec": True,
    "sparsity_warmup_steps": 2000,
    "optimizer": {"learning_rate": 5e-5, "beta1": 0.0},
}
SOURCE = "Rajamanoharan et al. 2024, *Improving Dictionary Learning with Gated Sparse Autoencoders*, arXiv 2404.16014"
register(Method("gated", "Gated", GATED, Look("#000000", "h", (0, (8, 1))), toy_rate=2e-2, papers=(SOURCE,)))
