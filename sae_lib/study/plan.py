"""What a run of a profile takes and what would stop it, before anything starts.

Disk and memory are arithmetic, from the profile and the language model's configuration. Time is what was measured:
a training step here, once SAEs have been trained here, and the whole run on the hardware that the profile names.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sae_lib.data.model_loading import ITEM
from sae_lib.profiles.runs import different, plan_runs
from sae_lib.study.distributed import ALONE, Machines
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.files import free_bytes, nearest_folder, read_json, used_bytes
from sae_lib.util.memory import free_memory
from sae_lib.util.paths import OUTPUT_VARIABLE, Paths

if TYPE_CHECKING:
    from sae_lib.data.config import ModelConfig
    from sae_lib.profiles.profile import Profile

GB = 1e9
FLOAT = 4  # bytes of float32, as of a token id
ROW_INDEX = 6  # context (int32) and position (uint16) of a row of the store
# Measured: what is small of one SAE and of one run; a process with everything imported; one more; a GPU's context.
RECORDS_OF_AN_SAE, RECORDS_OF_A_RUN = 33e3, 5.5e6
NOTEBOOK, WORKER, CUDA_CONTEXT = 0.65e9, 0.28e9, 0.6e9
LATENT_COPIES = 9  # tensors [batch, d_sae] that a training step holds at once
SAES_TOGETHER = 4  # evaluated at once
STATES, DISTRIBUTIONS = 4 * 2**30, 2**30  # the most that reconstruction's reference keeps, `metrics.reconstruction`


class ModelSize(NamedTuple):
    """Of a language model, by its configuration."""

    d_in: int
    layers: int
    vocab: int
    weights: int
    positions: int | None = None
    """Where they are learned."""


@dataclass(frozen=True)
class Plan:
    """What one run makes and takes. Sizes in bytes."""

    saes: Counter[str]
    """Different SAEs by the first group that has them: one of two groups is made once."""
    trained: int
    """How many of them are trained."""
    disk: dict[str, float]
    """By subfolder, checkpoints at their most."""
    memory: dict[str, dict[str, float]]
    """At the peak of each kind of work, by device: "cpu", and "cuda" where the profile needs a GPU."""


def model_size(model: ModelConfig) -> ModelSize:
    """The size of a profile's model, without its weights; only the configuration of an unknown hub model is fetched.

    Raises ArtifactError: there is no such model, or transformers has no causal language model of that kind.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sae_lib.data import hub
    from sae_lib.data.language_model import learned_positions
    from sae_lib.data.model_loading import model_folder, readable_name

    pin = hub.model(model.name)
    try:
        if pin:
            config = AutoConfig.for_model(**pin.config)
        else:
            config = AutoConfig.from_pretrained(model_folder(readable_name(model), model.revision, weights=False))
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config)
        weights, text = sum(p.numel() for p in whole.parameters()), config.get_text_config()
        return ModelSize(text.hidden_size, text.num_hidden_layers, text.vocab_size, weights, learned_positions(whole))
    except (ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        raise ArtifactError(
            f"model.name: config.json of {model.name} is not understood ({first_line(error)})"
        ) from None


def make_plan(profile: Profile) -> Plan:
    """What running all notebooks of `profile` from nothing takes; memory is that of one process on a GPU."""
    runs = different(plan_runs(profile))
    saes = Counter[str](run.group for run in runs)
    trained = sum(run.trained for run in runs)
    model, data, training, scores = model_size(profile.model), profile.data, profile.training, profile.evaluation
    d_in, item, body = model.d_in, ITEM[profile.model.dtype], data.context_length - 1
    contexts = math.ceil(data.train_tokens / body) + data.held_out_contexts + data.calibration_contexts
    held_out = data.held_out_contexts * data.context_length
    words = min(scores.absorption.max_words or model.vocab, model.vocab)
    texts = min(data.held_out_contexts, scores.stability.text_contexts) * body
    states = 2 * held_out * d_in * item
    sae = (2 * d_in * training.d_sae + training.d_sae + d_in) * FLOAT
    workers = 1 if profile.cost.needs_gpu else training.workers
    reference = (
        (states if states <= STATES else 0) + (1.2 * words + texts) * d_in * FLOAT
        + data.calibration_contexts * body * (2 * d_in + ROW_INDEX)
    )  # fmt: skip
    disk = {
        "store": data.train_tokens * (2.0 * d_in + ROW_INDEX),
        "tokens": float(contexts * data.context_length * FLOAT),
        "runs": sum(saes.values()) * (sae + RECORDS_OF_AN_SAE) + workers * 2 * 3 * sae,  # two checkpoints: Adam's three
        "reference": reference + profile.cost.probing_tokens * d_in * item,
        "other files": RECORDS_OF_A_RUN,
    }
    half = sae if training.autocast == "bfloat16" else 0.0  # weights and gradients again, in two bytes
    train = 4 * sae + half + data.batch_tokens * (training.d_sae * LATENT_COPIES + 6 * d_in) * FLOAT
    latents = min(SAES_TOGETHER * words * training.d_sae * FLOAT, scores.absorption.latent_bytes)
    score = model.weights * item + SAES_TOGETHER * sae + min(held_out * model.vocab * FLOAT, DISTRIBUTIONS) + latents
    harvest = model.weights * item + 2 * data.shard_rows * d_in * 2.0
    if profile.cost.needs_gpu:
        gpu = {"harvest": harvest, "training": train, "evaluation": score}
        host = {"harvest": harvest, "training": sae, "evaluation": model.weights * item + reference}
        memory = {"cuda": {work: CUDA_CONTEXT + size for work, size in gpu.items()}}
    else:
        host = {"harvest": harvest, "training": train, "evaluation": score + reference}
        if workers > 1:
            host |= {work: workers * (WORKER + host[work]) for work in ("training", "evaluation")}
        memory = {}
    return Plan(saes, trained, disk, memory | {"cpu": {work: NOTEBOOK + size for work, size in host.items()}})


def time_note(profile: Profile, paths: Paths, plan: Plan, processes: int) -> str:
    """How long a run takes from nothing, and its SAEs at the rate of those that were trained here."""
    cost, trained = profile.cost, [read_json(file) for file in paths.runs.glob("*/run.json")]
    note = f"about {cost.hours:g} h from nothing, measured" if cost.hours else "not measured"
    note += f" on {cost.hardware}" if cost.hardware else ""
    if steps := sum(run["steps"] for run in trained):
        step = sum(run["seconds"] for run in trained) / steps
        at_once = processes * (1 if cost.needs_gpu else profile.training.workers)
        hours = step * profile.training.steps * plan.trained / at_once / 3600
        note += f"; training {plan.trained} SAEs: {hours:.2g} h, at {1000 * step:.2g} ms a step as measured here"
    return note


def memory_note(plan: Plan) -> str:
    """How much memory a run needs beside what is free."""
    notes = []
    for device, work in plan.memory.items():
        free = f" ({free_memory(device) / GB:.1f} GB free now)" if device == "cpu" or has_gpu() else ""
        notes.append(f"{max(work.values()) / GB:.1f} GB of {'RAM' if device == 'cpu' else 'GPU memory'}{free}")
    return ", ".join(notes)


def has_gpu() -> bool:
    """Whether torch can use a GPU here."""
    import torch

    return bool(torch.cuda.is_available())


def blockers(profile: Profile, plan: Plan, paths: Paths, machines: Machines = ALONE) -> list[str]:
    """What would stop a run on `machines`, one line each with what to change; empty when nothing does."""
    found = [*_missing(profile), _unwritable(paths) or _disk(profile, plan, paths)]
    for device, work in plan.memory.items():
        needed, free = max(work.values()), free_memory(device) if device == "cpu" or has_gpu() else -1
        kind, peak = "memory" if device == "cpu" else "GPU memory", max(work, key=work.__getitem__)
        if free < 0:
            found.append(
                f"GPU: {profile.name} needs one ({profile.cost.hardware}) and torch sees none; "
                "run on a machine with a GPU, or choose a profile for CPU (PROFILE=pocket)"
            )
        elif needed > free:
            fields = ["data.batch_tokens", "training.d_sae"]
            fields = ["training.workers", *fields] if device == "cpu" and profile.training.workers > 1 else fields
            found.append(
                f"{kind}: {profile.name} needs {needed / GB:.1f} GB ({peak}) and {free / GB:.1f} GB are free; "
                f"lower {' or '.join(fields)}"
            )
    if not machines.alone and not any(line and line.startswith("GPU:") for line in found):
        found.append(_too_few(profile, machines))
    return [line for line in found if line]


def _too_few(profile: Profile, machines: Machines) -> str | None:
    from sae_lib.study.distributed.launch import check

    try:
        check(profile, machines)
    except ArtifactError as error:
        return str(error)
    return None


def _missing(profile: Profile) -> list[str]:
    """What a profile names and this machine, or the model, does not have: what its run would say of it."""
    from sae_lib.data import documentation
    from sae_lib.data.corpus import text_files
    from sae_lib.data.model_loading import device_of
    from sae_lib.metrics.probing.sources import known_datasets

    def read_documentation() -> None:
        for package in profile.corpus.packages:
            documentation.package_folder(package)
        documentation.versions(profile.corpus.packages)

    def check_positions() -> None:
        longest, asked = model_size(profile.model).positions, profile.data.context_length
        if longest is not None and asked > longest:
            raise ArtifactError(
                f"data.context_length: {asked} is more than the {longest} positions of {profile.model.name}"
            )

    checks: list[Callable[[], object]] = [
        check_positions,
        lambda: profile.model.check_layer(model_size(profile.model).layers),
        lambda: device_of(profile.model),
        lambda: known_datasets(profile.evaluation.probing),
    ]
    source = {"documentation": read_documentation, "files": lambda: text_files(profile.corpus.files)}
    found = []
    for check in (*checks, source.get(profile.corpus.source, lambda: None)):
        try:
            check()
        except ArtifactError as error:
            found.append(str(error))
    return found


def _unwritable(paths: Paths) -> str | None:
    place = nearest_folder(paths.root)
    try:
        # Some file systems refuse only the attempt. The file is gone when it is closed.
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        why = error.strerror
    return f"output: cannot write in {place} ({why}); set {OUTPUT_VARIABLE} to a folder that you may write"


def _disk(profile: Profile, plan: Plan, paths: Paths) -> str | None:
    folder, needed, store = nearest_folder(paths.root), sum(plan.disk.values()), plan.disk["store"]
    free = free_bytes(folder) + used_bytes(paths.root)  # what is there already is part of what it needs
    if needed <= free:
        return None
    changes, room = [], free - (needed - store)
    if (fewer := int(0.95 * room / store * profile.data.train_tokens)) >= profile.data.batch_tokens:
        changes.append(f"lower data.train_tokens to {fewer:_}")
    changes.append(f"set {OUTPUT_VARIABLE} to a folder on a disk with that much")
    return (
        f"disk: {profile.name} needs {needed / GB:.1f} GB and {folder} has {free / GB:.1f} GB; {', or '.join(changes)}"
    )
