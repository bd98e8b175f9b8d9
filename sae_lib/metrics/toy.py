"""Toy data whose true features are known, so that absorption is not estimated but counted.

A toy is a set of orthonormal directions. Single features fire on their own; a child fires only where its parent
does. An SAE has absorbed the parent where parent and child are on and the parent's latent is silent, its direction
taken over by the child's decoder row (Chanin et al. 2024, arXiv 2409.14507). The SAEs are trained by the same
`Trainer` as on a language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_lib.activations import ActivationStore
from sae_lib.autoencoders import Autoencoder
from sae_lib.metrics.statistics import reconstruction_statistics
from sae_lib.profile import DataConfig, TrainingConfig
from sae_lib.sae_config import METHODS, SAEConfig, merged
from sae_lib.training import Trainer

NORM_SPREAD = 0.05  # a feature that is on has activation 1 + 0.05 N(0, 1), drawn once per feature
TRAIN_ROWS = 2**16
TEST_ROWS = 2**14
TEST_SEED = 10_000  # no training data has it


@dataclass(frozen=True)
class Toy:
    """Orthonormal features in R^d_in, some of which are children: they fire only where their parent fires.

    `probability[i]` is that of feature i; for a child, given its parent. With `exclusive`, at most one child of a
    parent is on at a time.
    """

    name: str
    d_in: int
    probability: tuple[float, ...]
    parent: tuple[int | None, ...]
    exclusive: bool = False

    @property
    def n_features(self) -> int:
        return len(self.probability)

    @property
    def children(self) -> dict[int, list[int]]:
        """Parent -> its children, in feature order."""
        found: dict[int, list[int]] = {}
        for feature, parent in enumerate(self.parent):
            if parent is not None:
                found.setdefault(parent, []).append(feature)
        return found

    @property
    def true_l0(self) -> float:
        """Expected number of features that are on."""
        chance = list(self.probability)
        for parent, children in self.children.items():
            for child in children:
                chance[child] *= chance[parent]
        return sum(chance)

    def directions(self, seed: int = 0) -> Float[Tensor, "feature d_in"]:
        """Unit vectors at right angles, one per feature."""
        generator = torch.Generator().manual_seed(seed)
        return torch.linalg.qr(torch.randn(self.d_in, self.n_features, generator=generator)).Q.T.contiguous()

    def sample(
        self, rows: int, seed: int, directions: Float[Tensor, "feature d_in"]
    ) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row feature"]]:
        """Inputs and the true activations they are made of: x = activations @ directions."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(rows, self.n_features, generator=generator)
        on = uniform < torch.tensor(self.probability)
        for parent, children in self.children.items():
            if self.exclusive:
                # One draw in [0, 1) is cut into a piece for each child and one for none.
                edges = torch.tensor([self.probability[child] for child in children]).cumsum(0)
                chosen = torch.searchsorted(edges, uniform[:, children[0]].contiguous(), right=True)
                on[:, children] = chosen[:, None] == torch.arange(len(children))
            on[:, children] &= on[:, parent, None]
        size = 1.0 + NORM_SPREAD * torch.randn(self.n_features, generator=torch.Generator().manual_seed(0))
        activations = on * size
        return activations @ directions, activations


# One parent (P = 0.25) with one child (P = 0.05 in all) and two singles, in R^50.
PAIR = Toy("pair", 50, (0.25, 0.2, 0.05, 0.05), (None, 0, None, None))
# Three parents with three exclusive children each, and eight singles, in R^20; true L0 1.12.
TREE = Toy(
    "tree", 20, (0.15,) * 3 + (0.2,) * 9 + (0.05,) * 8, (None,) * 3 + (0,) * 3 + (1,) * 3 + (2,) * 3 + (None,) * 8, True
)


# What a toy changes in every method's recipe: a learning rate and schedules for 2,000 steps, and an L1 coefficient at
# which the standard SAE reconstructs and absorbs.
TOY_RECIPE: dict[str, Any] = {
    "l1_coefficient": 0.05,
    "sparsity_warmup_steps": 200,
    "dead_after_tokens": 50_000,
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 100},
}


