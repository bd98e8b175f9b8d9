"""What a run of a profile takes and what would stop it, before anything starts.

Disk and memory are arithmetic, from the profile and the language model's configuration. Time is what was measured:
a training step here, once SAEs have been trained here, and the whole run on the hardware that the profile names.

A bound stands beside it for profiles that need a GPU: the matrix products and the optimiser's traffic at their peaks.
A step multiplies x W_enc and f W_dec, and three more products of their size are the gradients of f, W_dec and W_enc:

    product = 2 batch d_in d_sae FLOP,    Adam = 28 bytes x 2 d_in d_sae

Adam reads weight, gradient and two moments and writes weight and moments, in float32. All else comes on top, so no step
is faster. The language model multiplies a token by each weight of its blocks, and by the embedding for logits.
`tests/training/test_dry_run.py` counts all of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from sae_lib.data.model_loading import ITEM
from sae_lib.profiles.runs import different, plan_runs
from sae_lib.study.measures import ModelSize, model_size
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import check_writable, free_bytes, nearest_folder, read_json, used_bytes
from sae_lib.util.memory import free_memory
from sae_lib.util.paths import OUTPUT_VARIABLE, Paths

if TYPE_CHECKING:
    from sae_lib.autoencoders.config import SAEConfig
    from sae_lib.profiles.profile import Profile

GB = 1e9
KINDS = {"cpu": "memory", "cuda": "GPU memory"}
FLOAT = 4  # bytes of float32, as of a token id
ROW_INDEX = 6  # context (int32) and position (uint16) of a row of the store
# Measured: what is small of one SAE; a process with everything imported; one more; a GPU's context.
RECORDS_OF_AN_SAE, NOTEBOOK, WORKER, CUDA_CONTEXT = 33e3, 0.65e9, 0.28e9, 0.6e9
LATENT_COPIES = 9  # tensors [batch, d_sae] that a training step holds at once
SAES_TOGETHER = 4  # evaluated at once
STATES, DISTRIBUTIONS = 4 * 2**30, 2**30  # the most that reconstruction's reference keeps, `metrics.reconstruction`
ADAM_BYTES = 28  # of a weight and a step
# NVIDIA H100 Tensor Core GPU data sheet, SXM: FLOP of dense products in a second in bfloat16 (half of what it states
# with sparsity), and in float32 without TF32, as PyTorch multiplies by default; bytes of its memory in a second.
BF16, FP32, BANDWIDTH = 989e12, 67e12, 3.35e12


class Plan(NamedTuple):
    """What one run makes and takes: SAEs by the first group that has them (one of two groups is made once) and how many
    of them are trained; bytes of disk by subfolder, checkpoints at their most; bytes of memory at the peak, by device:
    "cpu", and "cuda" where the profile needs a GPU."""

    model: ModelSize
    saes: Counter[str]
    trained: int
    disk: dict[str, float]
    memory: dict[str, float]


def make_plan(profile: Profile) -> Plan:
    """What running all notebooks of `profile` from nothing takes; memory is that of one process on a GPU."""
    runs = different(plan_runs(profile))
    saes = Counter[str](run.group for run in runs)
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
    }
    half = sae if training.autocast == "bfloat16" else 0.0  # weights and gradients again, in two bytes
    train = 4 * sae + half + data.batch_tokens * (training.d_sae * LATENT_COPIES + 6 * d_in) * FLOAT
    latents = min(SAES_TOGETHER * words * training.d_sae * FLOAT, scores.absorption.latent_bytes)
    score = model.weights * item + SAES_TOGETHER * sae + min(held_out * model.vocab * FLOAT, DISTRIBUTIONS) + latents
    if profile.cost.needs_gpu:
        memory = {"cuda": CUDA_CONTEXT + max(train, score), "cpu": NOTEBOOK + model.weights * item + reference}
    else:
        memory = {"cpu": NOTEBOOK + workers * ((WORKER if workers > 1 else 0.0) + max(train, score + reference))}
    return Plan(model, saes, sum(run.trained for run in runs), disk, memory)


def time_note(profile: Profile, paths: Paths, plan: Plan) -> str:
    """How long a run takes from nothing; its SAEs at the rate of those that were trained here, or else of those whose
    rows are committed; and of how many there are rows, so that they are not trained again."""
    from sae_lib.study.rows import read_rows, rows_folder

    cost, trained = profile.cost, [read_json(file) for file in paths.runs.glob("*/run.json")]
    note = f"about {cost.hours:g} h from nothing, measured" if cost.hours else "not measured"
    note += f" on {cost.hardware}" if cost.hardware else ""
    kept, where = [*rows_folder(paths).glob("*.json.gz")], "here"
    if not trained:
        trained, where = [read_rows(file).run for file in kept], "for the committed rows"
    if steps := sum(run["steps"] for run in trained):
        step = sum(run["seconds"] for run in trained) / steps
        at_once = 1 if cost.needs_gpu else profile.training.workers
        hours = step * profile.training.steps * plan.trained / at_once / 3600
        note += f"; training {plan.trained} SAEs: {hours:.2g} h, at {1000 * step:.2g} ms a step as measured {where}"
    return note + (f"; rows of {len(kept)} SAEs are there" if kept else "")


def blockers(profile: Profile, plan: Plan, paths: Paths) -> list[str]:
    """What would stop a run, one line each with what to change; empty when nothing does."""
    import torch

    from sae_lib.data import documentation
    from sae_lib.data.corpus import text_files
    from sae_lib.data.model_loading import device_of
    from sae_lib.metrics.probing.datasets import check_texts

    corpus, found = profile.corpus, []
    asked, longest = profile.data.context_length, plan.model.positions
    if longest is not None and asked > longest:
        found.append(f"data.context_length: {asked} is more than the {longest} positions of {profile.model.name}")
    checks: list[Callable[[], object]] = [
        lambda: check_writable(paths.root),
        lambda: profile.model.check_layer(plan.model.layers),
        lambda: device_of(profile.model),
        lambda: check_texts(profile.evaluation.probing, corpus),
        lambda: corpus.source == "documentation" and documentation.versions(corpus.packages),
        lambda: corpus.source == "files" and text_files(corpus.files),
    ]
    for check in checks:
        try:
            check()
        except ArtifactError as error:
            found.append(str(error))

    folder, size, store = nearest_folder(paths.root), sum(plan.disk.values()), plan.disk["store"]
    free = free_bytes(folder) + used_bytes(paths.root)  # what is there already is part of what it needs
    if size > free:
        fewer = int(0.95 * (free - (size - store)) / store * profile.data.train_tokens)
        change = f"lower data.train_tokens to {fewer:_}, or " if fewer >= profile.data.batch_tokens else ""
        change += f"set {OUTPUT_VARIABLE} to a folder on a disk with that much"
        found.append(f"disk: {profile.name} needs {size / GB:.1f} GB and {folder} has {free / GB:.1f} GB; {change}")
    for device, needed in plan.memory.items():
        if device == "cuda" and not torch.cuda.is_available():
            found.append(
                f"GPU: {profile.name} needs one ({profile.cost.hardware}) and torch sees none; "
                "run on a machine with a GPU, or choose a profile for CPU (PROFILE=pocket)"
            )
        elif needed > (free := free_memory(device)):
            workers = "training.workers or " if device == "cpu" and profile.training.workers > 1 else ""
            found.append(
                f"{KINDS[device]}: {profile.name} needs {needed / GB:.1f} GB and {free / GB:.1f} GB are free; "
                f"lower {workers}data.batch_tokens or training.d_sae"
            )
    return list(dict.fromkeys(found))


def products(config: SAEConfig) -> tuple[int, int]:
    """Products `[batch, d_in] x [d_in, d_sae]`, or of that size, in bfloat16 and in float32: what no step of this SAE
    goes without under autocast. Of AuxK, which depends on the number of dead latents, none.

    JumpReLU encodes in float32, so encoder and gradient are; the Gated SAE's frozen decoder and its gradient, and ATM's
    E[f (x - x_hat)] and decoder without masks, lie outside of autocast.
    """
    bf16, fp32 = {"jumprelu": (3, 2), "gated": (5, 2)}.get(config.architecture, (5, 0))
    masking = config.get("masking")
    if masking is not None and masking.contribution == "leave_one_out" and "contribution" in masking.components:
        fp32 += 2
    return bf16, fp32


def product_flop(d_in: int, d_sae: int, batch: int) -> int:
    """Floating-point operations of one product."""
    return 2 * batch * d_in * d_sae


def adam_bytes(d_in: int, d_sae: int) -> int:
    """Memory traffic of the optimiser in one step, of W_enc and W_dec."""
    return ADAM_BYTES * 2 * d_in * d_sae


def harvest_flop(model: ModelSize, layer: int) -> float:
    """Of a token: the blocks up to `layer`, without attention, which multiplies by no weights."""
    return 2 * model.blocks * (layer + 1) / model.layers


def losses_flop(model: ModelSize, layer: int) -> float:
    """Of a token, for CE and KL of an SAE: the later blocks, and the head for the clean and the changed stream."""
    later = model.blocks * (model.layers - layer - 1) / model.layers
    return 2 * (later + 2 * model.d_in * model.vocab)


def bound_note(profile: Profile, model: ModelSize) -> str:
    """One line: the bound of a step, by method where it differs, of all SAEs that a profile trains, of the harvest, and
    of an SAE's CE and KL."""
    training, data, d_in, layer = profile.training, profile.data, model.d_in, profile.model.layer
    batch, held_out = data.batch_tokens, data.held_out_contexts * data.context_length
    runs = [run for run in different(plan_runs(profile)) if run.trained]
    seconds = {}
    for run in runs:
        bf16, fp32 = products(run.config)
        bf16, fp32 = (bf16, fp32) if training.autocast == "bfloat16" else (0, bf16 + fp32)
        flop, traffic = product_flop(d_in, run.config.d_sae, batch), adam_bytes(d_in, run.config.d_sae)
        seconds[run] = flop * (bf16 / BF16 + fp32 / FP32) + traffic / BANDWIDTH
    least, most = min(seconds.values()), max(seconds.values())
    slowest = ", ".join(sorted({run.method for run, value in seconds.items() if value == most}))
    hours = sum(seconds.values()) * training.steps / 3600
    lm_peak = FP32 if profile.model.dtype == "float32" else BF16
    harvest, losses = data.train_tokens * harvest_flop(model, layer), held_out * losses_flop(model, layer)
    flop, traffic = product_flop(d_in, training.d_sae, batch), adam_bytes(d_in, training.d_sae)
    return (
        f"a training step takes at least {1e3 * least:.1f} ms, of {slowest} {1e3 * most:.1f} (products of "
        f"{flop / 1e9:.0f} GFLOP, five or more; {traffic / 1e9:.1f} GB of Adam), {len(runs)} SAEs {hours:.2g} h, the "
        f"harvest {harvest / lm_peak / 60:.2g} min, CE and KL of an SAE {losses / lm_peak:.2g} s, at the peak of one "
        f"H100 SXM ({BF16 / 1e12:.0f} TFLOP/s in bf16, {FP32 / 1e12:.0f} in fp32, {BANDWIDTH / 1e12:.2f} TB/s)"
    )
