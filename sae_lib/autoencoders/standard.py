"""The standard SAE: ReLU and an L1 penalty."""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step, architecture
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.autoencoders.latents import Entries, entries_above
from sae_lib.autoencoders.method import Look, Method, register


class StandardConfig(SAEConfig):
    architecture: str = "standard"
    l1_coefficient: float = Field(0.0, ge=0.0)


@architecture(StandardConfig)
class Standard(Autoencoder):
    """L = ||x - x_hat||_2^2 + lambda_1 ||f||_1 with f = ReLU(x W_enc + b_enc) (TemporalSAE Eq. 1-2, 8). The penalty
    needs decoder rows of fixed norm, or it is escaped by small f and large W_dec."""

    cfg: StandardConfig

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.relu(pre)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        return step.pre.relu_()  # nothing else needs the pre-activations

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        return entries_above(pre, 0.0)

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        return self.cfg.l1_coefficient * self.sparsity_ramp(step) * step.f.l1()


# SAEBench's trainer, as dictionary_learning has it.
STANDARD: dict[str, Any] = {
    "architecture": "standard",
    "subtract_b_dec": True,
    "encoder_init_norm": 0.1,
    "sparsity_warmup_steps": 2000,
    "optimizer": {"learning_rate": 1e-3},
}
# The papers' own training recipe (TemporalSAE section 5): raw activations, AdamW, clip 0.1.
PAPER: dict[str, Any] = {
    "architecture": "standard",
    "l1_coefficient": 0.04,
    "normalize_inputs": False,
    "optimizer": {"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01, "clip_norm": 0.1},
}
BLUE = Look("#0173b2", "o", "-")
HUBEN = (
    "Huben et al. 2024, *Sparse Autoencoders Find Highly Interpretable Features in Language Models*, arXiv 2309.08600"
)
TEMPORAL_PAPER = "*TemporalSAE: Stabilizing Neural Features through Adaptive Regularization*, anonymous, under review"
register(Method("standard", "Standard", STANDARD, BLUE, toy_rate=5e-2, papers=(HUBEN,)))
# The papers' recipe without mechanisms: what TemporalSAE is compared with when its parts are switched.
PAPERS = (HUBEN, TEMPORAL_PAPER)
register(Method("paper_standard", "Standard (paper's recipe)", PAPER, BLUE, shown="as written", papers=PAPERS))
