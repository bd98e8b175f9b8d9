"""TopK and BatchTopK SAEs with the auxiliary loss that keeps latents alive."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step
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
        values, indices = torch.relu(pre).topk(self.cfg.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        self.b_dec.data.copy_(geometric_median(x))

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""] | None:
        if not step.any_dead or not self.cfg.auxk_coefficient:
            return None
        assert step.pre is not None and step.x_hat is not None
        residual = (step.x - step.x_hat).detach()
        candidates = torch.where(step.dead, torch.relu(step.pre), 0.0)
        values, indices = candidates.topk(min(self.d_in // 2, self.d_sae), dim=-1, sorted=False)
        explained = torch.zeros_like(candidates).scatter(-1, indices, values) @ self.W_dec
        error = (residual - explained).square().sum(dim=1).mean()
        variance = (residual - residual.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-8)
        return self.cfg.auxk_coefficient * error / variance


class BatchTopK(TopK):
    """The k * batch largest activations of the whole batch are kept, so rows may use more or fewer than k
    (Bussmann et al. 2024, arXiv 2412.06410).

    A row evaluated alone has no batch: evaluation keeps what is above `threshold`, an EMA of the smallest
    activation kept in training.
    """

    threshold: Tensor

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        self.register_buffer("threshold", torch.zeros(()))
        self._hint = 0.0  # only saves time: no result depends on it

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.where(pre >= self.threshold, torch.relu(pre), 0.0)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        assert self.cfg.k is not None and step.pre is not None
        active = torch.relu(step.pre)
        smallest = self._smallest_kept(active.detach().flatten(), self.cfg.k * len(active))
        self._track_threshold(smallest, step)
        return torch.where(active >= smallest, active, 0.0)

    def _smallest_kept(self, flat: Float[Tensor, " latents"], count: int) -> Float[Tensor, ""]:
        """The `count`-th largest value, at least the smallest positive number (zeros are never kept)."""
        if flat.device.type == "cpu":
            # Selecting among half a million numbers is the slowest part of a step: half of the last step's value leaves
            # few enough, and if it leaves too few, all are searched.
            candidates = flat[flat > self._hint]
            flat = candidates if len(candidates) >= count else flat
        smallest = flat.topk(count, sorted=False).values.amin()
        self._hint = float(smallest) / 2 if flat.device.type == "cpu" else 0.0
        return smallest.clamp_min(torch.finfo(flat.dtype).tiny)

    @torch.no_grad()
    def _track_threshold(self, smallest: Float[Tensor, ""], step: Step) -> None:
        if step.index < self.cfg.threshold_start_step:
            return
        momentum = self.cfg.threshold_momentum
        average = momentum * self.threshold + (1 - momentum) * smallest
        self.threshold.copy_(torch.where(self.threshold == 0, smallest, average))

    def in_units_of_x(self) -> list[Tensor]:
        return [*super().in_units_of_x(), self.threshold]
