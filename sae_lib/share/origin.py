"""Where an SAE was trained: as its own files say it, checked against what is asked for; and as other libraries call
the place."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from sae_lib.data.model_loading import POCKET_FOLDER

# Names that TransformerLens gives models of the hub; `same_name` knows those that differ in spelling only.
ALIASES = {
    "gpt2-small": "gpt2",
    "distillgpt2": "distilgpt2",
    "distill-gpt2": "distilgpt2",
    "gpt2-xs": "distilgpt2",
    "gpt-neo-small": "gpt-neo-125m",
    "gpt-neo-medium": "gpt-neo-1.3b",
    "gpt-neo-large": "gpt-neo-2.7b",
    "gpt-j": "gpt-j-6b",
    "gpt-neox": "gpt-neox-20b",
    "pythia": "pythia-70m",
    "opt-small": "opt-125m",
    "opt-medium": "opt-1.3b",
    "mistral-7b": "mistral-7b-v0.1",
    "mistral-7b-instruct": "mistral-7b-instruct-v0.1",
    "mixtral-8x7b": "mixtral-8x7b-v0.1",
    "mixtral-8x7b-instruct": "mixtral-8x7b-instruct-v0.1",
    "pocket_lm": "pocket",
}
# TransformerLens's hooks, and those of its bridge to transformers, where a block's output has no name of its own.
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|in|out)")
BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.output)?")


class Origin(NamedTuple):
    """What an SAE's files say of the place it was trained at; None where they say nothing."""

    file: str
    model: str | None = None
    hook: str | None = None
    """The place in the files' own words."""
    layer: int | None = None
    """The block whose output it is, from 0; None for a place that is no residual stream after a block."""
    centred: Literal["no", "perhaps", "yes"] = "no"
    """Whether the model's weights were centred by TransformerLens, so that the SAE saw x - mean(x) in place of x."""
    remarks: tuple[str, ...] = ()
    """What else a reader of its numbers should know."""


def hook_layer(hook: str) -> int | None:
    """The block after which a hook reads the residual stream, from 0; None for any other place.

    The stream before block i is the one after block i - 1.

    >>> hook_layer("blocks.8.hook_resid_pre"), hook_layer("model.layers.12"), hook_layer("blocks.3.hook_mlp_out")
    (7, 12, None)
    """
    if match := RESIDUAL.fullmatch(hook):
        after = int(match[1]) - (match[2] in ("resid_pre", "in"))
        return after if after >= 0 else None
    match = BLOCK.fullmatch(hook)
    return int(match[1]) if match else None


def origin_faults(origin: Origin, model: str, layer: int) -> list[tuple[str, str]]:
    """Why an SAE should not be evaluated after block `layer` of `model`, and what to do: its files name another place.
    What they do not name is not checked."""
    faults = []
    if origin.hook is not None and origin.layer is None:
        fault = f"sae: {origin.file} says that it reads {origin.hook}, which is no residual stream after a block"
        faults.append((fault, "choose another SAE"))
    if origin.layer is not None and origin.layer != layer:
        named = f"{origin.hook} (layer {origin.layer})" if origin.hook != f"layer {origin.layer}" else origin.hook
        fault = f"layer: {layer} is asked for, {origin.file} says that the SAE was trained at {named}"
        faults.append((fault, f"ask for layer {origin.layer}"))
    if origin.model is not None and not _names(origin.model) & _names(model):
        fault = f"model: {model} is asked for, {origin.file} says that the SAE was trained on {origin.model}"
        faults.append((fault, "name that model"))
    return faults


def _names(model: str) -> set[str]:
    """The names that a model goes by: the last part of an id or path, and what a local folder calls itself."""
    found = [model]
    config = Path(model).expanduser() / "config.json"
    if config.is_file():
        with suppress(ValueError, AttributeError, RecursionError):  # reading the model will say what is wrong with it
            found.append(str(json.loads(config.read_text(encoding="utf-8")).get("_name_or_path")))
    return {_plain_name(name) for name in found}


def _plain_name(model: str) -> str:
    """A model's name without what libraries spell differently.

    >>> _plain_name("roneneldan/TinyStories-1Layer-21M") == _plain_name("tiny-stories-1L-21M")
    True
    """
    name = Path(model).name.lower()
    name = ALIASES.get(name, name).removesuffix("-hf")
    return re.sub(r"[^a-z0-9.]", "", re.sub(r"(?<=\d)layers?", "l", name))


# --- the place in other libraries' words


class Place(NamedTuple):
    """The residual stream after a block of a language model.

    `model` is the hub id, or for a local model the last part of its path; `block` is the module of transformers' class
    whose output is read ("model.layers.12"), None where the model's configuration is not at hand.
    """

    model: str | None
    on_hub: bool
    layer: int | None
    block: str | None = None

    @property
    def transformer_lens_hook(self) -> str | None:
        """TransformerLens has one name for every family."""
        return None if self.layer is None else f"blocks.{self.layer}.hook_resid_post"

    @property
    def saelens_hook(self) -> tuple[str, str | None]:
        """SAELens's (model_class_name, hook_name).

        Models of the hub go by TransformerLens's names, loaded without processing. Any other is one that
        TransformerLens does not know, so its place is a module of the transformers model.
        """
        if not self.on_hub and self.block is not None:
            return "AutoModelForCausalLM", self.block
        return "HookedTransformer", self.transformer_lens_hook


def place(model: str | None, layer: int | None) -> Place:
    """The place of a model as run.json names it: "pocket", a folder, or a hub id. Nothing is downloaded."""
    if model is None:
        return Place(None, False, layer)
    local = POCKET_FOLDER if model == "pocket" else Path(model).expanduser()
    on_hub = not (local.is_dir() or model.startswith(("/", ".", "~")))
    block = None if layer is None or on_hub else _block_name(local, layer)
    return Place(model if on_hub else Path(model).name, on_hub, layer, block)


def _block_name(folder: Path, layer: int) -> str | None:
    """The name of block `layer` in the model of a local folder, built without weights; None where
    transformers cannot say."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sae_lib.data.language_model import blocks_path

    with suppress(OSError, ValueError, KeyError), torch.device("meta"):
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        path = blocks_path(AutoModelForCausalLM.from_config(loaded))
        if path is not None and 0 <= layer < loaded.get_text_config().num_hidden_layers:
            return f"{path}.{layer}"
    return None
