"""The Matryoshka SAE: dictionaries nested in one another, each of which must reconstruct on its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Step, squared_error
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.autoencoders.topk import BatchTopK


class Matryoshka(BatchTopK):
    """BatchTopK whose loss is the mean over prefixes m_1 < ... < m_n = d_sae of the squared error of the first m_i
    latents alone,

        L = 1/n sum_i ||x - (f_{1:m_i} W_dec_{1:m_i} + b_dec)||_2^2 + AuxK

    (Bussmann et al. 2025, arXiv 2503.17547; equal weights, as in dictionary_learning). Early latents cannot leave a
    part of a general feature to a later, more specific one. Selection, threshold and AuxK see the whole dictionary.
    """

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
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
        assert step.reconstruction is not None
        shorter, self._shorter = self._shorter, []
        total = step.reconstruction
        for x_hat in shorter:
            total = total + squared_error(step.x, x_hat)
        return total / len(self.groups)
