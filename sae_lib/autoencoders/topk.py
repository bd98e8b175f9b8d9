"""TopK and BatchTopK SAEs with the auxiliary loss that keeps latents alive."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.active import ActiveLatents, EncoderProduct
from sae_lib.autoencoders.base import Autoencoder, Step, indicator, squared_error
from sae_lib.autoencoders.latents import Latents
from sae_lib.autoencoders.selection import (
    GUESS_FACTOR,
    kth_largest,
    strong_everywhere,
    strongest,
    strongest_of_batch,
    strongest_of_rows,
)
from sae_lib.sae_config import SAEConfig

MEDIAN_ITERATIONS = 100


def geometric_median(x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " d_in"]:
    """The point with the least summed distance to the rows (Weiszfeld's iteration)."""
    median = x.mean(dim=0)
    for _ in range(MEDIAN_ITERATIONS):
        weight = 1.0 / (x - median).norm(dim=1).clamp_min(1e-6)
        moved = (weight[:, None] * x).sum(dim=0) / weight.sum()
        if torch.dist(moved, median) < 1e-5 * median.norm().clamp_min(1e-6):
            return moved
        median = moved
    return median


class TopK(Autoencoder):
    """Only the k largest of ReLU(pre) of each row are kept (Gao et al. 2024, arXiv 2406.04093).

    Auxiliary loss (AuxK): the d_in / 2 strongest *dead* latents reconstruct, without bias, the residual x - x_hat
    (detached); their squared error over the residual's variance, times 1/32, is added. It pulls dead latents towards
    what is not yet explained.
    """

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        assert self.cfg.k is not None
        return strongest(pre, self.cfg.k, self.group)

    def activate_entries(self, step: Step, product: EncoderProduct) -> Latents | None:
        assert self.cfg.k is not None
        if self.group.world > 1:
            return None
        entries = strongest_of_rows(product.pre, self.cfg.k)
        return ActiveLatents(product.at(entries), entries)

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        self.b_dec.data.copy_(geometric_median(x))

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""] | None:
        if not step.any_dead or not self.cfg.auxk_coefficient:
            return None
        assert step.x_hat is not None
        residual = (step.x - step.x_hat).detach()
        dead = step.dead.nonzero().squeeze(1)
        candidates = self.encoder_product(step.x, self.b_enc, dead)
        k = self.d_in // 2
        n_dead = self.group.sum(torch.tensor(len(dead), device=dead.device))
        active = strongest(candidates, k, self.group) if k < n_dead else torch.relu(candidates)
        x_hat = self.group.total(active.to(self.dtype) @ self.W_dec.index_select(0, dead))
        error = squared_error(residual, x_hat)
        variance = (residual - residual.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-8)
        return self.cfg.auxk_coefficient * error / variance


class BatchTopK(TopK):
    """The k * batch largest activations of the whole batch are kept, so rows may use more or fewer than k
    (Bussmann et al. 2024, arXiv 2412.06410).

    A row evaluated alone has no batch: evaluation keeps what is above `threshold`, an EMA of the smallest
    activation kept in training.
    """

    threshold: Tensor
    _guess = 0.0  # see `strongest_of_batch`

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        self.register_buffer("threshold", torch.zeros(()))

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.relu(pre) * indicator(torch.ge, pre, self.threshold)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        assert self.cfg.k is not None and step.pre is not None
        # At least the smallest positive number: zeros are never kept.
        tiny = torch.finfo(step.pre.dtype).tiny
        count = self.cfg.k * len(step.pre)
        smallest = kth_largest(strong_everywhere(step.pre.detach().flatten(), count, self.group), count)
        smallest = smallest.squeeze().clamp_min(tiny)
        self._track_threshold(smallest, step)
        return step.pre * indicator(torch.ge, step.pre, smallest)

    def activate_entries(self, step: Step, product: EncoderProduct) -> Latents | None:
        assert self.cfg.k is not None
        if self.group.world > 1:
            return None
        entries, smallest = strongest_of_batch(product.pre, self.cfg.k * len(product.pre), self._guess)
        self._guess = GUESS_FACTOR * float(smallest)
        if entries is None:
            return None
        self._track_threshold(smallest, step)
        return ActiveLatents(product.at(entries), entries)

    @torch.no_grad()
    def _track_threshold(self, smallest: Float[Tensor, ""], step: Step) -> None:
        if step.index < self.cfg.threshold_start_step:
            return
        momentum = self.cfg.threshold_momentum
        average = momentum * self.threshold + (1 - momentum) * smallest
        self.threshold.copy_(torch.where(self.threshold == 0, smallest, average))

    def in_units_of_x(self) -> list[Tensor]:
        return [*super().in_units_of_x(), self.threshold]
