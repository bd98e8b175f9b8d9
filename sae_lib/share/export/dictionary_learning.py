"""dictionary_learning's folder: `ae.pt` + `config.json`, as its `load_dictionary` reads it.

Its classes fix whether b_dec is taken off the input, so where ours does otherwise the difference goes into the
encoder's biases (`InferenceForm.centred`). `load_dictionary` divides the decoder rows of an `AutoEncoder` by their
norms, which changes the latents; an SAE whose rows are not of norm 1 is therefore written as `AutoEncoderNew`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.matryoshka import Matryoshka
from sae_lib.autoencoders.topk import BatchTopK
from sae_lib.share.dictionary_learning import CONFIG, KINDS, WEIGHTS
from sae_lib.share.export.facts import Facts
from sae_lib.share.export.inference import InferenceForm, inference_form
from sae_lib.util.files import write_json

# SAEBench chooses its reader by the trainer that goes with a class.
TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}
NEVER_USED = -1.0  # a TopK threshold that was not trained


def dict_class(sae: Autoencoder, form: InferenceForm) -> str:
    """The class of dictionary_learning that computes what `sae` computes."""
    if isinstance(sae, Matryoshka):
        return "MatryoshkaBatchTopKSAE"
    if isinstance(sae, BatchTopK):
        return "BatchTopKSAE"
    if form.architecture == "standard":
        return "AutoEncoder" if form.subtract_b_dec and form.unit_decoder else "AutoEncoderNew"
    return {"gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"}[
        form.architecture
    ]


def save_dictionary_learning(sae: Autoencoder, folder: Path, facts: Facts | None = None) -> str:
    """Write an SAE as dictionary_learning does; returns the class it is written as.

    Raises:
        OSError: the folder cannot be written.
    """
    form = inference_form(sae)
    name = dict_class(sae, form)
    kind = KINDS[name]
    form = form.centred(kind.subtract_b_dec)
    state = {theirs: form.tensors[own] for own, theirs in kind.names.items()}
    for linear in ("encoder.weight", "decoder.weight"):
        if linear in state:
            state[linear] = state[linear].T.contiguous()
    state |= _buffers(sae, form, name)
    trainer: dict[str, Any] = {
        "dict_class": name,
        "trainer_class": TRAINERS[name],
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
    }
    if "k" in kind.unused:
        trainer["k"] = sae.cfg.k
    if facts:
        layer = facts.place.layer
        trainer |= {
            "lm_name": facts.place.model,
            "layer": layer,
            "submodule_name": None if layer is None else f"resid_post_layer_{layer}",
            "lr": facts.config.optimizer.learning_rate,
            "steps": facts.steps,
            "seed": facts.seed,
            "method": facts.method,
        }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / WEIGHTS)
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": {"ctx_len": facts.context_length if facts else None}})
    return name


def _buffers(sae: Autoencoder, form: InferenceForm, name: str) -> dict[str, Tensor]:
    """What the classes of the TopK family keep beside their parameters."""
    if name not in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        return {}
    threshold = form.tensors["threshold"][0].clone() if isinstance(sae, BatchTopK) else torch.tensor(NEVER_USED)
    buffers = {"k": torch.tensor(sae.cfg.k, dtype=torch.int), "threshold": threshold}
    if isinstance(sae, Matryoshka):
        buffers["group_sizes"] = torch.tensor(sae.groups)
    return buffers
