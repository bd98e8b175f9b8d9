"""Sampled Matryoshka: other prefixes at every step, so that no width is special."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Step, architecture
from sae_lib.autoencoders.matryoshka import Matryoshka, MatryoshkaConfig
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.topk import TOPK, topk_rate


class SampledMatryoshkaConfig(MatryoshkaConfig):
    """The Matryoshka SAE's settings, and the prefixes that are drawn."""

    architecture: str = "sampled_matryoshka"
    prefixes: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = (1.0,)
    """Those that reconstruct at every step."""
    levels: int = Field(2, ge=1)
    """How many shorter prefixes are drawn at each step."""
    narrowest: float = Field(1 / 512, gt=0.0, lt=1.0)
    """The fraction of d_sae below which none is drawn."""


@architecture(SampledMatryoshkaConfig)
class SampledMatryoshka(Matryoshka):
    """BatchTopK whose loss is the sum of the squared errors of the whole dictionary and of `levels` prefixes, their
    widths drawn at each step with uniform logarithm,

        L = ||x - x_hat||_2^2 + sum_j ||x - x_hat_{1:w_j}||_2^2 + AuxK,   ln w_j ~ U(ln w_min, ln d_sae)

    (decoderesearch/saebench-reliability-audit, arXiv 2605.18229). The authors: Gemma-2-2b, layer 12, 32,768 latents of
    which 64 at least, 1 to 4 levels, k = 150, Adam at 3e-4 without warm-up, decay over the last fifth, 300 M tokens in
    batches of 4,096, an AuxK for each prefix; here one AuxK for all latents, as in Matryoshka.
    """

    cfg: SampledMatryoshkaConfig

    def decode_training(self, step: Step) -> Float[Tensor, "batch d_in"]:
        least = max(1.0, self.cfg.narrowest * self.d_sae)
        uniform = torch.rand(self.cfg.levels, generator=step.generator, device=step.generator.device)
        # A width that is drawn twice counts once, as the authors have it.
        drawn = (math.log(least) + uniform * math.log(self.d_sae / least)).exp().int().clamp(1, self.d_sae - 1)
        sizes = sorted({*drawn.tolist(), *self.cfg.prefix_sizes()})
        self.groups = [after - before for before, after in zip((0, *sizes), sizes, strict=False)]
        return super().decode_training(step)

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        whole, *shorter = self.prefix_errors(step)
        return sum(shorter, whole)


SOURCE = "decoderesearch 2026, *SAEBench reliability audit*, arXiv 2605.18229"
SAMPLED: dict[str, Any] = TOPK | {"architecture": "sampled_matryoshka"}
register(
    Method(
        "sampled_matryoshka", "Sampled Matryoshka", SAMPLED, Look("#332288", ">", (0, (6, 1, 1, 1))), "field",
        topk_rate, 1e-2, (SOURCE,),
    )
)  # fmt: skip
