"""dictionary_learning folders: `ae.pt` (a pickled state_dict) + `config.json`.

Its `nn.Linear` weights are transposed to this package's layout: `encoder.weight` is `[d_sae, d_in]`,
`decoder.weight` `[d_in, d_sae]`. The classes with W_enc and W_dec have this package's layout already.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.share.origin import Origin, hook_layer
from sae_lib.share.weights import Tensors, assemble, check_keys, setting
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

CONFIG = "config.json"
WEIGHTS = "ae.pt"


class Kind(NamedTuple):
    """One class of dictionary_learning: its tensors, and the SAE of this package that computes the same."""

    architecture: str
    names: dict[str, str]
    """This package's name -> the class's, for every tensor of the state_dict that is used."""
    subtract_b_dec: bool
    unused: tuple[str, ...] = ()
    """Tensors of the state_dict that its `encode` does not read, and that older files may lack."""


LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
DIRECT = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
KINDS = {
    "AutoEncoder": Kind("standard", LINEAR | {"b_dec": "bias"}, True),
    "AutoEncoderNew": Kind("standard", LINEAR | {"b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": Kind(
        "gated",
        {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias", "r_mag": "r_mag"}
        | {"b_gate": "gate_bias", "b_mag": "mag_bias"},
        True,
    ),
    # Its threshold is an alternative to k that `encode` uses only when asked to.
    "AutoEncoderTopK": Kind("topk", LINEAR | {"b_dec": "b_dec"}, True, ("k", "threshold")),
    # Evaluated by their threshold, strictly above it: that is a JumpReLU with one threshold for all latents.
    "BatchTopKSAE": Kind("jumprelu", LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, True, ("k",)),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", DIRECT, True, ("k", "group_sizes")),
    "JumpReluAutoEncoder": Kind("jumprelu", DIRECT, False),
}


def load(folder: Path) -> tuple[Autoencoder, Origin]:
    """The SAE of a dictionary_learning folder and where it was trained.

    Raises:
        ArtifactError: a file is missing or damaged; ae.pt holds more than tensors; an unknown dict_class; tensors or
            k that do not fit it.
    """
    config_file, file = folder / CONFIG, folder / WEIGHTS
    trainer = _trainer(config_file)
    name = setting(trainer, "dict_class", str, config_file)
    if name not in KINDS:
        raise ArtifactError(f"sae: {config_file} has dict_class {name!r}, which is none of {', '.join(KINDS)}")
    kind = KINDS[name]
    state = _state(file)
    optional = [key for key in kind.unused if key in state]
    check_keys(state, [*kind.names.values(), *optional], file, name)
    k = _k(trainer, state, config_file) if kind.architecture == "topk" else None
    tensors = {own: state[theirs] for own, theirs in kind.names.items()}
    if "encoder.weight" in state:
        tensors |= {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T}
    sae = assemble(kind.architecture, tensors, file, subtract_b_dec=kind.subtract_b_dec, k=k)
    return sae, _origin(trainer)


def _trainer(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ArtifactError(f"sae: {file} is missing; dictionary_learning saves it beside {WEIGHTS}")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ArtifactError(f"sae: {file} is no dictionary_learning configuration (a mapping with 'trainer')")
    trainer: dict[str, Any] = setting(values, "trainer", dict, file)
    return trainer


def _state(file: Path) -> Tensors:
    """The state_dict, read without running any code that the pickle may carry."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"sae: {file} holds more than tensors, or is damaged; only a state_dict (torch.save(ae.state_dict(), ...)) "
            "is read"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"sae: {file} is damaged and cannot be read; fetch it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtifactError(f"sae: {file} is no state_dict: names and tensors; save ae.state_dict() there")
    return state


def _k(trainer: dict[str, Any], state: Tensors, file: Path) -> int:
    k: int = setting(trainer, "k", int, file)
    if "k" in state and int(state["k"]) != k:
        raise ArtifactError(f"sae: {file} says k = {k}, {WEIGHTS} says {int(state['k'])}; one is of another SAE")
    return k


def _origin(trainer: dict[str, Any]) -> Origin:
    """`layer` counts blocks from 0; `submodule_name` names the place, where a name was given."""
    model, hook = (
        value if isinstance(value := trainer.get(key), str) else None for key in ("lm_name", "submodule_name")
    )
    layer = trainer.get("layer")
    if not isinstance(layer, int) or isinstance(layer, bool):
        return Origin(CONFIG, model)
    if hook and "resid" not in hook and hook_layer(hook) is None:
        return Origin(CONFIG, model, f"{hook} of layer {layer}")
    return Origin(CONFIG, model, hook or f"layer {layer}", layer)
