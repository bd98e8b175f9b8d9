"""Metrics of an SAE on a toy: its latents are matched to the true features, and absorption is counted."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.reconstruction import reconstruction_statistics
from sae_lib.metrics.registry import Column
from sae_lib.metrics.toy.data import Toy

TEST_ROWS = 2**14
TEST_SEED = 10_000  # no training data has it
TOP = 0.1  # the latents that fire most often: this share of the dictionary, at least one

SHOWN = {
    "parent_silent_rate": Column("parent silent", "lower", 3),
    "miss_rate": Column("parent missed alone", "lower", 3),
    "cos_child_parent": Column("cos(child, parent)", "lower", 3),
    "cos_parent_parent": Column("cos(parent, parent)", "higher", 3),
    "top_share": Column("share of the top latents", "lower", 3),
}


@torch.no_grad()
def match_latents(
    f: Float[Tensor, "row d_sae"], activations: Float[Tensor, "row feature"]
) -> Int[np.ndarray, " feature"]:
    """The latent of each feature: the one-to-one assignment with the largest summed correlation of activations; -1 for
    a feature that has none, where there are fewer latents than features.
    """
    centred = [t - t.mean(dim=0) for t in (activations.double(), f.double())]
    unit = [t / t.norm(dim=0).clamp_min(1e-12) for t in centred]
    features, latents = linear_sum_assignment((unit[0].T @ unit[1]).numpy(), maximize=True)
    matched = np.full(activations.shape[1], -1)
    matched[features] = latents
    return matched


def silences(
    f: Float[Tensor, "row d_sae"],
    activations: Float[Tensor, "row feature"],
    latent: Int[np.ndarray, " feature"],
    toy: Toy,
) -> tuple[float, float]:
    """P(parent's latent is 0 | parent and a child are on) and P(parent's latent is 0 | parent on, no child on), over
    all parents that have a latent; NaN without any.
    """
    both, alone = [torch.empty(0)], [torch.empty(0)]
    for parent, children in toy.children.items():
        if latent[parent] >= 0:
            silent, with_child = f[:, latent[parent]] == 0, (activations[:, children] > 0).any(dim=1)
            both.append(silent[with_child])
            alone.append(silent[(activations[:, parent] > 0) & ~with_child])
    return float(torch.cat(both).double().mean()), float(torch.cat(alone).double().mean())


@lru_cache(maxsize=8)
def held_out(toy: Toy) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row feature"]]:
    """Inputs and true activations that no SAE has been trained on."""
    return toy.sample(TEST_ROWS, TEST_SEED, toy.directions())


@torch.no_grad()
def toy_metrics(sae: Autoencoder, toy: Toy) -> dict[str, float]:
    """Absorption against the truth, on inputs that the SAE has not been trained on; latents matched to features.

    - parent_silent_rate: P(parent's latent is 0 | parent and a child are on), over all parents
    - miss_rate: P(parent's latent is 0 | parent on, no child on)
    - cos_child_parent: mean cosine of a child's decoder row and the parent's direction (0 if they are disentangled)
    - cos_parent_parent: mean cosine of a parent's decoder row and its own direction
    - explained_variance, l0, dead_fraction (see `ReconstructionSums`) and true_l0, that of these inputs
    - dead_parents, dead_children, dead_singles: share of dead latents among those matched to features of a kind. Kinds
      are classes of frequency: on TREE 0.15, 0.03 and 0.05. NaN without a feature of the kind
    - top_share: share of all firings that belong to the tenth of the latents that fires most often
    """
    directions = toy.directions()
    x, activations = held_out(toy)
    f = sae.encode(x)
    latent = match_latents(f, activations)
    cosine = decoder_cosines(sae, directions)[latent]  # [latent of feature, feature]
    silent, missed = silences(f, activations, latent, toy)
    pairs = [(child, parent) for parent, children in toy.children.items() for child in children]
    summary, density = reconstruction_statistics(sae, x)
    kinds = {"parents": list(toy.children), "children": [child for child, _ in pairs], "singles": toy.singles}
    dead = (density == 0)[torch.from_numpy(latent)].double()
    top = density.topk(max(1, round(TOP * sae.d_sae))).values.sum() / density.sum()
    return {
        "parent_silent_rate": silent,
        "miss_rate": missed,
        "cos_child_parent": float(torch.stack([cosine[c, p] for c, p in pairs]).mean()),
        "cos_parent_parent": float(torch.stack([cosine[p, p] for p in toy.children]).mean()),
        "explained_variance": summary["explained_variance"],
        "l0": summary["l0"],
        "true_l0": float((activations > 0).sum(dim=1).double().mean()),
        "dead_fraction": summary["dead_fraction"],
        **{f"dead_{kind}": float(dead[of].mean()) if of else math.nan for kind, of in kinds.items()},
        "top_share": float(top),
    }


def decoder_cosines(sae: Autoencoder, directions: Float[Tensor, "feature d_in"]) -> Float[Tensor, "d_sae feature"]:
    """Cosine of each decoder row with each true direction."""
    return torch.nn.functional.normalize(sae.W_dec, dim=1) @ directions.T
