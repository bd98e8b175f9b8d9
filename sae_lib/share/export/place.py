"""Which model an SAE reads, and what each library calls the place."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sae_lib.data.model_files import POCKET_FOLDER


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

    @property
    def described_model(self) -> str:
        """In words."""
        if self.model is None:
            return "an unnamed model"
        kind = "" if self.on_hub else ", the packaged model of sae_lib" if self.model == "pocket" else ", a local model"
        return f"`{self.model}`{kind}"

    @property
    def described(self) -> str:
        """In words."""
        layer = "an unnamed block" if self.layer is None else f"block {self.layer} (counted from 0)"
        return f"the residual stream after {layer} of {self.described_model}"


def place(model: str | None, layer: int | None) -> Place:
    """The place of a model as run.json names it: "pocket", a folder, or a hub id. Nothing is downloaded."""
    if model is None:
        return Place(None, False, layer)
    local = POCKET_FOLDER if model == "pocket" else Path(model).expanduser()
    on_hub = not (local.is_dir() or model.startswith(("/", ".", "~")))
    name = model if on_hub else Path(model).name
    file = _cached_config(model) if on_hub else local / "config.json"
    return Place(name, on_hub, layer, None if layer is None or file is None else block_name(file, layer))


def block_name(config: Path, layer: int) -> str | None:
    """The name of block `layer` in the model that a config.json describes; None where transformers cannot say.

    The model is built without weights. Its blocks are the outermost list of its depth, as when activations are read.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    with suppress(OSError, ValueError, KeyError), torch.device("meta"):
        loaded = AutoConfig.from_pretrained(config.parent, trust_remote_code=False)
        depth = loaded.get_text_config().num_hidden_layers
        model = AutoModelForCausalLM.from_config(loaded)
        lists = [
            name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
        ]
        if lists and 0 <= layer < depth:
            return f"{min(lists, key=lambda name: name.count('.'))}.{layer}"
    return None


def _cached_config(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):
        found = try_to_load_from_cache(model, "config.json")
        if isinstance(found, str):
            return Path(found)
    return None
