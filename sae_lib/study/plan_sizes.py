"""How large a run is, by arithmetic: what it writes to disk, and what it holds in memory at its peak. No torch.

Sizes follow from the profile and from the language model's config.json. Three constants are measured: what a Python
process with everything imported holds, and the small files of one SAE and of one run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_lib.data import hub
from sae_lib.data.model_files import model_folder
from sae_lib.util.errors import ArtifactError

if TYPE_CHECKING:
    from sae_lib.data.config import ModelConfig
    from sae_lib.profiles.profile import Profile

GiB = 2**30
FLOAT = 4  # bytes of float32
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
TOKEN_ID = 4
ROW_INDEX = 6  # context (int32) and position (uint16) of a row of the store
ADAM = 3  # weights and two moments
# Training curve, run.json and the scores of one SAE; executed notebooks, tables, figures, logs and toys of one run.
RECORDS_OF_AN_SAE = 33e3
RECORDS_OF_A_RUN = 5.5e6
# The command line and a notebook's process with torch, transformers, datasets, pandas and matplotlib, before it holds
# anything of the above; a worker process; the CUDA context of one.
NOTEBOOK = 0.65e9
WORKER = 0.28e9
CUDA_CONTEXT = 0.6e9
# Tensors [batch, d_sae] in float32 that a step holds at once: latents, masks, and their gradients.
LATENT_COPIES = 9
SAES_TOGETHER = 4  # evaluated at once
DISTRIBUTIONS = GiB  # the most that the clean model's distributions may take (`metrics.core_reference`)
STATES = 4 * GiB  # the most that residual stream and last hidden states of held-out text may take
LOGITS = 6 * 2**24 * FLOAT  # a chunk of logits on a GPU, and what becomes of it
CONTEXTS_IN_A_PASS = 32
SHARDS_HELD = 2  # one that is computed, one that is written

# Families whose MLP is two matrices; that of the others has a gate beside them.
WITHOUT_GATE = {"gpt2", "gpt_neox", "gptj", "gpt_neo", "opt", "phi", "bloom", "falcon"}


@dataclass(frozen=True)
class ModelSize:
    """Weights of a language model, without biases and norms: within 1 % of what it has."""

    d_in: int
    layers: int
    vocab: int
    block: int
    """Weights of one block."""
    embedding: int
    """Weights of the embeddings, and of the head where it has its own."""

    def weights(self, blocks: int | None = None) -> int:
        """Weights of the whole model, or of the model cut after so many blocks."""
        return self.embedding + self.block * (self.layers if blocks is None else blocks)

    def flops_per_token(self, blocks: int) -> float:
        """A multiplication and an addition per weight of the blocks; attention scores are left out."""
        return 2.0 * self.block * blocks


def model_size(config: ModelConfig) -> ModelSize:
    """The size of a profile's model from its config.json, fetched for a hub model that `hub.yaml` does not have.

    Raises:
        ArtifactError: there is no such model, or its configuration names no width.
    """
    pin = hub.model(config.name)
    found: Mapping[str, Any] | None = pin.config if pin else None
    if found is None:
        folder = model_folder(config.name, config.revision, weights=False)
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert found is not None
        found = found.get("text_config", found)

    def read(*names: str, default: int | None = None) -> int:
        for name in names:
            if found.get(name) is not None:
                return int(found[name])
        if default is None:
            raise ArtifactError(f"model.name: config.json of {config.name} names no {names[0]}")
        return default

    d_in = read("hidden_size", "n_embd", "d_model")
    layers = read("num_hidden_layers", "n_layer")
    vocab = read("vocab_size")
    heads = read("num_attention_heads", "n_head")
    width = read("head_dim", default=d_in // heads)
    inner = read("intermediate_size", "n_inner", default=4 * d_in)
    attention = 2 * d_in * width * (heads + read("num_key_value_heads", default=heads))
    matrices = 2 if found.get("model_type") in WITHOUT_GATE else 3
    own_head = not found.get("tie_word_embeddings", True)
    positions = read("n_positions", default=0)
    return ModelSize(
        d_in, layers, vocab, attention + matrices * d_in * inner, d_in * (vocab * (1 + own_head) + positions)
    )


@dataclass(frozen=True)
class Sizes:
    """Bytes, by what they are for."""

    disk: dict[str, float]
    """What lies in the profile's folder after a run, by subfolder."""
    checkpoints: float
    """What lies there for a while beside it."""
    host: dict[str, float]
    """Memory of all processes, at the peak of each kind of work."""
    gpu: dict[str, float]
    """The same on a GPU; empty where the profile uses none."""
    resident: float
    """The activation store in memory, of every process that trains: where `data.store` is `memory` a part of the above,
    else more, taken only where it fits."""

    def on(self, device: str) -> dict[str, float]:
        """Memory of a device ("cpu", "cuda") at the peak of each kind of work."""
        return self.host if device == "cpu" else self.gpu

    @property
    def disk_peak(self) -> float:
        return sum(self.disk.values()) + self.checkpoints