class _ToyStore(ActivationStore):
    """Rows held in memory, behind the interface of a store on disk. Every row is a context of its own."""

    def __init__(self, x: Float[Tensor, "row d_in"], key: str) -> None:
        self.folder = Path()
        self.manifest: dict[str, Any] = {"model": key, "layer": None}
        self.n_rows, self.d_in = x.shape
        self.contexts = np.arange(self.n_rows, dtype=np.int32)
        self.positions = np.zeros(self.n_rows, dtype=np.uint16)
        self.resident = x


def toy_config(method: str, toy: Toy, overrides: dict[str, Any] | None = None) -> SAEConfig:
    """The recipe of `method` at the size of `toy`: one latent per feature, k the true L0 rounded up."""
    recipe = merged(METHODS[method], TOY_RECIPE)
    values: dict[str, Any] = {"d_sae": toy.n_features, "k": math.ceil(toy.true_l0), "target_l0": toy.true_l0}
    for section in ("masking", "dropout"):
        if section in recipe:
            values[section] = {"warmup_steps": TOY_RECIPE["sparsity_warmup_steps"]}
    return SAEConfig.model_validate(merged(merged(recipe, values), overrides or {}))


def train_toy(
    config: SAEConfig, toy: Toy, seed: int, steps: int = 2000, batch: int = 256
) -> tuple[Autoencoder, pd.DataFrame]:
    """Train an SAE on `toy` with the loop of every other SAE; returns it, for raw inputs, and its training curves."""
    x, _ = toy.sample(TRAIN_ROWS, seed, toy.directions())
    data = DataConfig(
        train_tokens=TRAIN_ROWS, held_out_contexts=1, calibration_contexts=1, window=1, batch_tokens=batch,
        shard_rows=TRAIN_ROWS, stream_seed=seed,
    )  # fmt: skip
    training = TrainingConfig(
        d_sae=config.d_sae, steps=steps, seeds=(seed,), ablation_seeds=(seed,), log_every=100, checkpoint_every=steps
    )
    trainer = Trainer(config, _ToyStore(x, toy.name), data, training, seed, "cpu")
    for _ in range(steps):
        trainer.step()
    return trainer.finish().eval(), pd.DataFrame(trainer.history)


@torch.no_grad()
def match_latents(
    f: Float[Tensor, "row d_sae"], activations: Float[Tensor, "row feature"]
) -> Int[np.ndarray, " feature"]:
    """The latent of each feature: the one-to-one assignment with the largest summed correlation of activations."""
    centred = [t - t.mean(dim=0) for t in (activations.double(), f.double())]
    unit = [t / t.norm(dim=0).clamp_min(1e-12) for t in centred]
    return np.asarray(linear_sum_assignment((unit[0].T @ unit[1]).numpy(), maximize=True)[1])


@torch.no_grad()
def toy_metrics(sae: Autoencoder, toy: Toy) -> dict[str, float]:
    """Absorption against the truth, on inputs that the SAE has not been trained on; latents matched to features.

    - parent_silent_rate: P(parent's latent is 0 | parent and a child are on), over all parents
    - miss_rate: P(parent's latent is 0 | parent on, no child on)
    - cos_child_parent: mean cosine of a child's decoder row and the parent's direction (0 if they are disentangled)
    - cos_parent_parent: mean cosine of a parent's decoder row and its own direction
    - explained_variance, l0 (see `ReconstructionSums`) and true_l0, that of these inputs
    """
    directions = toy.directions()
    x, activations = toy.sample(TEST_ROWS, TEST_SEED, directions)
    f = sae.encode(x)
    latent = match_latents(f, activations)
    cosine = _decoder_cosines(sae, directions)[latent]  # [latent of feature, feature]
    both, alone = [], []  # where the parent's latent is silent, with a child and without one
    for parent, children in toy.children.items():
        silent, with_child = f[:, latent[parent]] == 0, (activations[:, children] > 0).any(dim=1)
        both.append(silent[with_child])
        alone.append(silent[(activations[:, parent] > 0) & ~with_child])
    pairs = [(child, parent) for parent, children in toy.children.items() for child in children]
    summary, _ = reconstruction_statistics(sae, x)
    return {
        "parent_silent_rate": float(torch.cat(both).double().mean()),
        "miss_rate": float(torch.cat(alone).double().mean()),
        "cos_child_parent": float(torch.stack([cosine[c, p] for c, p in pairs]).mean()),
        "cos_parent_parent": float(torch.stack([cosine[p, p] for p in toy.children]).mean()),
        "explained_variance": summary["explained_variance"],
        "l0": summary["l0"],
        "true_l0": float((activations > 0).sum(dim=1).double().mean()),
    }


