"""Toy data whose true features are known, so that absorption is not estimated but counted.

A toy is a set of orthonormal directions. Single features fire on their own; a child fires only where its parent
does. An SAE has absorbed the parent where parent and child are on and the parent's latent is silent, its direction
taken over by the child's decoder row (Chanin et al. 2024, arXiv 2409.14507). The SAEs are trained by the same
`Trainer` as on a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_lib.activations import ActivationStore
from sae_lib.autoencoders import Autoencoder
from sae_lib.metrics.statistics import reconstruction_statistics
from sae_lib.profile import DataConfig, TrainingConfig
from sae_lib.sae_config import METHODS, SAEConfig, merged
from sae_lib.training import Trainer

NORM_SPREAD = 0.05  # an active feature has activation 1 + 0.05 N(0, 1)
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
        size = 1.0 + NORM_SPREAD * torch.randn(rows, self.n_features, generator=generator)
        activations = on * size.clamp_min(0.0)
        return activations @ directions, activations


# One parent (P = 0.25) with one child (P = 0.05 in all) and two singles, in R^50.
PAIR = Toy("pair", 50, (0.25, 0.2, 0.05, 0.05), (None, 0, None, None))
# Three parents with three exclusive children each, and eight singles, in R^20; true L0 1.12.
TREE = Toy(
    "tree", 20, (0.15,) * 3 + (0.2,) * 9 + (0.05,) * 8, (None,) * 3 + (0,) * 3 + (1,) * 3 + (2,) * 3 + (None,) * 8, True
)


class _ToyStore(ActivationStore):
    """Rows held in memory, behind the interface of a store on disk. Every row is a context of its own."""

    def __init__(self, x: Float[Tensor, "row d_in"], key: str) -> None:
        self.folder = Path()
        self.manifest: dict[str, Any] = {"model": key, "layer": None}
        self.n_rows, self.d_in = x.shape
        self.contexts = np.arange(self.n_rows, dtype=np.int32)
        self.positions = np.zeros(self.n_rows, dtype=np.uint16)
        self.resident = x


def train_toy(
    config: SAEConfig, toy: Toy, seed: int, steps: int = 2000, batch: int = 512
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

    - parent_silent_rate: P(parent's latent is 0 | parent and a child are on), over all pairs
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
    silent: Bool[Tensor, "row feature"] = f[:, latent] == 0
    both, alone = _zero_of_two(), _zero_of_two()
    for parent, children in toy.children.items():
        with_child = (activations[:, children] > 0).any(dim=1)
        on = activations[:, parent] > 0
        both += torch.stack([(silent[:, parent] & with_child).sum(), with_child.sum()])
        alone += torch.stack([(silent[:, parent] & on & ~with_child).sum(), (on & ~with_child).sum()])
    pairs = [(child, parent) for parent, children in toy.children.items() for child in children]
    summary, _ = reconstruction_statistics(sae, x)
    return {
        "parent_silent_rate": float(both[0] / both[1]),
        "miss_rate": float(alone[0] / alone[1]),
        "cos_child_parent": float(torch.stack([cosine[c, p] for c, p in pairs]).mean()),
        "cos_parent_parent": float(torch.stack([cosine[p, p] for p in toy.children]).mean()),
        "explained_variance": summary["explained_variance"],
        "l0": summary["l0"],
        "true_l0": float((activations > 0).sum(dim=1).double().mean()),
    }


def _zero_of_two() -> Tensor:
    return torch.zeros(2, dtype=torch.long)


def _decoder_cosines(sae: Autoencoder, directions: Float[Tensor, "feature d_in"]) -> Float[Tensor, "d_sae feature"]:
    return torch.nn.functional.normalize(sae.W_dec, dim=1) @ directions.T
