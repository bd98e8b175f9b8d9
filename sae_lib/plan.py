"""What a profile costs, before anything starts: time, disk, memory, and what stands in the way.

The numbers follow from the profile's sizes and from the rates measured on the hardware that its `estimates`
names.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sae_lib.errors import ArtifactError
from sae_lib.experiments import MAIN_GROUPS, plan_runs
from sae_lib.paths import Paths
from sae_lib.profile import Profile

GB = 1e9
# Weights, two moments of Adam and as much again while a checkpoint replaces the last one.
CHECKPOINT_COPIES = 4
BYTES_PER_TOKEN_ID = 4
BYTES_PER_ACTIVATION = 2
BYTES_PER_WEIGHT = 4
# Executed notebooks, tables, figures and logs.
SMALL_FILES_BYTES = 50e6
# From the models' published config.json, so that the plan of a shipped profile needs no network.
PUBLISHED_WIDTHS = {"google/gemma-2-2b": 2304}


@dataclass(frozen=True)
class Estimate:
    """Cost of a whole run from nothing. Times in seconds by the number of the notebook, sizes in bytes."""

    seconds: dict[str, float]
    store_bytes: float
    runs_bytes: float
    reference_bytes: float
    saes: dict[str, int]
    """Number of different SAEs by the first group that has them."""
    rows: int
    d_in: int

    @property
    def disk_bytes(self) -> float:
        return self.store_bytes + self.runs_bytes + self.reference_bytes + SMALL_FILES_BYTES


def estimate(profile: Profile) -> Estimate:
    """What running all notebooks of `profile` from nothing takes.

    Raises:
        ArtifactError: the model's configuration, which names d_in, cannot be read.
    """
    rates, data, training = profile.estimates, profile.data, profile.training
    d_in = model_width(profile)
    # One SAE may stand in two groups; it is trained and evaluated once, for the first of them.
    distinct: dict[tuple[str, int, bool], str] = {}
    for run in plan_runs(profile):
        distinct.setdefault((run.config.model_dump_json(), run.seed, run.trained), run.group)
    saes = Counter(distinct.values())
    trained = {group: count for group, count in saes.items() if group != "untrained"}
    in_02, in_04 = (sum(count for group, count in of.items() if group in MAIN_GROUPS) for of in (trained, saes))
    ablations = sum(saes.values()) - in_04
    workers = 1 if rates.needs_gpu else training.workers
    training_s = training.steps * rates.sae_step_ms / 1000 / workers
    evaluation_s = rates.evaluate_sae_s / workers
    overhead = rates.overhead_s / 5
    seconds = {
        "01": overhead + rates.extract_s + data.train_tokens / rates.harvest_tokens_per_s,
        "02": overhead + in_02 * training_s,
        "03": overhead + rates.ground_truth_s + ablations * (training_s + evaluation_s),
        "04": overhead + in_04 * evaluation_s,
        "05": overhead,
    }
    contexts = data.train_tokens / (data.context_length - 1) + data.held_out_contexts + data.calibration_contexts
    sae_bytes = 2 * d_in * training.d_sae * BYTES_PER_WEIGHT
    return Estimate(
        seconds=seconds,
        store_bytes=data.train_tokens * d_in * BYTES_PER_ACTIVATION
        + contexts * data.context_length * BYTES_PER_TOKEN_ID,
        runs_bytes=(sum(saes.values()) + CHECKPOINT_COPIES * workers) * sae_bytes,
        reference_bytes=rates.reference_gb * GB,
        saes=dict(saes),
        rows=data.train_tokens,
        d_in=d_in,
    )


def model_width(profile: Profile) -> int:
    """d_in, the width of the residual stream, from the model's config.json (fetched for a hub model).

    Raises:
        ArtifactError: there is no such model or its configuration names no width.
    """
    from sae_lib.model_files import model_folder

    if profile.model.name in PUBLISHED_WIDTHS:
        return PUBLISHED_WIDTHS[profile.model.name]
    folder = model_folder(profile.model.name, profile.model.revision, weights=False)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for field in ("hidden_size", "n_embd", "d_model"):
        if field in config:
            return int(config[field])
    raise ArtifactError(f"model.name: config.json of {profile.model.name} names no hidden_size")


def blockers(profile: Profile, cost: Estimate, paths: Paths) -> list[str]:
    """What would stop a run, one line each with what to change; empty when nothing does."""
    found = []
    folder = _existing(paths.root)
    free = shutil.disk_usage(folder).free + _size(paths.root)
    if cost.disk_bytes > free:
        found.append(
            f"disk: {profile.name} needs {cost.disk_bytes / GB:.1f} GB and {folder} has {free / GB:.1f} GB; "
            f"make room, set SAE_LIB_OUTPUT to a larger disk, or lower data.train_tokens"
        )
    if profile.estimates.needs_gpu and not has_gpu():
        found.append(
            f"GPU: {profile.name} needs one ({profile.estimates.hardware}) and torch sees none; "
            f"run on a machine with a GPU, or choose a profile for CPU (PROFILE=pocket)"
        )
    return found


def memory_note(profile: Profile) -> str:
    """How much memory a run needs beside what is free now."""
    from sae_lib.memory import free_memory

    needed = f"{profile.estimates.memory_gb:.0f} GB of {'GPU memory' if profile.estimates.needs_gpu else 'RAM'}"
    if profile.estimates.needs_gpu and not has_gpu():
        return needed
    free = free_memory("cuda" if profile.estimates.needs_gpu else "cpu")
    return f"{needed}, {free / GB:.0f} GB free now"


def has_gpu() -> bool:
    """Whether torch can use a GPU here."""
    import torch

    return bool(torch.cuda.is_available())


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.is_dir() else _existing(folder.parent)


def _size(folder: Path) -> int:
    """Bytes that a profile's own folder already takes: they are part of what it needs."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
