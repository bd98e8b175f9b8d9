"""dictionary_learning folders, both ways: `ae.pt` (a pickled state_dict) + `config.json`, for its `load_dictionary`.

Its `nn.Linear` weights are transposed to this package's layout (`encoder.weight` is `[d_sae, d_in]`); the classes with
W_enc and W_dec have it already.
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.matryoshka import Matryoshka
from sae_lib.autoencoders.topk import BatchTopK
from sae_lib.share.facts import Facts
from sae_lib.share.origin import Origin, hook_layer, read_config, setting, texts
from sae_lib.share.weights import Tensors, assemble, check_keys, floats, inference_form
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json

LIBRARY = "dictionary_learning"
CONFIG = "config.json"
WEIGHTS = "ae.pt"
NEVER_USED = -1.0  # a TopK threshold that was not trained


class Kind(NamedTuple):
    """One class of dictionary_learning, and the SAE of this package that computes the same.

    `trainer`: which goes with it, by which SAEBench chooses its reader; `names`: this package's name -> the class's, of
    every tensor that is used; `unused`: tensors that its `encode` does not read, and that older files may lack.
    """

    architecture: str
    trainer: str
    names: dict[str, str]
    subtract_b_dec: bool
    unused: tuple[str, ...] = ()


LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
GATED = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias", "r_mag": "r_mag"}
TOPK = LINEAR | {"b_dec": "b_dec"}
DIRECT = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
KINDS = {
    "AutoEncoder": Kind("standard", "StandardTrainer", LINEAR | {"b_dec": "bias"}, True),
    "AutoEncoderNew": Kind("standard", "StandardTrainer", LINEAR | {"b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": Kind("gated", "GatedSAETrainer", GATED | {"b_gate": "gate_bias", "b_mag": "mag_bias"}, True),
    # Its threshold is an alternative to k that `encode` uses only when asked to.
    "AutoEncoderTopK": Kind("topk", "TopKTrainer", TOPK, True, ("k", "threshold")),
    # Evaluated by their threshold, strictly above it: that is a JumpReLU with one threshold for all latents.
    "BatchTopKSAE": Kind("jumprelu", "BatchTopKTrainer", TOPK | {"threshold": "threshold"}, True, ("k",)),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", "MatryoshkaBatchTopKTrainer", DIRECT, True, ("k", "group_sizes")),
    "JumpReluAutoEncoder": Kind("jumprelu", "JumpReluTrainer", DIRECT, False),
}


def load(folder: Path) -> tuple[Autoencoder, Origin]:
    """The SAE of a dictionary_learning folder and where it was trained."""
    config_file, file = folder / CONFIG, folder / WEIGHTS
    trainer = setting(read_config(config_file, LIBRARY), "trainer", dict, config_file)
    name = setting(trainer, "dict_class", str, config_file)
    if name not in KINDS:
        raise ArtifactError(f"sae: {config_file} has dict_class {name!r}, which is none of {', '.join(KINDS)}")
    kind = KINDS[name]
    state = _state(file)
    optional = [key for key in kind.unused if key in state]
    check_keys(state, [*kind.names.values(), *optional], file, name)
    k = setting(trainer, "k", int, config_file) if kind.architecture == "topk" else None
    if k is not None and "k" in state and state["k"].tolist() not in (k, [k]):
        says = f"says k = {k}, {WEIGHTS} says {state['k'].tolist()}; one is of another SAE"
        raise ArtifactError(f"sae: {config_file} {says}")
    used = floats({theirs: state[theirs] for theirs in kind.names.values()}, file)
    tensors = {own: used[theirs] for own, theirs in kind.names.items()}
    if "encoder.weight" in state:
        tensors |= {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T}
    sae = assemble(kind.architecture, tensors, file, subtract_b_dec=kind.subtract_b_dec, k=k)
    # `layer` counts blocks from 0; `submodule_name` names the place, where a name was given.
    (model, hook), layer = texts(trainer, "lm_name", "submodule_name"), trainer.get("layer")
    if not isinstance(layer, int) or isinstance(layer, bool):
        return sae, Origin(CONFIG, model)
    if hook and "resid" not in hook and hook_layer(hook) is None:
        return sae, Origin(CONFIG, model, f"{hook} of layer {layer}")
    return sae, Origin(CONFIG, model, hook or f"layer {layer}", layer)


def _state(file: Path) -> Tensors:
    """The state_dict, read without running any code that the pickle may carry."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        fault = f"{file} holds more than tensors, or is damaged"
        raise ArtifactError(f"sae: {fault}; only a state_dict (torch.save(ae.state_dict(), ...)) is read") from error
    except Exception as error:  # of any kind, for a file that is cut, altered, encrypted or something else
        raise ArtifactError(f"sae: {file} is damaged and cannot be read; fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtifactError(f"sae: {file} is no state_dict: names and tensors; save ae.state_dict() there")
    return state


def save_dictionary_learning(sae: Autoencoder, folder: Path, facts: Facts | None = None) -> str:
    """Write an SAE as dictionary_learning does; returns the class, which fixes whether b_dec is taken off the input:
    where ours does otherwise the difference goes into the encoder's biases (`InferenceForm.centred`)."""
    form = inference_form(sae)
    classes = {"gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"}
    if isinstance(sae, BatchTopK):
        name = "MatryoshkaBatchTopKSAE" if isinstance(sae, Matryoshka) else "BatchTopKSAE"
    elif form.architecture == "standard":
        # `load_dictionary` divides the decoder rows of an `AutoEncoder` by their norms.
        norms = form.tensors["W_dec"].norm(dim=1)
        unit = torch.allclose(norms, torch.ones_like(norms))  # by its own tolerance
        name = "AutoEncoder" if form.subtract_b_dec and unit else "AutoEncoderNew"
    else:
        name = classes[form.architecture]
    kind = KINDS[name]
    form = form.centred(kind.subtract_b_dec)
    state = {theirs: form.tensors[own] for own, theirs in kind.names.items()}
    for linear in ("encoder.weight", "decoder.weight"):
        if linear in state:
            state[linear] = state[linear].T.contiguous()
    trainer: dict[str, Any] = {"dict_class": name, "trainer_class": kind.trainer}
    trainer |= {"activation_dim": sae.d_in, "dict_size": sae.d_sae}
    if "k" in kind.unused:  # the TopK family
        k = trainer["k"] = sae.cfg.get("k")
        threshold = form.tensors["threshold"][0].clone() if isinstance(sae, BatchTopK) else torch.tensor(NEVER_USED)
        state |= {"k": torch.tensor(k, dtype=torch.int), "threshold": threshold}
        if isinstance(sae, Matryoshka):
            state["group_sizes"] = torch.tensor(sae.cfg.level_sizes())
    if facts:
        layer = facts.place.layer
        trainer |= {
            "lm_name": facts.place.model, "layer": layer,
            "submodule_name": None if layer is None else f"resid_post_layer_{layer}",
            "lr": facts.config.optimizer.learning_rate, "steps": facts.steps, "seed": facts.seed,
            "method": facts.method,
        }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / WEIGHTS)
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": {"ctx_len": facts.context_length if facts else None}})
    return name