def weights_of(d_in: int, d_sae: int) -> int:
    """Weights of an SAE: W_enc, W_dec and both biases."""
    return 2 * d_in * d_sae + d_sae + d_in


def run_sizes(profile: Profile, model: ModelSize, saes: int, processes: int = 1) -> Sizes:
    """Sizes of a run of `profile` that makes so many SAEs; memory is that of one of its processes on GPUs."""
    data, training, d_in = profile.data, profile.training, model.d_in
    item = ITEM[profile.model.dtype]
    workers = 1 if profile.estimates.needs_gpu else training.workers
    sae = weights_of(d_in, training.d_sae) * FLOAT
    body = data.context_length - 1
    contexts = math.ceil(data.train_tokens / body) + data.held_out_contexts + data.calibration_contexts
    held_out = data.held_out_contexts * data.context_length
    words = min(profile.evaluation.absorption.max_words or model.vocab, model.vocab)
    read = min(data.held_out_contexts, profile.evaluation.stability.text_contexts) * body
    states = 2 * held_out * d_in * item
    reference = {
        "held-out states": states if states <= STATES else 0,
        "words": 1.2 * words * d_in * FLOAT,
        "text": read * d_in * FLOAT,
        "calibration": data.calibration_contexts * body * (2 * d_in + ROW_INDEX),
        "probing": profile.estimates.probing_tokens * d_in * item,
    }
    disk = {
        "store": data.train_tokens * (2.0 * d_in + ROW_INDEX) if data.store != "memory" else 0.0,
        "tokens": float(contexts * data.context_length * TOKEN_ID),
        "runs": saes * (sae + RECORDS_OF_AN_SAE),
        "reference": float(sum(reference.values())),
        "other files": RECORDS_OF_A_RUN,
    }
    batch = data.batch_tokens * (training.d_sae * LATENT_COPIES + 6 * d_in) * FLOAT
    half = sae / 2 if training.autocast == "bfloat16" else 0  # bf16 copies of the weights, and of their gradients
    train = (ADAM + 1) * sae + 2 * half + batch
    distributions = held_out * model.vocab * FLOAT
    latents = SAES_TOGETHER * words * training.d_sae * FLOAT
    score = (
        model.weights() * item
        + SAES_TOGETHER * sae
        + (distributions if distributions <= DISTRIBUTIONS else LOGITS)
        + min(latents, profile.evaluation.absorption.latent_bytes)
    )
    blocks = profile.model.layer + 1
    passing = CONTEXTS_IN_A_PASS * data.context_length * 4 * (d_in + model.block // d_in) * item
    harvest = model.weights(blocks) * item + passing
    loaded = sum(reference.values()) - reference["probing"]  # probing's texts stay on disk, mapped
    alone = workers == 1
    store = data.train_tokens * (2.0 * d_in + ROW_INDEX)
    held = store if data.store == "memory" else 0.0
    if not profile.estimates.needs_gpu:
        host = {
            "harvest": NOTEBOOK + harvest + SHARDS_HELD * data.shard_rows * d_in * 2.0 + held,
            "training": NOTEBOOK + (train + held if alone else held + workers * (WORKER + train + held)),
            "evaluation": NOTEBOOK + loaded + (score if alone else workers * (WORKER + score + loaded)),
        }
        gpu = {}
    else:
        # Weights pass through host memory on their way to the GPU.
        host = {
            "harvest": NOTEBOOK + model.weights(blocks) * item + SHARDS_HELD * data.shard_rows * d_in * 2.0,
            "training": NOTEBOOK + sae,
            "evaluation": NOTEBOOK + model.weights() * item + loaded,
        }
        work = {"harvest": harvest + held, "training": train + held, "evaluation": score + passing}
        gpu = {name: CUDA_CONTEXT + size for name, size in work.items()}
    return Sizes(
        disk=disk,
        checkpoints=workers * 2 * ADAM * sae,  # a new one is written whole before it replaces the last
        host=host,
        gpu=gpu,
        resident=store * (1 if alone else workers + 1),
    )
