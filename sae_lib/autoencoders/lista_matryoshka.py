"""LISTA-Matryoshka: a second look at what is left over, and prefixes ordered by how often latents fire."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sae_lib.autoencoders.base import Step, architecture, indicator
from sae_lib.autoencoders.config import Momentum
from sae_lib.autoencoders.latents import Latents
from sae_lib.autoencoders.matryoshka import ON_TOYS, Matryoshka, MatryoshkaConfig
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import topk_method

PRESENT = 0.75  # of a latent's mean activation


class ListaMatryoshkaConfig(MatryoshkaConfig):
    """The Matryoshka SAE's settings, and what is added to it; each can be switched off."""

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


SOURCE = "Chanin 2026, *LISTA-Matryoshka SAEs*, github.com/chanind/claude-auto-research-synthsaebench"
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
topk_method("lista_matryoshka", "LISTA-Matryoshka", LISTA, FERN, at_width=None, papers=(SOURCE,), **ON_TOYS)
topk_method("presence_matryoshka", "LISTA-Matryoshka by presence", PRESENCE, MINT, at_width=None, **ON_TOYS)
