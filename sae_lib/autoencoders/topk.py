"""TopK and BatchTopK SAEs: the strongest activations of each row, or of a whole batch, are kept."""

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_lib.autoencoders import kernels
from sae_lib.autoencoders.base import Autoencoder, Step, architecture, indicator, squared_error
from sae_lib.autoencoders.config import SECTIONS, MechanismConfig, Momentum, SAEConfig, Steps
from sae_lib.autoencoders.latents import LARGEST_SHARE, Entries, entries_above
from sae_lib.autoencoders.method import GREY, Look, Method, Shown, register

# BatchTopK guesses from the step before what will be strong enough, so that few others are above it.
GUESS_FACTOR = 0.95
CANDIDATES = 3  # times what is kept at most: above it sorting all is faster
MEDIAN_ITERATIONS = 100


def kth_largest(values: Float[Tensor, "*rows n"], k: int) -> Float[Tensor, "*rows 1"]:
    """The k-th largest value of each row."""
    if values.device.type == "cpu":
        # numpy's vectorised quickselect is about ten times faster than torch.topk on a CPU.
        place = values.shape[-1] - k
        found = np.partition(values.float().numpy(), place, axis=-1)[..., place : place + 1]
        return torch.from_numpy(found.copy()).to(values.dtype)
    return values.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)


def strongest(pre: Float[Tensor, "*batch latents"], k: int) -> Float[Tensor, "*batch latents"]:
    """ReLU(pre), with all but the k largest of each row set to zero."""
    if pre.device.type == "cpu":
        least = kth_largest(pre.detach(), k).clamp_min(torch.finfo(pre.dtype).tiny)
        kept = indicator(torch.ge, pre, least)
        if (kept.sum(dim=-1) <= k).all():
            return pre * kept
    # On a GPU, and where equal values make it more than k.
    values, indices = torch.relu(pre).topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def strongest_of_batch(
    pre: Float[Tensor, "batch d_sae"], count: int, guess: float
) -> tuple[Entries | None, Float[Tensor, ""]]:
    """Where the positive ones of the batch's `count` largest are (None where they are many), and the smallest of those;
    all that equal it are kept. The guess of the smallest changes the time it takes and nothing else.
    """
    candidates = entries_above(pre, guess, CANDIDATES * LARGEST_SHARE) if guess else None
    if candidates is None or len(candidates.found) < count:
        smallest = smallest_kept(pre, count)
        return entries_above(pre, float(np.nextafter(smallest.numpy(), np.float32(0)))), smallest
    smallest = smallest_kept(candidates.found, count)
    return candidates.where(candidates.found >= smallest), smallest


def smallest_kept(values: Float[Tensor, "..."], count: int) -> Float[Tensor, ""]:
    """The `count`-th largest of all, at least the smallest positive number: zeros are never kept."""
    return kth_largest(values.flatten(), count).squeeze().clamp_min(torch.finfo(values.dtype).tiny)


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


class TopKConfig(SAEConfig):
    knob: ClassVar[str] = "k"
    annealed: ClassVar[bool] = True
    """Whether its k can be annealed (`k_annealing`)."""

    architecture: str = "topk"
    k: int = Field(ge=1)
    """Active latents per row; on average over the batch (batchtopk, matryoshka)."""
    auxk_coefficient: float = Field(1 / 32, ge=0.0)


class KAnnealingConfig(MechanismConfig):
    """k_t = k (start + (1 - start) min(1, t / (share T))). A row gets the whole part of it (TopK), a batch that of its
    multiple (BatchTopK).

    In dictionary_learning (`k_anneal_steps`) it falls from d_in to k, in sparsify (`k_decay_steps`) from 10 k, in
    chanind's LISTA-Matryoshka from 60 to 25 over the whole run, which is the default here.
    """

    start: float = Field(2.4, ge=1.0)
    share: float = Field(1.0, gt=0.0, le=1.0)

    def check(self, config: SAEConfig) -> None:
        if not isinstance(config, TopKConfig) or not config.annealed:
            raise ValueError(f"k_annealing is for the TopK family, not for {config.architecture}; leave it out")
        if self.start * config.k > config.d_sae:
            most = f"{self.start:g} times k = {config.k} is above d_sae = {config.d_sae}"
            raise ValueError(f"k_annealing.start: {most}; lower it or widen the SAE")

    def k_at(self, k: int, time: float) -> float:
        """k after the share `time` of the run."""
        fallen = min(1.0, time / self.share)
        return self.start * k + (k - self.start * k) * fallen if fallen < 1.0 else k


SECTIONS["k_annealing"] = KAnnealingConfig


