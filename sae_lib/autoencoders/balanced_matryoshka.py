"""Balanced Matryoshka: the inner prefixes count less, so that they hedge less."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Step, architecture
from sae_lib.autoencoders.matryoshka import TOY_PREFIXES, Matryoshka, MatryoshkaConfig
from sae_lib.autoencoders.method import METHODS, Look, Method, register
from sae_lib.autoencoders.topk import topk_rate


class BalancedMatryoshkaConfig(MatryoshkaConfig):
    """The Matryoshka SAE's settings, and the weights of its prefixes."""

    architecture: str = "balanced_matryoshka"
    balance: float = Field(0.75, ge=0.0)
    """m: the weight of each prefix, relative to the next longer one; 1 for equal weights, 0 for BatchTopK."""


@architecture(BalancedMatryoshkaConfig)
class BalancedMatryoshka(Matryoshka):
    """Prefix i of n counts m^(n - i), the whole dictionary 1:

        L = sum_i m^(n - i) ||x - x_hat_i||_2^2 + AuxK

    (Chanin et al. 2025, arXiv 2505.11756). A narrow prefix mixes correlated features (hedging), which equal weights
    ask of it; m = 0 lets the dictionary absorb; m = 0.75 balances the two. With m = 1 it is n times the Matryoshka's
    reconstruction term.

    The authors (chanind/feature-hedging-paper): Gemma-2-2b, layer 12, 500 M tokens in batches of 4,096, prefixes of
    128, 512, 2,048, 8,192 and 32,768 latents, k = 40, Adam at 1e-4 without warm-up or decay, decoder rows of any norm,
    an AuxK for each prefix. Here everything but the weights is as in `matryoshka_4`, which is thereby the control.
    """

    cfg: BalancedMatryoshkaConfig

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        total, *shorter = self.prefix_errors(step)
        for distance, error in enumerate(reversed(shorter), start=1):
            total = total + self.cfg.balance**distance * error
        return total


SOURCE = "Chanin et al. 2025, *Feature Hedging: Correlated Features Break Narrow Sparse Autoencoders*, arXiv 2505.11756"
BALANCED: dict[str, Any] = {**METHODS["matryoshka_4"].recipe, "architecture": "balanced_matryoshka"}
register(
    Method(
        "balanced_matryoshka", "Balanced Matryoshka", BALANCED, Look("#aa4499", "<", (0, (3, 1, 1, 1))), "field",
        topk_rate, 1e-2, (SOURCE,), {"prefixes": TOY_PREFIXES},
    )
)  # fmt: skip
