"""An idea: no encoder row may be inhibited along the decoder row of a similar latent."""

from __future__ import annotations

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
from sae_lib.autoencoders.topk import TOPK, topk_rate
from sae_lib.mechanisms.base import Mechanism, mechanism


class ConsistencyConfig(MechanismConfig):
    """gamma mean_i sum_j relu(d_i . d_j) relu(d_i . d_j - e_i . d_j), encoder rows scaled to e_i . d_i = 1."""

    coefficient: float = Field(1.0, ge=0.0)
    """gamma."""
    latents: int = Field(2048, ge=2)
    """Pairs are those of so many latents, drawn anew at each step."""


@mechanism("encoder_consistency", ConsistencyConfig)
class EncoderConsistency(Mechanism):
    """L = 1/m sum_i sum_{j != i} relu(d_i . d_j) relu(d_i . d_j - e_i . d_j / (e_i . d_i)) over m latents that are
    drawn at each step; gamma L is added, for the encoder alone.

    A parent that is absorbed is switched off by its encoder: with d_child = (p + c) / sqrt 2 the row e = p - c is
    silent on both, and the pair costs 1/2. An encoder that follows its decoder costs nothing, nor does inhibition by
    latents that point elsewhere: less is forbidden than by tied weights. It does not see what a selection silences.
    """

    cfg: ConsistencyConfig

    def __init__(self, settings: ConsistencyConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.value: Tensor = nn.Buffer(torch.zeros(()))

    def before_update(self, sae: Autoencoder, step: Step) -> None:
        order = torch.randperm(sae.d_sae, generator=step.generator, device=sae.device)[: self.cfg.latents]
        with torch.enable_grad():
            inhibited = inhibition(sae.W_enc.T.index_select(0, order), sae.W_dec.detach().index_select(0, order))
            (self.cfg.coefficient * inhibited).backward()
        self.value.copy_(inhibited.detach())

    def log(self) -> dict[str, float]:
        return {"encoder_consistency": self.cfg.coefficient * float(self.value)}


def inhibition(encoder: Float[Tensor, "m d_in"], decoder: Float[Tensor, "m d_in"]) -> Float[Tensor, ""]:
    """Mean over rows of the inhibition along similar decoder rows."""
    directions = functional.normalize(decoder, dim=1)
    similar = (directions @ directions.T).fill_diagonal_(0.0).relu_()
    own = (encoder * directions).sum(dim=1, keepdim=True).clamp_min(1e-6)
    reads = encoder @ directions.T / own
    return (similar * (similar - reads).relu()).sum() / len(encoder)


LOOK = Look("#332288", "X", (0, (2, 1, 1, 1)))
CONSISTENT: dict[str, Any] = STANDARD | {"encoder_consistency": {}}
register(Method("consistent", "Consistent encoder", CONSISTENT, LOOK, shown="field", toy_rate=5e-2))
BOTH: dict[str, Any] = ONSET | {"encoder_consistency": {}}
BOTH_LOOK = Look("#661100", "X", (0, (4, 1, 1, 1)))
register(Method("consistent_onset", "Onset-priced, consistent", BOTH, BOTH_LOOK, shown="field", toy_rate=5e-2))
SELECTING: dict[str, Any] = TOPK | {"architecture": "batchtopk", "encoder_consistency": {}}
register(
    Method(
        "consistent_batchtopk", "BatchTopK, consistent", SELECTING, Look("#6699cc", "X", (0, (1, 1))), "field",
        topk_rate, 1e-2,
    )
)  # fmt: skip
