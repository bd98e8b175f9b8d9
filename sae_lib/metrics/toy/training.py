"""One SAE on one toy, trained by the loop of every other SAE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import DataConfig
from sae_lib.metrics.toy.data import SEQUENCE, Toy
from sae_lib.metrics.toy.score import toy_metrics
from sae_lib.training.recipes import TrainingConfig
from sae_lib.training.trainer import Trainer
from sae_lib.util.keys import Stage, result_key

TOY = Stage("toy", 1)
LOG_EVERY = 10


@dataclass(frozen=True)
class ToyRun:
    """One SAE on one toy."""

    toy: Toy
    config: SAEConfig
    seed: int
    steps: int
    batch: int

    def key(self, measured: str) -> str:
        """Key of what the function named `measured` reads off this run."""
        return result_key(
            TOY, measured, self.toy.key, self.config.model_dump(mode="json"), self.seed, self.steps, self.batch
        )


class _ToyStore(ActivationStore):
    """Rows held in memory, behind the interface of a store on disk. Every sequence is a context of its own."""

    def __init__(self, x: Float[Tensor, "row d_in"], key: str) -> None:
        self.folder = Path()
        self.manifest: dict[str, Any] = {"model": key, "layer": None}
        self.n_rows, self.d_in = x.shape
        rows = np.arange(self.n_rows)
        self.contexts = (rows // SEQUENCE).astype(np.int32)
        self.positions = (rows % SEQUENCE).astype(np.uint16)
        self.resident = x


@lru_cache(maxsize=16)
def _store(toy: Toy, seed: int) -> _ToyStore:
    return _ToyStore(toy.sample(toy.train_rows, seed, toy.directions())[0], toy.name)


def train_toy(run: ToyRun) -> tuple[Autoencoder, pd.DataFrame]:
    """Train an SAE on a toy; returns it, for raw inputs, and its training curves."""
    data = DataConfig(
        train_tokens=run.toy.train_rows, held_out_contexts=1, calibration_contexts=1, window=SEQUENCE,
        batch_tokens=run.batch, shard_rows=run.toy.train_rows, stream_seed=run.seed,
    )  # fmt: skip
    training = TrainingConfig(
        d_sae=run.config.d_sae, steps=run.steps, seeds=(run.seed,), ablation_seeds=(run.seed,), log_every=LOG_EVERY,
        checkpoint_every=run.steps,
    )  # fmt: skip
    trainer = Trainer(run.config, _store(run.toy, run.seed), data, training, run.seed, "cpu")
    for _ in range(run.steps):
        trainer.step()
    return trainer.finish().eval(), pd.DataFrame(trainer.history)


def train_and_score(run: ToyRun) -> dict[str, float]:
    """Train, then the metrics of `toy_metrics` and three of the training itself.

    - mask_rate: mean share of latents masked, after the warm-up; NaN without a mask
    - alpha_loss_correlation: rank correlation, over logged steps, of the temporal penalty's alpha (TemporalSAE Eq. 4)
      with the reconstruction loss; NaN without a penalty, or where alpha does not vary
    - alpha_loss_correlation_late: the same over the second half of the training, when the loss no longer falls fast
    """
    sae, history = train_toy(run)
    return toy_metrics(sae, run.toy) | {
        "mask_rate": mean_mask_rate(history),
        "alpha_loss_correlation": alpha_loss_correlation(history),
        "alpha_loss_correlation_late": alpha_loss_correlation(history.iloc[len(history) // 2 :]),
    }


def mean_mask_rate(history: pd.DataFrame) -> float:
    """Mean share of latents that are masked, over the logged steps with a mask; NaN if there are none."""
    rates = history.get("mask_rate", pd.Series(dtype=float))
    return float(rates[rates > 0].mean())


def alpha_loss_correlation(history: pd.DataFrame) -> float:
    """Spearman correlation of alpha and the reconstruction loss over the rows; NaN if one of them is constant."""
    if "alpha" not in history or history["alpha"].nunique() < 2 or history["reconstruction"].nunique() < 2:
        return math.nan
    return float(history["alpha"].rank().corr(history["reconstruction"].rank()))
