"""OrtSAE's mechanism: no decoder row should point where another one does."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import MechanismConfig
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.topk import BATCHTOPK, topk_rate
from sae_lib.mechanisms.base import Mechanism, mechanism


class OrthogonalityConfig(MechanismConfig):
    """gamma mean_i (max_j cos(d_i, d_j))^2, j among the latents that share a random chunk with i."""

    coefficient: float = Field(0.25, ge=0.0)
    """gamma."""
    chunk: int = Field(8192, ge=2)
    """Latents are dealt anew at each step into as few chunks of equal size as hold at most so many."""
    interval: int = Field(1, ge=1)
    """With n, the penalty acts on every n-th step, n times as strongly."""


@mechanism("orthogonality", OrthogonalityConfig)
class Orthogonality(Mechanism):
    """L_ort = 1/m sum_i (max_{j != i, same chunk} cos(d_i, d_j))^2 over the m decoder rows d, in K = ceil(m / 8192)
    chunks that are drawn anew at each step; gamma L_ort is added to the loss (Korznikov et al. 2025, arXiv 2509.22033).

    A child that has absorbed its parent points where the parent does: the penalty takes that away. More chunks compare
    fewer pairs and absorb more. The term sees weights alone, so its gradient is added after the backward pass; the
    history has its value as `orthogonality`, not as part of the loss.
    """

    cfg: OrthogonalityConfig

    def __init__(self, settings: OrthogonalityConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.value: Tensor = nn.Buffer(torch.zeros(()))

    def before_update(self, sae: Autoencoder, step: Step) -> None:
        if step.index % self.cfg.interval:
            return
        order = torch.randperm(sae.d_sae, generator=step.generator, device=sae.device)
        with torch.enable_grad():
            similarity = closest(sae.W_dec, order, -(-sae.d_sae // self.cfg.chunk))
            (self.cfg.interval * self.cfg.coefficient * similarity).backward()
        self.value.copy_(similarity.detach())

    def log(self) -> dict[str, float]:
        return {"orthogonality": self.cfg.coefficient * float(self.value)}


def closest(W_dec: Float[Tensor, "d_sae d_in"], order: Tensor, chunks: int) -> Float[Tensor, ""]:
    """Mean over rows of the squared largest cosine with another row of the same chunk of `order`."""
    rows = functional.normalize(W_dec, dim=1)
    total = rows.new_zeros(())
    for latents in order.tensor_split(chunks):
        chunk = rows.index_select(0, latents)
        with torch.no_grad():  # which row is the closest: the products need not be kept for the gradient
            nearest = (chunk @ chunk.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        total = total + (chunk * chunk.index_select(0, nearest)).sum(dim=1).square().sum()
    return total / len(rows)


# Korznikov et al. 2025 train BatchTopK with AdamW at 2e-4 and batches of 2,048, on 500 M tokens at 65,536 latents. Here
# all but the penalty is BatchTopK's, so that BatchTopK is the control.
SOURCE = "Korznikov et al. 2025, *OrtSAE: Orthogonal Sparse Autoencoders Uncover Atomic Features*, arXiv 2509.22033"
TEAL = Look("#117733", "8", (0, (3, 1)))
register(
    Method(
        "ortsae", "OrtSAE", BATCHTOPK | {"orthogonality": {}}, TEAL, shown="field", at_width=topk_rate, toy_rate=1e-2,
        papers=(SOURCE,),
    )
)  # fmt: skip