@architecture(TopKConfig)
class TopK(Autoencoder):
    """Only the k largest of ReLU(pre) of each row are kept (Gao et al. 2024, arXiv 2406.04093).

    Auxiliary loss (AuxK), which keeps latents alive: the d_in / 2 strongest *dead* latents reconstruct, without bias,
    the residual x - x_hat (detached); their squared error over the residual's variance, times 1/32, is added.
    """

    cfg: TopKConfig

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return strongest(pre, self.cfg.k)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        return strongest(step.pre, int(self.k_at(step)))

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        return Entries(*kernels.strongest_of_rows(pre.numpy(), int(self.k_at(step))), self.d_sae)

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        self.b_dec.data.copy_(geometric_median(x))

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""] | None:
        if not step.any_dead or not self.cfg.auxk_coefficient:
            return None
        residual = (step.x - step.x_hat).detach()
        dead = step.dead.nonzero().squeeze(1)
        candidates = self.pre_activations(step.x, dead)
        k = self.d_in // 2
        active = strongest(candidates, k) if k < len(dead) else torch.relu(candidates)
        x_hat = active.to(self.dtype) @ self.W_dec.index_select(0, dead)
        error = squared_error(residual, x_hat)
        variance = (residual - residual.mean(dim=0)).square().sum(dim=1).mean().clamp_min(1e-8)
        return self.cfg.auxk_coefficient * error / variance


class BatchTopKConfig(TopKConfig):
    architecture: str = "batchtopk"
    threshold_momentum: Momentum = 0.999
    """Of the EMA that becomes the evaluation threshold."""
    threshold_start_step: Steps = 1000


@architecture(BatchTopKConfig)
class BatchTopK(TopK):
    """The k * batch largest activations of the whole batch are kept (Bussmann et al. 2024, arXiv 2412.06410). A row
    evaluated alone has no batch: evaluation keeps what is above `threshold`, an EMA of the smallest activation kept in
    training."""

    cfg: BatchTopKConfig
    scaled: ClassVar[tuple[str, ...]] = ("b_dec", "threshold")
    _guess = 0.0  # see `strongest_of_batch`

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        self.threshold: Tensor = nn.Buffer(torch.zeros(()))

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.relu(pre) * indicator(torch.ge, pre, self.threshold)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        smallest = smallest_kept(step.pre.detach(), int(self.k_at(step) * len(step.pre)))
        self._track_threshold(smallest, step)
        return step.pre * indicator(torch.ge, step.pre, smallest)

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        entries, smallest = strongest_of_batch(pre, int(self.k_at(step) * len(pre)), self._guess)
        self._guess = GUESS_FACTOR * float(smallest)
        if entries is not None:
            self._track_threshold(smallest, step)
        return entries

    @torch.no_grad()
    def _track_threshold(self, smallest: Float[Tensor, ""], step: Step) -> None:
        if step.index >= self.cfg.threshold_start_step:
            momentum = self.cfg.threshold_momentum
            average = momentum * self.threshold + (1 - momentum) * smallest
            self.threshold.copy_(torch.where(self.threshold == 0, smallest, average))


def topk_rate(d_sae: int) -> dict[str, Any]:
    """The learning rate falls with the square root of the width (Gao et al. 2024)."""
    return {"optimizer": {"learning_rate": 2e-4 / (d_sae / 2**14) ** 0.5}}


# SAEBench's trainer, as dictionary_learning has it.
TOPK: dict[str, Any] = {"architecture": "topk", "subtract_b_dec": True, "optimizer": {"clip_norm": 1.0}}


def topk_method(key: str, name: str, recipe: dict[str, Any], look: Look, shown: Shown = "field", **more: Any) -> None:
    """Register a method of the TopK family; what `recipe` and `more` do not say is as TopK has it."""
    register(Method(key, name, TOPK | recipe, look, shown, **{"at_width": topk_rate, "toy_rate": 1e-2, **more}))


GAO = "Gao et al. 2024, *Scaling and evaluating sparse autoencoders*, arXiv 2406.04093"
BUSSMANN = "Bussmann et al. 2024, *BatchTopK Sparse Autoencoders*, arXiv 2412.06410"
BATCHTOPK, BROWN = TOPK | {"architecture": "batchtopk"}, Look("#ca9161", "D", (0, (4, 1, 1, 1)))
topk_method("topk", "TopK", TOPK, Look("#de8f05", "s", "--"), "main", papers=(GAO,))
topk_method("batchtopk", "BatchTopK", BATCHTOPK, BROWN, "main", papers=(BUSSMANN,))
# TopK, so that the controls stand at the same L0 as the others: before its first step, and trained, with decoder rows
# dealt out to other latents.
topk_method("untrained", "Untrained", TOPK, Look(GREY, "*", "-"), "control", toy_rate=None)
topk_method("permuted", "Permuted decoder", TOPK, Look(GREY, "P", ":"), "control", toy_rate=None)
# A threshold that averages over a thousand steps would be that of the larger k before.
ANNEALED: dict[str, Any] = BATCHTOPK | {"k_annealing": {}, "threshold_momentum": 0.99}
GOLD = Look("#b8860b", "d", (0, (4, 1, 1, 1, 1, 1)))
topk_method("batchtopk_annealed", "BatchTopK, k annealed", ANNEALED, GOLD, papers=(BUSSMANN,))
