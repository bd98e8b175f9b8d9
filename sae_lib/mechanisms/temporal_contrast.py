"""T-SAE's contrastive term: the first latents of a token should tell its context from others."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.base import Step
from sae_lib.autoencoders.config import MechanismConfig
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.topk import TOPK
from sae_lib.mechanisms.base import Mechanism, mechanism


class ContrastConfig(MechanismConfig):
    """T-SAE's temporal term, on the first latents."""

    coefficient: float = Field(0.1, ge=0.0)
    share: float = Field(0.2, gt=0.0, le=1.0)
    """Which latents it sees: this share of the dictionary, the first ones."""
    similarity: Literal["dot", "cosine"] = "dot"
    """Of the codes of two tokens, in the softmax: their product, or its cosine."""
    pairing: Literal["previous", "earlier"] = "previous"
    """The other token: the one before, or any earlier one of the same window."""


@mechanism("contrast", ContrastConfig)
class TemporalContrast(Mechanism):
    """z_i are the first latents of a token, z'_i those of an earlier one of its context, i = 1 ... N the batch's pairs:

        1/2N sum_i [ -log softmax_j(s(z_i, z'_j))_i - log softmax_j(s(z_j, z'_i))_i ]

    (T-SAE, Bhalla et al. 2025, arXiv 2511.05541). Pairs of one window are not told apart: the authors draw the tokens
    of a batch from many contexts; here the neighbours of a token are in the batch, and would be its negatives.
    """

    cfg: ContrastConfig

    def __init__(self, settings: ContrastConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.seen = max(1, round(settings.share * d_sae))

    def loss(self, step: Step) -> Float[Tensor, ""] | None:
        token = step.has_predecessor.nonzero().squeeze(1)
        if not len(token):
            return None
        begin = window_starts(step.has_predecessor)
        earlier = token - 1
        if self.cfg.pairing == "earlier":
            uniform = torch.rand(len(token), generator=step.generator, device=token.device)
            earlier = token - 1 - (uniform * (token - begin[token])).to(token.dtype)
        codes = step.f.dense()[:, : self.seen].float()
        z, other = codes[token], codes[earlier]
        if self.cfg.similarity == "cosine":
            z, other = functional.normalize(z, dim=1), functional.normalize(other, dim=1)
        return self.cfg.coefficient * contrast(z @ other.T, begin[token])


def window_starts(has_predecessor: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """For each row the first one of its run of consecutive tokens."""
    rows = torch.arange(len(has_predecessor), device=has_predecessor.device)
    return rows.masked_fill(has_predecessor, 0).cummax(dim=0).values


def contrast(similarity: Float[Tensor, "pair pair"], window: Int[Tensor, " pair"]) -> Float[Tensor, ""]:
    """Cross-entropy of finding each pair's other half, mean over both directions; pairs of one window are left out."""
    pair = torch.arange(len(window), device=window.device)
    related = (window[:, None] == window) & (pair[:, None] != pair)
    logits = similarity.masked_fill(related, -torch.inf)
    return (functional.cross_entropy(logits, pair) + functional.cross_entropy(logits.T, pair)) / 2


BHALLA = (
    "Bhalla et al. 2025, *Temporal Sparse Autoencoders: Leveraging the Sequential Nature of Language for "
    "Interpretability*, arXiv 2511.05541"
)
# Pythia-160m, layer 8, and Gemma-2-2b: 16,384 latents, the first fifth of them "high-level", k = 20, contexts of 256
# tokens, 200,000 steps, Adam at 3e-4 after a warm-up of 1,000, no decay, activations as they are: the product in the
# softmax has their scale.
_T_SAE: dict[str, Any] = TOPK | {
    "architecture": "balanced_matryoshka",
    "prefixes": (0.2, 1.0),
    "normalize_inputs": False,
    "optimizer": {"learning_rate": 3e-4, "decay_fraction": 0.0},
}
# As released (AI4LIFE-GROUP/temporal-saes, `--contrastive`): products in the softmax; the errors of the two prefixes
# weighted by 0.2 and 0.8, then their mean; 0.1 contrast, 1/32 AuxK; gradients clipped at 1. Here everything is 2.5
# times that, so that the whole dictionary's error has weight 1.
RELEASED: dict[str, Any] = _T_SAE | {
    "balance": 0.25,
    "auxk_coefficient": 2.5 / 32,
    "contrast": {"coefficient": 0.25, "similarity": "dot", "pairing": "earlier"},
    "optimizer": _T_SAE["optimizer"] | {"clip_norm": 2.5},
}
# As the paper states: cosines; the sum of the two errors; the previous token; alpha = 1 on the sum of both directions.
# It prints the errors as a sum over the batch beside a mean over it; taken here as means both.
STATED: dict[str, Any] = _T_SAE | {
    "balance": 1.0,
    "contrast": {"coefficient": 2.0, "similarity": "cosine", "pairing": "previous"},
    "optimizer": _T_SAE["optimizer"] | {"clip_norm": 1.0},
}
PLAIN = STATED | {"contrast": None}  # the control for its idea: everything else of its recipe
MINT, SKY = Look("#44aa99", "p", (0, (2, 1, 1, 1))), Look("#88ccee", "H", (0, (5, 2, 1, 2)))
STRAW = Look("#dddd77", "H", (0, (1, 2, 4, 2)))
register(Method("t_sae", "T-SAE (released)", RELEASED, MINT, "field", toy_rate=1e-2, papers=(BHALLA,)))
register(Method("t_sae_stated", "T-SAE (paper)", STATED, SKY, "field", toy_rate=1e-2, papers=(BHALLA,)))
register(Method("t_sae_plain", "T-SAE without its contrast", PLAIN, STRAW, "field", toy_rate=1e-2))
