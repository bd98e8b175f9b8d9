"""Where an SAE was trained, as its own files say, and whether that is where it is asked to be evaluated."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sae_lib.util.errors import ArtifactError

# TransformerLens's names of models that the hub calls otherwise.
ALIASES = {"gpt2-small": "gpt2", "pocket_lm": "pocket"}
RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")


class Origin(NamedTuple):
    """What an SAE's files say of the place it was trained at; None where they say nothing.

    `hook` is the place in the files' own words, `layer` the block whose output it is (None for a place that is no
    residual stream after a block), `remarks` what else a reader of its numbers should know.
    """

    file: str
    model: str | None = None
    hook: str | None = None
    layer: int | None = None
    remarks: tuple[str, ...] = ()


def hook_layer(hook: str) -> int | None:
    """The block after which a hook reads the residual stream, from 0; None for any other place.

    The stream before block i is the one after block i - 1.

    >>> hook_layer("blocks.8.hook_resid_pre"), hook_layer("model.layers.12"), hook_layer("blocks.3.hook_mlp_out")
    (7, 12, None)
    """
    if match := RESIDUAL.fullmatch(hook):
        after = int(match[1]) - (match[2] == "pre")
        return after if after >= 0 else None
    match = BLOCK.fullmatch(hook)
    return int(match[1]) if match else None


def check_origin(origin: Origin, model: str, layer: int) -> None:
    """Refuse to evaluate an SAE at another place than its files name; what they do not name is not checked.

    Raises:
        ArtifactError: another model or layer, or a place that is no residual stream after a block.
    """
    override = "or set any_origin (--any-origin) to evaluate it all the same"
    if origin.hook is not None and origin.layer is None:
        raise ArtifactError(
            f"sae: {origin.file} says that it reads {origin.hook}, which is no residual stream after a block; "
            f"choose another SAE, {override}"
        )
    if origin.layer is not None and origin.layer != layer:
        named = f"{origin.hook} (layer {origin.layer})" if origin.hook != f"layer {origin.layer}" else origin.hook
        raise ArtifactError(
            f"layer: {layer} is asked for, {origin.file} says that the SAE was trained at {named}; "
            f"ask for layer {origin.layer}, {override}"
        )
    if origin.model is not None and not _names(origin.model) & _names(model):
        raise ArtifactError(
            f"model: {model} is asked for, {origin.file} says that the SAE was trained on {origin.model}; "
            f"name that model, {override}"
        )


def _names(model: str) -> set[str]:
    """The names that a model goes by: the last part of an id or path, and what a local folder calls itself."""
    found = {Path(model).name.lower()}
    config = Path(model).expanduser() / "config.json"
    if config.is_file():
        with suppress(ValueError):  # reading the model will say what is wrong with it
            found.add(Path(str(json.loads(config.read_text(encoding="utf-8")).get("_name_or_path"))).name.lower())
    return {ALIASES.get(name, name) for name in found}
