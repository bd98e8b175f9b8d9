"""One SAE trained, from its configuration, an activation store and a seed to a run folder:

sae.safetensors     weights and configuration; takes raw residual-stream activations
history.parquet     the training curves
run.json            what it was made from, and how long it took
checkpoint.safetensors, only while training: an interrupted run goes on to the *same* final weights (on a CPU)
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lib.autoencoders.build import WEIGHTS_FILE
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import DataConfig
from sae_lib.training.recipes import TrainingConfig
from sae_lib.training.trainer import Trainer
from sae_lib.util.checkpoint import load_checkpoint, save_checkpoint
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.files import read_json, write_json, write_parquet
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.memory import keep_freed_memory

TRAINING = Stage("training", 1)
CHECKPOINT_FILE = "checkpoint.safetensors"
WITHOUT_WEIGHTS = "weights_not_kept"


def run_key(config: SAEConfig, store_key: str, data: DataConfig, training: TrainingConfig, seed: int) -> str:
    """Key of one training run: everything that its weights depend on. A setting at its default is no part of it: a new
    setting makes no older run stale; another default does, by the stage's version."""
    chosen = config.model_dump(mode="json", exclude_defaults=True) | {"architecture": config.architecture}
    shared = training.model_dump(include={"d_sae", "steps", "autocast", "log_every"})
    if training.products != "float32":
        shared["products"] = training.products
    stream = data.model_dump(include={"window", "batch_tokens", "stream_seed"})
    return result_key(TRAINING, chosen, store_key, stream, shared, seed)


def stored(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """What is kept under a name in a run folder, if it is the one with this key."""
    file = folder / f"{name}.json"
    found = read_json(file) if file.is_file() else None
    return found if isinstance(found, dict) and found.get("key") == key else None


def is_finished(folder: Path, key: str, *, weights: bool = False) -> bool:
    """Whether `folder` holds the finished run with this key; with `weights`, not only the rows that are known of it."""
    run = stored(folder, "run", key)
    return run is not None and ((folder / WEIGHTS_FILE).is_file() or (not weights and bool(run.get(WITHOUT_WEIGHTS))))


def read_history(folder: Path) -> pd.DataFrame:
    """The training curves of a finished run, one row per logged step. Raises ArtifactError where there are none."""
    file = folder / "history.parquet"
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read ({first_line(error)}); remove {folder} and run again") from None


def train_sae(
    config: SAEConfig,
    store: ActivationStore,
    data: DataConfig,
    training: TrainingConfig,
    seed: int,
    folder: Path,
    *,
    device: str = "cpu",
    watch: Callable[[Trainer], None] = lambda trainer: None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train one SAE, or return at once when `folder` already holds this very run.

    `watch` sees the trainer after each step. `names` (method and group) go into run.json, whose content is returned.
    Raises ArtifactError when the loss is NaN or infinite (the last checkpoint stays) or the disk is full.
    """
    key = run_key(config, store.key, data, training, seed)
    if is_finished(folder, key, weights=True):
        return dict(read_json(folder / "run.json"))
    folder.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        keep_freed_memory()
    trainer = Trainer(config, store, data, training, seed, device)
    checkpoint = folder / CHECKPOINT_FILE
    if checkpoint.is_file():
        tensors, state = load_checkpoint(checkpoint, device)
        if state["key"] == key:
            trainer.load(tensors, state)
    started = time.monotonic() - trainer.seconds
    while trainer.index < training.steps:
        trainer.step()
        trainer.seconds = time.monotonic() - started
        if trainer.index % training.checkpoint_every == 0 and trainer.index < training.steps:
            trainer.check_finite()
            save_checkpoint(checkpoint, trainer.tensors(), trainer.state() | {"key": key})
        watch(trainer)
    sae = trainer.finish()
    run = {
        "key": key,
        **(names or {}),
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "store_key": store.key,
        "model": store.manifest.get("model"),
        "layer": store.manifest.get("layer"),
        "input_scale": trainer.input_scale,
        "steps": trainer.index,
        "tokens": trainer.index * data.batch_tokens,
        "seconds": round(trainer.seconds, 3),
        "final": {name: value for name, value in trainer.history[-1].items() if value == value},  # NaN is no JSON
    }
    write_parquet(folder / "history.parquet", pd.DataFrame(trainer.history), index=False)
    save_checkpoint(folder / WEIGHTS_FILE, sae.state_dict(), {"config": run["config"], "key": key})
    write_json(folder / "run.json", run)
    checkpoint.unlink(missing_ok=True)
    return dict(read_json(folder / "run.json"))
