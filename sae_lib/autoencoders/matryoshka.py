"""The Matryoshka SAE: nested dictionaries, each of which must reconstruct on its own. Balanced, the inner ones count
less, so that they hedge less; sampled, they are others at every step: no width is special."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_lib.autoencoders.base import Step, architecture, squared_error
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import BatchTopK, BatchTopKConfig, topk_method


class MatryoshkaConfig(BatchTopKConfig):
    architecture: str = "matryoshka"
    prefixes: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...]
    """Increasing fractions of d_sae, the last one 1: latents that reconstruct on their own."""

    @model_validator(mode="after")
    def _nested(self) -> "MatryoshkaConfig":
        given = ", ".join(f"{p:g}" for p in self.prefixes)
        if not self.prefixes or self.prefixes[-1] != 1.0 or list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(f"matryoshka needs prefixes, increasing fractions of d_sae that end in 1, not ({given})")
        sizes = self.prefix_sizes()
        if len({0, *sizes}) <= len(sizes):
            raise ValueError(
                f"prefixes ({given}) of d_sae = {self.d_sae} are {sizes} latents, but each must hold more latents "
                "than the one before it; leave one out or widen the SAE"
            )
        return self

    def prefix_sizes(self) -> tuple[int, ...]:
        """The number of latents in each of `prefixes`."""
        return tuple(round(fraction * self.d_sae) for fraction in self.prefixes)

    def level_sizes(self) -> tuple[int, ...]:
        """How many latents each prefix adds."""
        return added(self.prefix_sizes())


def added(sizes: Sequence[int]) -> tuple[int, ...]:
    """What each of increasing sizes adds to the one before it."""
    return tuple(after - before for before, after in pairwise((0, *sizes)))


@architecture(MatryoshkaConfig)
class Matryoshka(BatchTopK):
    """BatchTopK whose loss is the mean over prefixes m_1 < ... < m_n = d_sae of the error of the first m_i latents
    alone,

        L = 1/n sum_i ||x - (f_{1:m_i} W_dec_{1:m_i} + b_dec)||_2^2 + AuxK

    (Bussmann et al. 2025, arXiv 2503.17547; equal weights, as in dictionary_learning): early latents cannot leave a
    part of a general feature to a later, more specific one. Selection, threshold and AuxK see the whole dictionary.
    """

    cfg: MatryoshkaConfig

    def widths(self, step: Step) -> Sequence[int]:
        """How many latents each prefix has at this step."""
        return self.cfg.prefix_sizes()

    def decode_training(self, step: Step) -> Float[Tensor, "batch d_in"]:
        """By the whole dictionary; `step.kept` are the reconstructions by all shorter prefixes."""
        parts = step.f.decode_groups(self.W_dec, added(self.widths(step)))
        _, *step.kept, x_hat = accumulate(parts, initial=self.b_dec)
        return x_hat

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        whole, *shorter = self.prefix_errors(step)
        return sum(shorter, whole) / len(self.cfg.prefixes)

    def prefix_errors(self, step: Step) -> list[Float[Tensor, ""]]:
        """||x - x_hat||^2 by the whole dictionary, then by each shorter prefix, the shortest first."""
        return [step.reconstruction, *(squared_error(step.x, x_hat) for x_hat in step.kept)]


class BalancedMatryoshkaConfig(MatryoshkaConfig):
    architecture: str = "balanced_matryoshka"
    balance: float = Field(0.75, ge=0.0)
    """m: the weight of each prefix, relative to the next longer one; 1 for equal weights, 0 for BatchTopK."""


@architecture(BalancedMatryoshkaConfig)
class BalancedMatryoshka(Matryoshka):
    """L = sum_i m^(n - i) ||x - x_hat_i||_2^2 + AuxK over prefixes i of n (Chanin et al. 2025, arXiv 2505.11756).

    A narrow prefix mixes correlated features (hedging), which equal weights ask of it; m = 0 lets the dictionary
    absorb; m = 0.75 balances the two. With m = 1 it is n times the Matryoshka's reconstruction term.

    The authors (chanind/feature-hedging-paper) have k = 40, Adam at 1e-4 without warm-up or decay, decoder rows of any
    norm, an AuxK for each prefix. Here all but the weights is as in `matryoshka_4`, which is thereby the control.
    """

    cfg: BalancedMatryoshkaConfig

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        total, *shorter = self.prefix_errors(step)
        for distance, error in enumerate(reversed(shorter), start=1):
            total = total + self.cfg.balance**distance * error
        return total


class SampledMatryoshkaConfig(MatryoshkaConfig):
    architecture: str = "sampled_matryoshka"
    prefixes: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = (1.0,)
    """Those that reconstruct at every step."""
    levels: int = Field(2, ge=1)
    """How many shorter prefixes are drawn at each step."""
    narrowest: float = Field(1 / 512, gt=0.0, lt=1.0)
    """The fraction of d_sae below which none is drawn."""


@architecture(SampledMatryoshkaConfig)
class SampledMatryoshka(Matryoshka):
    """BatchTopK whose loss also has the errors of `levels` prefixes, widths drawn at each step with uniform logarithm,

        L = ||x - x_hat||_2^2 + sum_j ||x - x_hat_{1:w_j}||_2^2 + AuxK,   ln w_j ~ U(ln w_min, ln d_sae)

    (decoderesearch/saebench-reliability-audit, arXiv 2605.18229). The authors: 32,768 latents of which 64 at least, 1
    to 4 levels, k = 150, Adam at 3e-4 without warm-up, an AuxK for each prefix; here one for all latents.
    """

    cfg: SampledMatryoshkaConfig

    def widths(self, step: Step) -> Sequence[int]:
        least = max(1.0, self.cfg.narrowest * self.d_sae)
        uniform = torch.rand(self.cfg.levels, generator=step.generator, device=step.generator.device)
        # A width that is drawn twice counts once, as the authors have it.
        drawn = (math.log(least) + uniform * math.log(self.d_sae / least)).exp().int().clamp(1, self.d_sae - 1)
        return sorted({*drawn.tolist(), *self.cfg.prefix_sizes()})

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        whole, *shorter = self.prefix_errors(step)
        return sum(shorter, whole)


SOURCE = "Bussmann et al. 2025, *Learning Multi-Level Features with Matryoshka Sparse Autoencoders*, arXiv 2503.17547"
CHANIN = "Chanin et al. 2025, *Feature Hedging: Correlated Features Break Narrow Sparse Autoencoders*, arXiv 2505.11756"
AUDIT = "decoderesearch 2026, *SAEBench reliability audit*, arXiv 2605.18229"
VIOLET, WINE = Look("#4b0092", "<", (0, (5, 1, 1, 1, 1, 1))), Look("#882255", ">", (0, (2, 1)))
ROSE, INDIGO = Look("#aa4499", "<", (0, (3, 1, 1, 1))), Look("#332288", ">", (0, (6, 1, 1, 1)))
# Groups of latents that double in size, the last one taking what is left: Bussmann et al. 2025 (2,048, 6,144, 14,336,
# 30,720 of 65,536 latents, i.e. 1/32, 3/32, ...), here with four levels instead of five.
FOUR = (1 / 16, 3 / 16, 7 / 16, 1.0)
# On a toy three parents, then as many as families have levels of detail, then all: 3, 8 and 20 of 20 latents.
TOY_PREFIXES = (3 / 20, 8 / 20, 1.0)
TWO, NESTED, TOY = ({"architecture": "matryoshka", "prefixes": p} for p in ((0.25, 1.0), FOUR, TOY_PREFIXES))
topk_method("matryoshka_2", "Matryoshka (2 levels)", TWO, VIOLET, "main", toy_rate=None, papers=(SOURCE,))
topk_method("matryoshka_4", "Matryoshka (4 levels)", NESTED, WINE, "main", toy_rate=None, papers=(SOURCE,))
topk_method("matryoshka", "Matryoshka", TOY, WINE, "toy", papers=(SOURCE,))
BALANCED = {"architecture": "balanced_matryoshka", "prefixes": FOUR}
ON_TOYS: dict[str, Any] = {"toy": {"prefixes": TOY_PREFIXES}}
topk_method("balanced_matryoshka", "Balanced Matryoshka", BALANCED, ROSE, papers=(CHANIN,), **ON_TOYS)
SAMPLED = {"architecture": "sampled_matryoshka"}
topk_method("sampled_matryoshka", "Sampled Matryoshka", SAMPLED, INDIGO, papers=(AUDIT,))
