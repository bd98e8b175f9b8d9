"""What a profile costs, before anything starts: time, disk, memory, and what stands in the way.

Sizes are arithmetic (`plan_sizes`). Times follow from sizes and from the rates that the profile's `estimates` give for
the hardware named there; this machine is timed beside it for a moment (`plan_speed`).

The floor of a training step is its arithmetic: five products of `[batch, d_in]` with `[d_in, d_sae]`, two forward and
three backward (the input needs no gradient), of 2 FLOP for each multiplication; and the optimiser's 28 bytes a weight
(Adam reads weight, gradient and two moments and writes three of them back, in float32).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lib.data import hub
from sae_lib.profiles.profile import Profile, Score
from sae_lib.profiles.runs import MAIN_GROUPS, plan_runs
from sae_lib.study.plan_input import missing_input, unwritable
from sae_lib.study.plan_sizes import FLOAT, ModelSize, Sizes, model_size, run_sizes, weights_of
from sae_lib.study.plan_speed import has_gpu, speed_here
from sae_lib.util.files import free_bytes, nearest_folder, used_bytes
from sae_lib.util.memory import free_memory
from sae_lib.util.paths import Paths

GB = 1e9
ADAM_BYTES = 28
HUB_BYTES = FLOAT  # hub models come as float32 at most
ABLATION_SCORES: tuple[Score, ...] = ("reconstruction", "absorption")


@dataclass(frozen=True)
class Estimate:
    """Cost of a whole run from nothing. Times in seconds by the number of the notebook, sizes in bytes."""

    seconds: dict[str, float]
    sizes: Sizes
    processes: int
    saes: dict[str, int]
    """Number of different SAEs by the first group that has them."""
    rows: int
    d_in: int
    speed: float | None
    """How many times as fast this machine is as the named hardware; None where that cannot be told here."""

    @property
    def disk_bytes(self) -> float:
        return self.sizes.disk_peak


def estimate(profile: Profile, speed: float | None = None, processes: int = 1) -> Estimate:
    """What running all notebooks of `profile` from nothing takes.

    Args:
        speed: times are those of the named hardware divided by it; by default this machine is timed.
        processes: ranks of a distributed run, which share harvest, training and evaluation.

    Raises:
        ArtifactError: the model's configuration, which gives the sizes, cannot be read.
    """
    model = model_size(profile.model)
    # One SAE may stand in two groups; it is trained and evaluated once, for the first of them.
    distinct: dict[tuple[str, int, bool], str] = {}
    for run in plan_runs(profile):
        distinct.setdefault((run.config.model_dump_json(), run.seed, run.trained), run.group)
    saes = Counter(distinct.values())
    known = speed if speed is not None else speed_here(profile, model.d_in)
    return Estimate(
        seconds=_seconds(profile, model, saes, known or 1.0, processes),
        sizes=run_sizes(profile, model, sum(saes.values()), processes),
        processes=processes,
        saes=dict(saes),
        rows=profile.data.train_tokens,
        d_in=model.d_in,
        speed=known,
    )


def step_floor(profile: Profile, d_in: int) -> float:
    """Seconds that the arithmetic of one training step takes at the rates of the named hardware."""
    rates, n = profile.estimates, profile.training.d_sae
    products = 5 * 2.0 * profile.data.batch_tokens * d_in * n
    return products / (rates.gemm_gflops * 1e9) + ADAM_BYTES * weights_of(d_in, n) / (rates.memory_gb_s * GB)


def step_seconds(profile: Profile, d_in: int) -> float:
    """Seconds of a training step on the named hardware: its arithmetic, its passes over the latents, and the rest."""
    rates, latents = profile.estimates, profile.data.batch_tokens * profile.training.d_sae
    passes = rates.latent_bytes * latents / (rates.memory_gb_s * GB)
    return rates.step_over_floor * step_floor(profile, d_in) + passes + rates.step_overhead_ms / 1000


def token_floor(profile: Profile, model: ModelSize) -> float:
    """Seconds that the arithmetic of harvesting one token takes at the rates of the named hardware."""
    return model.flops_per_token(profile.model.layer + 1) / (profile.estimates.gemm_gflops * 1e9)


def _seconds(profile: Profile, model: ModelSize, saes: Counter[str], speed: float, processes: int) -> dict[str, float]:
    rates, training = profile.estimates, profile.training
    workers = processes if rates.needs_gpu else processes * min(training.workers, os.cpu_count() or 1)
    trained = {group: count for group, count in saes.items() if group != "untrained"}
    in_02, in_04 = (sum(count for group, count in of.items() if group in MAIN_GROUPS) for of in (trained, saes))
    ablations = sum(saes.values()) - in_04
    train = training.steps * step_seconds(profile, model.d_in) / workers
    token = token_floor(profile, model) * rates.harvest_over_floor
    score, some = sum(rates.score_s.values()), sum(rates.score_s[name] for name in ABLATION_SCORES)
    harvest = profile.data.train_tokens * token / processes
    again = harvest if profile.data.store == "memory" else 0.0
    work = {
        "01": harvest,
        "02": again + in_02 * train,
        "03": ablations * (train + some / workers),
        "04": rates.probing_tokens * token + in_04 * score / workers,
        "05": 0.0,
    }
    return {number: (rates.fixed_s[number] + seconds) / speed for number, seconds in work.items()}  # type: ignore[index]


def blockers(profile: Profile, cost: Estimate, paths: Paths) -> list[str]:
    """What would stop a run, one line each with what to change; empty when nothing does."""
    on_gpu = profile.estimates.needs_gpu
    found = [*missing_input(profile), unwritable(paths) or _disk(profile, cost, paths), _download(profile)]
    if on_gpu and not has_gpu():
        found.append(
            f"GPU: {profile.name} needs one ({profile.estimates.hardware}) and torch sees none; "
            f"run on a machine with a GPU, or choose a profile for CPU (PROFILE=pocket)"
        )
    elif on_gpu:
        found.append(_memory(profile, cost, "GPU memory", "cuda"))
    found.append(_memory(profile, cost, "memory", "cpu"))
    return [line for line in found if line is not None]


def memory_note(profile: Profile) -> str:
    """How much memory a run needs, host and GPU, beside what is free now."""
    sizes = run_sizes(profile, model_size(profile.model), saes=0)
    parts = [f"{max(sizes.host.values()) / GB:.1f} GB of RAM ({free_memory('cpu') / GB:.1f} GB free now)"]
    if sizes.gpu:
        free = f" ({free_memory('cuda') / GB:.1f} GB free now)" if has_gpu() else ""
        parts.append(f"{max(sizes.gpu.values()) / GB:.1f} GB of GPU memory{free}")
    if profile.data.store != "memory":
        parts.append(f"{sizes.resident / GB:.1f} GB more where the activations fit into memory")
    return ", ".join(parts)


def speed_note(profile: Profile, cost: Estimate) -> str:
    """What the times of an estimate stand for."""
    hardware = profile.estimates.hardware
    if cost.speed is None:
        return f"times are of: {hardware}"
    return f"here, {cost.speed:.2g} times as fast as: {hardware}"


def _disk(profile: Profile, cost: Estimate, paths: Paths) -> str | None:
    folder = nearest_folder(paths.root)
    free = free_bytes(folder) + used_bytes(paths.root)  # what is there already is part of what it needs
    if cost.disk_bytes <= free:
        return None
    changes = []
    store = cost.sizes.disk["store"]
    if store:
        in_memory = profile.model_copy(update={"data": profile.data.model_copy(update={"store": "memory"})})
        sizes = run_sizes(in_memory, model_size(profile.model), sum(cost.saes.values()))
        if sizes.disk_peak <= free and _fits_in_memory(sizes):
            if profile.data.store == "auto":  # which is what it does then
                return None
            changes.append("set data.store to memory")
        fewer = _round_down((free - sizes.disk_peak) * cost.rows / store)
        if fewer >= profile.data.batch_tokens:
            changes.append(f"lower data.train_tokens to {fewer:_}")
    changes.append("set SAE_LIB_OUTPUT to a folder on a disk with that much")
    return (
        f"disk: {profile.name} needs {cost.disk_bytes / GB:.1f} GB and {folder} has {free / GB:.1f} GB; "
        f"{', or '.join(changes)}"
    )


def _fits_in_memory(sizes: Sizes) -> bool:
    if sizes.gpu and (not has_gpu() or max(sizes.gpu.values()) > free_memory("cuda")):
        return False
    return max(sizes.host.values()) <= free_memory("cpu")


def _download(profile: Profile) -> str | None:
    """Whether a hub model that is not there yet fits beside what the hub's cache holds."""
    name = profile.model.name
    if hub.model(name) is None:  # a folder, or a model whose configuration has been fetched already
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    files = ("model.safetensors", "model.safetensors.index.json")
    if any(isinstance(try_to_load_from_cache(name, file, revision=profile.model.revision), str) for file in files):
        return None
    needed = model_size(profile.model).weights() * HUB_BYTES
    folder = nearest_folder(Path(HF_HUB_CACHE))
    free = free_bytes(folder)
    if needed <= free:
        return None
    return (
        f"disk: the weights of {name} are up to {needed / GB:.1f} GB and {folder} has {free / GB:.1f} GB; "
        "set HF_HOME to a folder on a larger disk"
    )


