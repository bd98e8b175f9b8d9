"""What an SAE's own files say: its settings, and where it was trained, checked against what is asked for."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

# Names that TransformerLens gives models of the hub; `same_name` knows those that differ in spelling only.
ALIASES = {
    "gpt2-small": "gpt2", "distillgpt2": "distilgpt2", "distill-gpt2": "distilgpt2", "gpt2-xs": "distilgpt2",
    "gpt-neo-small": "gpt-neo-125m", "gpt-neo-medium": "gpt-neo-1.3b", "gpt-neo-large": "gpt-neo-2.7b",
    "gpt-j": "gpt-j-6b", "gpt-neox": "gpt-neox-20b", "pythia": "pythia-70m", "opt-small": "opt-125m",
    "opt-medium": "opt-1.3b", "mistral-7b": "mistral-7b-v0.1", "mistral-7b-instruct": "mistral-7b-instruct-v0.1",
    "mixtral-8x7b": "mixtral-8x7b-v0.1", "mixtral-8x7b-instruct": "mixtral-8x7b-instruct-v0.1", "pocket_lm": "pocket",
}  # fmt: skip
# TransformerLens's hooks, and those of its bridge to transformers, where a block's output has no name of its own.
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|in|out)")
BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.output)?")


class Origin(NamedTuple):
    """What an SAE's files say of the place it was trained at; None where they say nothing.

    `hook`: the place in the files' own words; `layer`: the block whose output it is, from 0, None for another place;
    `centred`: whether TransformerLens centred the model's weights, so that the SAE saw x - mean(x).
    """

    file: str
    model: str | None = None
    hook: str | None = None
    layer: int | None = None
    centred: Literal["no", "perhaps", "yes"] = "no"
    remarks: tuple[str, ...] = ()


def read_config(file: Path, library: str) -> dict[str, Any]:
    """The JSON mapping beside the weights. Raises ArtifactError: it is missing, damaged or no mapping."""
    if not file.is_file():
        raise ArtifactError(f"sae: {file} is missing; {library} saves it beside the weights")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ArtifactError(f"sae: {file} is no {library} configuration, which is a mapping")
    return values


def setting(values: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    """`values[key]`. Raises ArtifactError when it is not there or not of `kind`."""
    value = values.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArtifactError(f"sae: {file} gives no {key} ({kind.__name__}); add it as its library writes it")
    return value


def texts(values: Mapping[str, Any], *keys: str) -> list[str | None]:
    """What a file says under `keys`; None where it is no text."""
    return [value if isinstance(value := values.get(key), str) else None for key in keys]


def hook_layer(hook: str | None) -> int | None:
    """The block after which a hook reads the residual stream, from 0; None for any other place.

    >>> hook_layer("blocks.8.hook_resid_pre"), hook_layer("model.layers.12"), hook_layer("blocks.3.hook_mlp_out")
    (7, 12, None)
    """
    if match := RESIDUAL.fullmatch(hook or ""):
        after = int(match[1]) - (match[2] in ("resid_pre", "in"))
        return after if after >= 0 else None
    match = BLOCK.fullmatch(hook or "")
    return int(match[1]) if match else None


def origin_faults(origin: Origin, model: str, layer: int) -> list[tuple[str, str]]:
    """Where an SAE's files name another place than block `layer` of `model`, and what to do."""
    faults = []
    if origin.hook is not None and origin.layer is None:
        what = f"it reads {origin.hook}, which is no residual stream after a block"
        faults.append((f"sae: {origin.file} says that {what}", "choose another SAE"))
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
    last = [Path(name).name.lower() for name in found]
    known = [ALIASES.get(name, name).removesuffix("-hf") for name in last]
    # Without what libraries spell differently: tiny-stories-1L-21M is roneneldan/TinyStories-1Layer-21M.
    return {re.sub(r"[^a-z0-9.]", "", re.sub(r"(?<=\d)layers?", "l", name)) for name in known}
