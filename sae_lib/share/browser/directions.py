"""What a latent's decoder direction says: which tokens it promotes, which latents lie near it, which of another seed
match it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.stability.seeds import EXACT_UP_TO
from sae_lib.util.errors import ArtifactError

_CHUNK_ELEMENTS = 2**24
_CHANCE_SEED = 2**40 + 1  # of no SAE: one that starts from the same draws would be found again exactly


class Ranked(NamedTuple):
    """For each latent the best few of something, the best first."""

    indices: Int[Tensor, "d_sae few"]
    values: Float[Tensor, "d_sae few"]


class LogitEffects(NamedTuple):
    """Tokens that a latent makes more likely, and less likely. Values are in logits for an activation of 1."""

    promoted: Ranked
    suppressed: Ranked


class SeedMatch(NamedTuple):
    """How well each latent is found again in SAEs that differ in their seed only."""

    seeds: tuple[int, ...]
    cosines: Float[Tensor, "seed d_sae"]
    kind: Literal["one-to-one", "nearest"]
    """Which latent of the other SAE is compared: its partner in the matching with the largest sum, or the nearest."""
    chance: float
    """The mean over latents when the other SAE is as many random directions; NaN without other SAEs."""


def unit_directions(sae: Autoencoder) -> Float[Tensor, "d_sae d_in"]:
    """The decoder rows with unit norm, in float32."""
    return functional.normalize(sae.W_dec.detach().float(), dim=1)


@torch.no_grad()
def logit_effects(sae: Autoencoder, lm: LanguageModel, few: int = 8) -> LogitEffects:
    """Each direction times the unembedding, d_i W_U, minus its mean over the vocabulary (which softmax ignores).

    The direct path alone: what later blocks make of the direction is left out, and so is the final norm, its gain
    and its division by the length of the residual stream. So the order of tokens means something and the size
    little, and the earlier the layer, the less.

    Source: "logit lens" (nostalgebraist, 2020), applied to a direction as Neuronpedia and Bricken et al. (2023) do.

    Args:
        lm: a whole model.
        few: tokens each way.

    Raises:
        ArtifactError: the model was cut, or has no unembedding.
    """
    unembedding = lm.model.get_output_embeddings() if lm.whole else None
    if unembedding is None:
        raise ArtifactError(f"model: {lm.name} is loaded without its unembedding; load it with whole=True")
    vocabulary = [token for token in range(min(lm.vocab_size, len(lm.tokenizer))) if token not in lm.special_ids]
    ids = torch.tensor(vocabulary, device=lm.device)
    weight = unembedding.weight[ids].float()
    weight = weight - weight.mean(dim=0)
    few = min(few, len(ids))
    best, worst = [], []
    for part in unit_directions(sae).to(lm.device).split(max(1, _CHUNK_ELEMENTS // len(ids))):
        effect = part @ weight.T
        best.append(effect.topk(few, dim=1))
        worst.append(effect.topk(few, dim=1, largest=False))
    return LogitEffects(*(_ranked(found, ids) for found in (best, worst)))


@torch.no_grad()
def neighbours(sae: Autoencoder, few: int = 6) -> Ranked:
    """For each latent the others whose directions have the largest cosine with its own."""
    directions = unit_directions(sae)
    few = min(few, len(directions) - 1)
    found = []
    rows = max(1, _CHUNK_ELEMENTS // len(directions))
    for start in range(0, len(directions), rows):
        cosines = directions[start : start + rows] @ directions.T
        own = torch.arange(start, start + len(cosines), device=cosines.device)
        cosines[own - start, own] = -torch.inf
        found.append(cosines.topk(few, dim=1))
    return _ranked(found, torch.arange(len(directions), device=directions.device))


@torch.no_grad()
def match_seeds(sae: Autoencoder, others: Mapping[int, Autoencoder], exact_up_to: int = EXACT_UP_TO) -> SeedMatch:
    """For each latent the cosine with its counterpart in each of the other SAEs; NaN where it has none.

    All latents take part, dead ones too. Up to `exact_up_to` latents the counterpart is that of the one-to-one
    matching with the largest sum of cosines (as in `metrics.stability.seeds`), so it is used once; beyond that it is
    the nearest latent, which two may share, so these cosines are larger.

    Raises:
        ArtifactError: an SAE of another residual stream.
    """
    directions = unit_directions(sae).cpu()
    cosines = torch.full((len(others), sae.d_sae), torch.nan)
    exact = max([sae.d_sae, *(other.d_sae for other in others.values())]) <= exact_up_to
    for row, (seed, other) in zip(cosines, sorted(others.items()), strict=True):
        if other.d_in != sae.d_in:
            raise ArtifactError(f"seeds: d_in of seed {seed} is {other.d_in}, not {sae.d_in}; give SAEs of one stream")
        row.copy_(_counterparts(directions, unit_directions(other).cpu(), exact))
    chance = torch.nan
    if others:
        random = torch.randn(directions.shape, generator=torch.Generator().manual_seed(_CHANCE_SEED))
        chance = float(_counterparts(directions, functional.normalize(random, dim=1), exact).mean())
    return SeedMatch(tuple(sorted(others)), cosines, "one-to-one" if exact else "nearest", chance)


def _counterparts(own: Float[Tensor, "n d_in"], other: Float[Tensor, "m d_in"], exact: bool) -> Float[Tensor, " n"]:
    """The cosine of each direction with its counterpart; NaN without one."""
    if not exact:
        return torch.cat([(part @ other.T).amax(dim=1) for part in own.split(max(1, _CHUNK_ELEMENTS // len(other)))])
    cosines = own @ other.T
    rows, columns = (torch.from_numpy(index) for index in linear_sum_assignment(cosines.numpy(), maximize=True))
    return torch.full((len(own),), torch.nan).index_copy_(0, rows, cosines[rows, columns])


def _ranked(found: list[torch.return_types.topk], names: Int[Tensor, " n"]) -> Ranked:
    indices = torch.cat([part.indices for part in found])
    return Ranked(names[indices].cpu(), torch.cat([part.values for part in found]).cpu())
