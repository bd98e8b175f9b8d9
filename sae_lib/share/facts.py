"""What a run folder, and what lies beside it, say about an SAE. Nothing is added to it."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import WEIGHTS_FILE, load_autoencoder
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.data.language_model import blocks_path
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.store_manifest import MANIFEST, content_key
from sae_lib.metrics.scores import SCORES
from sae_lib.profiles.profile import load_profile
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

RUN_FILE = "run.json"


class Place(NamedTuple):
    """The residual stream after a block of a language model: `model` is the hub id, or of a local model the last part
    of its path; `block` the module of transformers ("model.layers.12"), where the configuration is at hand."""

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
        """SAELens's (model_class_name, hook_name): TransformerLens's for models of the hub, which it may know."""
        if not self.on_hub and self.block is not None:
            return "AutoModelForCausalLM", self.block
        return "HookedTransformer", self.transformer_lens_hook


def place(model: str | None, layer: int | None) -> Place:
    """The place of a model as run.json names it: "pocket", a folder, or a hub id. Nothing is downloaded."""
    if model is None:
        return Place(None, False, layer)
    local = POCKET_FOLDER if model == "pocket" else Path(model).expanduser()
    if not local.is_dir() and not model.startswith(("/", ".", "~")):
        return Place(model, True, layer)
    found = Place(Path(model).name, False, layer)
    with suppress(OSError, ValueError, KeyError), torch.device("meta"):  # what transformers cannot say is left open
        if layer is not None:
            config = AutoConfig.from_pretrained(local, trust_remote_code=False)
            path = blocks_path(AutoModelForCausalLM.from_config(config))
            if path is not None and 0 <= layer < config.get_text_config().num_hidden_layers:
                return found._replace(block=f"{path}.{layer}")
    return found


class Facts(NamedTuple):
    """One trained SAE: the name of its run folder, its key in `METHODS`, the hub id of its text; None: nothing says."""

    run: str
    method: str
    config: SAEConfig
    place: Place
    seed: int
    steps: int
    tokens: int
    context_length: int | None
    dataset: str | None
    scores: dict[str, float]


def read_run(folder: Path) -> tuple[Autoencoder, Facts]:
    """The SAE of a finished run folder and what is known about it. Raises ArtifactError: no such folder, no run in it,
    one that has not finished, damaged files."""
    if not folder.is_dir():
        raise ArtifactError(f"run: there is no folder {folder}; give a folder of build/<profile>/runs")
    if not (folder / RUN_FILE).is_file():
        started = any(folder.glob("checkpoint*")) or (folder / WEIGHTS_FILE).is_file()
        fault = "has not finished training; run make paper to the end" if started else "is no run of this project"
        raise ArtifactError(f"run: {folder} {fault} (it has no {RUN_FILE})")
    run = read_json(folder / RUN_FILE)
    if not isinstance(run, dict) or not {"method", "seed", "steps", "tokens"} <= set(run):
        raise ArtifactError(f"run: {folder / RUN_FILE} names no method, seed, steps and tokens; train this SAE again")
    sae, dataset, above = load_autoencoder(folder), None, folder.resolve().parent.parent
    # The activations that it was trained on, if they lie where this project keeps them. An untrained SAE has read
    # nothing: it names no store, and belongs to the one beside it.
    file = above / "store" / MANIFEST
    store: dict[str, Any] = read_json(file) if file.is_file() else {}
    if run.get("store_key", key := content_key(store)) != key:
        store = {}
    model, layer = (run.get(key, store.get(key)) for key in ("model", "layer"))
    with suppress(ArtifactError):  # the text of the profile that the run lies in, if it has this model, layer and width
        found = load_profile(above.name)
        read = (found.model.name, found.model.layer, found.training.d_sae, found.corpus.source)
        dataset = found.corpus.name if read == (model, layer, sae.d_sae, "hub") else None
    files = (folder / f"{name}.json" for name in SCORES)
    summaries = [read_json(file).get("summary", {}) for file in files if file.is_file()]
    # What could not be measured is left out.
    scores = {name: value for each in summaries for name, value in each.items() if isinstance(value, int | float)}
    return sae, Facts(
        run=folder.resolve().name, config=sae.cfg, place=place(model, layer), context_length=store.get("positions"),
        dataset=dataset, scores=scores, **{key: run[key] for key in ("method", "seed", "steps", "tokens")},
    )  # fmt: skip
