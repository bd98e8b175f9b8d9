"""Penalties on pairs of latents, read off the weights: no decoder row should point where another one does (OrtSAE);
and, an idea, no encoder row should be inhibited along the decoder row of a similar latent."""

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import MechanismConfig
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.onset_priced import ONSET
from sae_lib.autoencoders.standard import STANDARD
from sae_lib.autoencoders.topk import BATCHTOPK, topk_method
from sae_lib.mechanisms.base import Mechanism, mechanism


class PairPenalty(Mechanism):
    """A term that sees weights alone: its gradient is added after the backward pass. The history has its value under
    `term`, not as part of the loss."""

    def __init__(self, settings: Any, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.value: Tensor = nn.Buffer(torch.zeros(()))

    def penalty(self, sae: Autoencoder, order: Tensor) -> Float[Tensor, ""]:
        """Of latents in an order that is drawn anew at each step."""
        raise NotImplementedError

    def before_update(self, sae: Autoencoder, step: Step) -> None:
        interval = getattr(self.cfg, "interval", 1)
        if step.index % interval:
            return
        order = torch.randperm(sae.d_sae, generator=step.generator, device=sae.device)
        with torch.enable_grad():
            found = self.penalty(sae, order)
            (interval * self.cfg.coefficient * found).backward()
        self.value.copy_(found.detach())

    def log(self) -> dict[str, float]:
        return {self.term: self.cfg.coefficient * float(self.value)}


class ConsistencyConfig(MechanismConfig):
    """gamma mean_i sum_j relu(d_i . d_j) relu(d_i . d_j - e_i . d_j), encoder rows scaled to e_i . d_i = 1."""

    coefficient: float = Field(1.0, ge=0.0)
    latents: int = Field(2048, ge=2)
    """Pairs are those of so many latents, drawn anew at each step."""


@mechanism("encoder_consistency", ConsistencyConfig)
class EncoderConsistency(PairPenalty):
    """L = 1/m sum_i sum_{j != i} relu(d_i . d_j) relu(d_i . d_j - e_i . d_j / (e_i . d_i)) over m latents that are
    drawn at each step; gamma L is added, for the encoder alone.

    A parent that is absorbed is switched off by its encoder: with d_child = (p + c) / sqrt 2 the row e = p - c is
    silent on both, and the pair costs 1/2. An encoder that follows its decoder costs nothing, nor does inhibition by
    latents that point elsewhere: less is forbidden than by tied weights. It does not see what a selection silences.
    """

    cfg: ConsistencyConfig

    def penalty(self, sae: Autoencoder, order: Tensor) -> Float[Tensor, ""]:
        order = order[: self.cfg.latents]
        return inhibition(sae.W_enc.T.index_select(0, order), sae.W_dec.detach().index_select(0, order))


def inhibition(encoder: Float[Tensor, "m d_in"], decoder: Float[Tensor, "m d_in"]) -> Float[Tensor, ""]:
    """Mean over rows of the inhibition along similar decoder rows."""
    directions = functional.normalize(decoder, dim=1)
    similar = (directions @ directions.T).fill_diagonal_(0.0).relu_()
    own = (encoder * directions).sum(dim=1, keepdim=True).clamp_min(1e-6)
    reads = encoder @ directions.T / own
    return (similar * (similar - reads).relu()).sum() / len(encoder)


class OrthogonalityConfig(MechanismConfig):
    """gamma mean_i (max_j cos(d_i, d_j))^2, j among the latents that share a random chunk with i."""

    coefficient: float = Field(0.25, ge=0.0)
    chunk: int = Field(8192, ge=2)
    """Latents are dealt anew at each step into as few chunks of equal size as hold at most so many."""
    interval: int = Field(1, ge=1)
    """With n, the penalty acts on every n-th step, n times as strongly."""


@mechanism("orthogonality", OrthogonalityConfig)
class Orthogonality(PairPenalty):
    """L_ort = 1/m sum_i (max_{j != i, same chunk} cos(d_i, d_j))^2 over the m decoder rows d, in K = ceil(m / 8192)
    chunks that are drawn anew at each step; gamma L_ort is added to the loss (Korznikov et al. 2025, arXiv 2509.22033).

    A child that has absorbed its parent points where the parent does: the penalty takes that away. More chunks compare
    fewer pairs and absorb more.
    """

    cfg: OrthogonalityConfig

    def penalty(self, sae: Autoencoder, order: Tensor) -> Float[Tensor, ""]:
        return closest(sae.W_dec, order, -(-sae.d_sae // self.cfg.chunk))


def closest(W_dec: Float[Tensor, "d_sae d_in"], order: Tensor, chunks: int) -> Float[Tensor, ""]:
    """Mean over rows of the squared largest cosine with another row of the same chunk of `order`."""
    rows = functional.normalize(W_dec, dim=1)
    total = rows.new_zeros(())
    for latents in order.tensor_split(chunks):
        chunk = rows.index_select(0, latents)
        with torch.no_grad():  # which row is the closest: the products need not be kept for the gradient
            nearest = (chunk @ chunk.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        total = total + (chunk * chunk.index_select(0, nearest)).sum(dim=1).square().sum()
    return total / len(rows)


CONSISTENT: dict[str, Any] = {"encoder_consistency": {}}
LOOK, WITH_ONSET = Look("#332288", "X", (0, (2, 1, 1, 1))), Look("#661100", "X", (0, (4, 1, 1, 1)))
SELECTING, TEAL = Look("#6699cc", "X", (0, (1, 1))), Look("#117733", "8", (0, (3, 1)))
register(Method("consistent", "Consistent encoder", STANDARD | CONSISTENT, LOOK, "field", toy_rate=5e-2))
register(Method("consistent_onset", "Onset-priced, consistent", ONSET | CONSISTENT, WITH_ONSET, "field", toy_rate=5e-2))
topk_method("consistent_batchtopk", "BatchTopK, consistent", BATCHTOPK | CONSISTENT, SELECTING)
# Korznikov et al. 2025 train BatchTopK with AdamW at 2e-4 and batches of 2,048, on 500 M tokens at 65,536 latents. Here
# all but the penalty is BatchTopK's, so that BatchTopK is the control.
SOURCE = "Korznikov et al. 2025, *OrtSAE: Orthogonal Sparse Autoencoders Uncover Atomic Features*, arXiv 2509.22033"
topk_method("ortsae", "OrtSAE", BATCHTOPK | {"orthogonality": {}}, TEAL, papers=(SOURCE,))
