"""SAEs on toys, trained by the loop of every other SAE: many of them on several cores, each once."""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import DataConfig
from sae_lib.metrics.toy.data import SEQUENCE, Toy
from sae_lib.metrics.toy.score import family_picture, recovery_metrics, toy_metrics
from sae_lib.training.recipes import TrainingConfig
from sae_lib.training.trainer import Trainer
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json, write_json
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import begin_worker

TOY = Stage("toy", 1)
LOG_EVERY = 10


@dataclass(frozen=True)
class ToyRun:
    toy: Toy
    config: SAEConfig
    seed: int
    steps: int
    batch: int

    def key(self, measured: str) -> str:
        """Key of what the function named `measured` reads off this run."""
        config = self.config.model_dump(mode="json")
        return result_key(TOY, measured, self.toy.key, config, self.seed, self.steps, self.batch)


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
    return _ToyStore(toy.sample(toy.train_rows, seed)[0], toy.name)


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
    """Train, then the metrics of `toy_metrics` and three of the training itself: mask_rate, alpha_loss_correlation, and
    alpha_loss_correlation_late, over the second half of the training, when the loss no longer falls fast."""
    sae, history = train_toy(run)
    return toy_metrics(sae, run.toy) | {
        "mask_rate": mean_mask_rate(history),
        "alpha_loss_correlation": alpha_loss_correlation(history),
        "alpha_loss_correlation_late": alpha_loss_correlation(history.iloc[len(history) // 2 :]),
    }


def train_and_recover(run: ToyRun) -> dict[str, float]:
    return recovery_metrics(train_toy(run)[0], run.toy)


def train_and_picture(run: ToyRun) -> dict[str, float]:
    """Train; `family_picture` with "kind/row/latent" as the name of each value."""
    frame = family_picture(train_toy(run)[0], run.toy)
    return {"/".join(place): value for *place, value in frame.itertuples(index=False)}


def mean_mask_rate(history: pd.DataFrame) -> float:
    """Mean share of latents that are masked, over the logged steps with a mask; NaN without any."""
    rates = history.get("mask_rate", pd.Series(dtype=float))
    return float(rates[rates > 0].mean())


def alpha_loss_correlation(history: pd.DataFrame) -> float:
    """Spearman correlation of the temporal penalty's alpha (TemporalSAE Eq. 4) and the reconstruction loss over the
    rows; NaN without a penalty, or where one of them is constant."""
    if "alpha" not in history or history["alpha"].nunique() < 2 or history["reconstruction"].nunique() < 2:
        return math.nan
    return float(history["alpha"].rank().corr(history["reconstruction"].rank()))


Numbers = dict[str, float]
Work = Callable[[ToyRun], Numbers]


class ToyPool:
    """Trains toy SAEs in `workers` processes and keeps what is measured in `folder`, one JSON file per content key: an
    interrupted study goes on where it stopped, and a finished one is instant."""

    def __init__(self, folder: Path | str, workers: int = 1) -> None:
        self.folder = Path(folder)
        self._executor: ProcessPoolExecutor | None = None
        if workers > 1:
            self._executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=begin_worker)

    def __enter__(self) -> "ToyPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=kind is None, cancel_futures=True)

    def run(self, runs: Iterable[ToyRun], description: str = "toy", work: Work = train_and_score) -> list[Numbers]:
        """`work` of each run (its metrics by default), in order; the same run is trained once."""
        runs, known = list(runs), {}
        files = {run: self.folder / f"{run.key(work.__name__)[:32]}.json" for run in runs}
        for run, file in files.items():
            with suppress(FileNotFoundError, ArtifactError):  # a damaged file counts as not finished
                known[run] = {name: math.nan if value is None else value for name, value in read_json(file)}
        waiting = [run for run in files if run not in known]
        with tqdm(total=len(waiting), desc=description, unit="SAE", mininterval=1, disable=not waiting) as bar:
            if self._executor is None:
                done = ((run, work(run)) for run in waiting)
            else:
                futures = {self._executor.submit(work, run): run for run in waiting}
                done = ((futures[future], future.result()) for future in as_completed(futures))
            for run, numbers in done:
                known[run] = numbers
                # Pairs, since names of an object would be sorted; null, since JSON has no NaN.
                values = [[name, None if math.isnan(value) else value] for name, value in numbers.items()]
                write_json(files[run], values)
                bar.update()
        return [known[run] for run in runs]