def _memory(profile: Profile, cost: Estimate, kind: str, device: str) -> str | None:
    free = free_memory(device)
    needed, work = max((size, work) for work, size in cost.sizes.on(device).items())
    if needed <= free:
        return None
    model = model_size(profile.model)

    def fits(changed: Profile) -> bool:
        return max(run_sizes(changed, model, 0, cost.processes).on(device).values()) <= free

    change = _first_that_fits(profile, fits)
    return (
        f"{kind}: {profile.name} needs {needed / GB:.1f} GB ({work}) and {free / GB:.1f} GB are free; "
        f"{change or f'run on a machine with {needed / GB:.0f} GB free'}"
    )


def _first_that_fits(profile: Profile, fits: Callable[[Profile], bool]) -> str | None:
    """The mildest change of one field after which the run fits."""
    for section, field, values in _changes(profile):
        for value in values:
            changed = getattr(profile, section).model_copy(update={field: value})
            if fits(profile.model_copy(update={section: changed})):
                return f"set {section}.{field} to {str(value).lower()}"
    return None


def _changes(profile: Profile) -> Iterator[tuple[str, str, Iterable[Any]]]:
    data, training = profile.data, profile.training
    if data.store == "memory":
        yield "data", "store", ("disk",)
    yield "training", "workers", range(training.workers - 1, 0, -1)
    yield "data", "batch_tokens", _halves(data.batch_tokens, data.window)
    yield "data", "held_out_contexts", _halves(data.held_out_contexts, 1)
    yield "training", "d_sae", _halves(training.d_sae, max(1, profile.model.layer))


def _halves(value: int, step: int) -> Iterator[int]:
    """Half of `value`, a quarter, ..., while multiples of `step`."""
    while value % 2 == 0 and value // 2 % step == 0 and value // 2 >= step:
        value //= 2
        yield value


def _round_down(value: float) -> int:
    """To two digits.

    >>> _round_down(2_345_678.9)
    2300000
    """
    if value < 1:
        return 0
    unit = 10 ** max(0, len(str(int(value))) - 2)
    return int(value // unit * unit)
