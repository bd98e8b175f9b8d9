"""The Matryoshka SAE: nested dictionaries, each of which must reconstruct on its own. Balanced, the inner ones count
less, so that they hedge less; sampled, they are others at every step: no width is special; LISTA-Matryoshka takes a
second look at what is left over, and orders prefixes by how often latents fire."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Step, architecture, indicator, squared_error
from sae_lib.autoencoders.config import Momentum
from sae_lib.autoencoders.latents import Latents
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import BatchTopK, BatchTopKConfig, topk_method

PRESENT = 0.75  # of a latent's mean activation


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


class ListaMatryoshkaConfig(MatryoshkaConfig):
    architecture: str = "lista_matryoshka"
    eta: float = Field(0.3, ge=0.0)
    """Length of the LISTA step; 0 for none."""
    detached: bool = True
    """Whether a prefix takes the reconstruction by the one before it as given."""
    order: Literal["frequency", "index", "magnitude", "presence"] = "frequency"
    """Of latents in the prefixes: by how often they fire, their places, their mean activation where they do, or how
    often they would be read off the input, on or not."""
    frequency_momentum: Momentum = 0.99
    tilt: float = Field(0.002, ge=0.0)
    """How much more badly reconstructed rows count."""


@architecture(ListaMatryoshkaConfig)
class ListaMatryoshka(Matryoshka):
    """BatchTopK that encodes twice: with f_0 the latents of a first pass and x_hat_0 what they reconstruct,

        f = BatchTopK(x W_enc + b_enc + eta (x - x_hat_0) W_enc)

    (one step of LISTA), and whose prefixes hold the latents that fire most often (an EMA), each learning what the one
    before it leaves, sg stopping the gradient:

        L = T(x - x_hat) + sum_{i<n} T(x - sg(x_hat_{i-1}) - part_i) + AuxK

    T is the mean over rows of ||e||^2 with weights softmax(tilt ||e||^2 / mean ||e||^2), without gradient. Each pass
    has a threshold of its own for evaluation.

    Source: chanind/claude-auto-research-synthsaebench. There: SynthSAEBench, 4,096 latents, k from 60 to 25 over the
    run, batches of 1,024, 200 M samples. Decoder rows have any norm there (latents are scaled by it), the error is that
    of x_hat against x - b_dec, and AuxK, SAELens', takes the pre-activations of the second pass; here rows have norm 1,
    the error is that against x, and AuxK is that of TopK.
    """

    cfg: ListaMatryoshkaConfig
    exportable = False
    scaled = ("b_dec", "threshold", "first_threshold")

    def __init__(self, config: ListaMatryoshkaConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        self.frequency: Tensor = nn.Buffer(torch.zeros(config.d_sae))
        self.first_threshold: Tensor = nn.Buffer(torch.zeros(()))
        if config.order not in ("frequency", "index"):  # mean activation of each latent where it is on
            self.level: Tensor = nn.Buffer(torch.zeros(config.d_sae))
        self._first_guess = 0.0

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        if not self.cfg.eta:
            return super().encode(x)
        pre = self.pre_activations(x)
        first = torch.relu(pre) * indicator(torch.ge, pre, self.first_threshold)
        return self.activate(self._product(self._refined(x, self.decode(first)), self.W_enc, self.b_enc))

    def encode_training(self, step: Step) -> Latents:
        if not self.cfg.eta:
            return super().encode_training(step)
        self._swap_passes()
        first = super().encode_training(step)
        self._swap_passes()
        x = self._refined(step.x, first.decode(self.W_dec) + self.b_dec)
        return self._encode_product(step, x, self.W_enc, self.b_enc)

    def _refined(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """What the second pass multiplies by W_enc."""
        return (x - self.b_dec if self.cfg.subtract_b_dec else x) + self.cfg.eta * (x - x_hat)

    def _swap_passes(self) -> None:
        """Exchange what BatchTopK keeps of one pass with what it keeps of the other."""
        self.threshold, self.first_threshold = self.first_threshold, self.threshold
        self._guess, self._first_guess = self._first_guess, self._guess

    def decode_training(self, step: Step) -> Float[Tensor, "batch d_in"]:
        f, step.kept = step.f, []
        W_dec: Tensor = self.W_dec
        x_hat: Tensor = self.b_dec
        if self.cfg.order != "index":
            order = self._counted(step).argsort(descending=True, stable=True)
            f, W_dec = f.reordered(order), W_dec.index_select(0, order)
        for part in f.decode_groups(W_dec, self.cfg.level_sizes()):
            before = x_hat.detach() if self.cfg.detached and step.kept else x_hat
            step.kept.append(before + part)
            x_hat = x_hat + part
        step.kept.pop()
        return x_hat

    @torch.no_grad()
    def _counted(self, step: Step) -> Float[Tensor, " d_sae"]:
        """By what latents are ordered, this step included. Presence is the share of rows on which d_i . (x - b_dec) is
        above three quarters of the latent's mean activation where it is on: a parent is as present under a child that
        has absorbed it, and a child (p + c) / sqrt 2 is at half of its own level where the parent is alone."""
        momentum, value = self.cfg.frequency_momentum, step.firing_rate
        if self.cfg.order != "frequency":
            seen = torch.where(value > 0, step.latents.mean() / value.clamp_min(1e-12), self.level)
            self.level.copy_(torch.where(self.level > 0, momentum * self.level + (1 - momentum) * seen, seen))
            value = self.level
        if self.cfg.order == "presence":
            there = ((step.x - self.b_dec) @ self.W_dec.T > PRESENT * self.level) & (self.level > 0)
            value = there.mean(dim=0, dtype=torch.float32)
        average = momentum * self.frequency + (1 - momentum) * value
        self.frequency.copy_(torch.where(self.frequency.any(), average, value))
        return self.frequency

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        errors = [(step.x - x_hat).square().sum(dim=1) for x_hat in (step.x_hat, *step.kept)]
        return torch.stack([tilted_mean(error, self.cfg.tilt) for error in errors]).sum()


def tilted_mean(error: Float[Tensor, " batch"], tilt: float) -> Float[Tensor, ""]:
    """The mean of `error`, large ones weighted by softmax(tilt error / mean error)."""
    if not tilt:
        return error.mean()
    seen = error.detach()
    return torch.dot(torch.softmax(tilt * seen / seen.mean().clamp_min(1e-12), dim=0), error)


SOURCE = "Bussmann et al. 2025, *Learning Multi-Level Features with Matryoshka Sparse Autoencoders*, arXiv 2503.17547"
CHANIN = "Chanin et al. 2025, *Feature Hedging: Correlated Features Break Narrow Sparse Autoencoders*, arXiv 2505.11756"
AUDIT = "decoderesearch 2026, *SAEBench reliability audit*, arXiv 2605.18229"
SYNTH = "Chanin 2026, *LISTA-Matryoshka SAEs*, github.com/chanind/claude-auto-research-synthsaebench"
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
LISTA: dict[str, Any] = {
    "architecture": "lista_matryoshka",
    "prefixes": (1 / 32, 1 / 8, 1 / 2, 1.0),
    "k_annealing": {},
    "threshold_momentum": 0.99,
    "threshold_start_step": 0,
    "optimizer": {"learning_rate": 3e-4, "warmup_steps": 0, "decay_fraction": 1 / 3},
}
PRESENCE = LISTA | {"order": "presence"}
FERN, MINT = Look("#117733", "8", (0, (1, 1, 3, 1))), Look("#44aa99", "8", (0, (3, 1, 3, 1, 1, 1)))
topk_method("lista_matryoshka", "LISTA-Matryoshka", LISTA, FERN, at_width=None, papers=(SYNTH,), **ON_TOYS)
topk_method("presence_matryoshka", "LISTA-Matryoshka by presence", PRESENCE, MINT, at_width=None, **ON_TOYS)
