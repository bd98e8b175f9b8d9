"""The Matryoshka SAE: dictionaries nested in one another, each of which must reconstruct on its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_lib.autoencoders.base import Step, architecture, squared_error
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.topk import TOPK, BatchTopK, BatchTopKConfig, topk_rate


class MatryoshkaConfig(BatchTopKConfig):
    """The Matryoshka SAE."""

    architecture: str = "matryoshka"
    prefixes: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...]
    """Increasing fractions of d_sae, the last one 1: latents that reconstruct on their own."""

    @model_validator(mode="after")
    def _nested(self) -> MatryoshkaConfig:
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


@architecture(MatryoshkaConfig)
class Matryoshka(BatchTopK):
    """BatchTopK whose loss is the mean over prefixes m_1 < ... < m_n = d_sae of the squared error of the first m_i
    latents alone,

        L = 1/n sum_i ||x - (f_{1:m_i} W_dec_{1:m_i} + b_dec)||_2^2 + AuxK

    (Bussmann et al. 2025, arXiv 2503.17547; equal weights, as in dictionary_learning). Early latents cannot leave a
    part of a general feature to a later, more specific one. Selection, threshold and AuxK see the whole dictionary.
    """

    cfg: MatryoshkaConfig

    def __init__(self, config: MatryoshkaConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        sizes = config.prefix_sizes()
        self.groups = [after - before for before, after in zip((0, *sizes), sizes, strict=False)]
        self._shorter: list[Tensor] = []  # reconstructions by all prefixes but the last, of the current training step

    def decode_training(self, step: Step) -> Float[Tensor, "batch d_in"]:
        assert step.f is not None
        x_hat: Tensor = self.b_dec
        self._shorter = []
        for part in step.f.decode_groups(self.W_dec, self.groups):
            x_hat = x_hat + part
            self._shorter.append(x_hat)
        return self._shorter.pop()

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        whole, *shorter = self.prefix_errors(step)
        return sum(shorter, whole) / len(self.groups)

    def prefix_errors(self, step: Step) -> list[Float[Tensor, ""]]:
        """||x - x_hat||^2 by the whole dictionary, then by each shorter prefix, the shortest first."""
        assert step.reconstruction is not None
        shorter, self._shorter = self._shorter, []
        return [step.reconstruction, *(squared_error(step.x, x_hat) for x_hat in shorter)]


SOURCE = "Bussmann et al. 2025, *Learning Multi-Level Features with Matryoshka Sparse Autoencoders*, arXiv 2503.17547"


def _method(
    key: str, name: str, prefixes: tuple[float, ...], look: Look, shown: Literal["main", "toy"], toy_rate: float | None
) -> None:
    recipe: dict[str, Any] = TOPK | {"architecture": "matryoshka", "prefixes": prefixes}
    register(Method(key, name, recipe, look, shown, topk_rate, toy_rate, (SOURCE,)))


VIOLET, WINE = Look("#4b0092", "<", (0, (5, 1, 1, 1, 1, 1))), Look("#882255", ">", (0, (2, 1)))
_method("matryoshka_2", "Matryoshka (2 levels)", (0.25, 1.0), VIOLET, "main", None)
# Groups of latents that double in size, the last one taking what is left: Bussmann et al. 2025 (2,048, 6,144, 14,336,
# 30,720 of 65,536 latents, i.e. 1/32, 3/32, ...), here with four levels instead of five.
_method("matryoshka_4", "Matryoshka (4 levels)", (1 / 16, 3 / 16, 7 / 16, 1.0), WINE, "main", None)
# On a toy three parents, then as many as families have levels of detail, then all: 3, 8 and 20 of 20 latents.
TOY_PREFIXES = (3 / 20, 8 / 20, 1.0)
_method("matryoshka", "Matryoshka", TOY_PREFIXES, WINE, "toy", 1e-2)