def _decoder_cosines(sae: Autoencoder, directions: Float[Tensor, "feature d_in"]) -> Float[Tensor, "d_sae feature"]:
    return torch.nn.functional.normalize(sae.W_dec, dim=1) @ directions.T


def absorption_picture(
    methods: Sequence[str] = ("standard", "atm", "dropout"), seeds: Sequence[int] = (42, 43, 44), toy: Toy = TREE
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train each method with each seed on `toy`; what its latents and decoder rows have become, and `toy_metrics`.

    'dropout' masks as often as 'atm' did with the same seed, if both are asked for.

    Returns:
        toy: method, seed, kind, row, latent, value. kind 'activation': mean activation of the latent of feature
            `latent` on inputs of kind `row` ('parent only', 'parent + child 1' ... 'none'), mean over the families of
            the toy. kind 'cosine': cosine of the decoder row of the latent of feature `latent` and the direction of
            feature `row`, likewise.
        toy_summary: method, seed and the columns of `toy_metrics`.
    """
    pictures, summary = [], []
    mask_rate: dict[int, float] = {}
    for method in sorted(methods, key=lambda name: name == "dropout"):
        for seed in seeds:
            overrides = {"dropout": {"probability": mask_rate[seed]}} if method == "dropout" and mask_rate else {}
            sae, history = train_toy(toy_config(method, toy, overrides), toy, seed)
            if method == "atm":
                mask_rate[seed] = float(history.loc[history["mask_rate"] > 0, "mask_rate"].mean())
            pictures.append(_picture(sae, toy).assign(method=method, seed=seed))
            summary.append({"method": method, "seed": seed, **toy_metrics(sae, toy)})
    columns = ["method", "seed", "kind", "row", "latent", "value"]
    return pd.concat(pictures, ignore_index=True)[columns], pd.DataFrame(summary)


@torch.no_grad()
def _picture(sae: Autoencoder, toy: Toy) -> pd.DataFrame:
    """kind, row, latent, value of one SAE."""
    directions = toy.directions()
    x, activations = toy.sample(TEST_ROWS, TEST_SEED, directions)
    f = sae.encode(x)
    latent = match_latents(f, activations)
    cosine = _decoder_cosines(sae, directions)[latent]
    rows: list[tuple[str, str, str, float]] = []
    for parent, children in toy.children.items():
        family = {"parent": parent} | {f"child {i + 1}": child for i, child in enumerate(children)}
        on = activations > 0
        inputs = {"parent only": on[:, parent] & ~on[:, children].any(dim=1)}
        inputs |= {f"parent + child {i + 1}": on[:, child] for i, child in enumerate(children)}
        inputs["none"] = ~on[:, parent]
        means = {row: f[chosen][:, latent].mean(dim=0) for row, chosen in inputs.items()}
        rows += [("activation", row, name, float(means[row][i])) for row in means for name, i in family.items()]
        rows += [("cosine", row, name, float(cosine[i, j])) for row, j in family.items() for name, i in family.items()]
    frame = pd.DataFrame(rows, columns=["kind", "row", "latent", "value"])
    return frame.groupby(["kind", "row", "latent"], sort=False, as_index=False)["value"].mean()
