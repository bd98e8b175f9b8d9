"""Run folders as training leaves them, with weights that are far from their initial values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import config_class, sae_config
from sae_lib.data.store_manifest import content_key
from sae_lib.mechanisms import METHODS
from sae_lib.training.recipes import method_recipe
from sae_lib.util.checkpoint import save_checkpoint
from sae_lib.util.files import write_json

D_IN, D_SAE, K = 8, 24, 4
THRESHOLD = 1.2


def perturbed(method: str, overrides: dict[str, Any] | None = None, *, unit_decoder: bool = True) -> Autoencoder:
    """An SAE of a method's recipe with random weights and biases; decoder rows of norm 1 unless told otherwise.

    Biases that are zero would hide a wrong sign, thresholds that are zero a wrong comparison.
    """
    knob = config_class(METHODS[method].recipe["architecture"]).knob
    values: dict[str, Any] = ({} if knob == "l1_coefficient" else {knob: K}) | (overrides or {})
    sae = build_autoencoder(sae_config(method_recipe(method, D_SAE, values, 1.0)), D_IN)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
        state = sae.state_dict()
        if sae.cfg.architecture in ("batchtopk", "matryoshka"):
            state["threshold"].fill_(THRESHOLD)
        elif "threshold" in state:
            state["threshold"].abs_()
        if unit_decoder:
            sae.normalise_decoder()
    return sae.eval().requires_grad_(False)


def write_run(folder: Path, sae: Autoencoder, **changes: Any) -> Path:
    """The folder of a run of 10 steps, `<root>/<profile>/runs/<run>`, without scores."""
    config = sae.cfg.model_dump(mode="json")
    save_checkpoint(folder / "sae.safetensors", sae.state_dict(), {"config": config, "key": "k"})
    names = {"method": sae.cfg.architecture, "group": "main"}
    run = names | {
        "key": "k",
        "seed": 42,
        "config": config,
        "model": "someone/tiny",
        "layer": 1,
        "steps": 10,
        "tokens": 640,
    }
    write_json(folder / "run.json", run | changes)
    return folder


def write_store(profile_folder: Path, **manifest: Any) -> str:
    """The manifest of an activation store beside the runs; returns its key, as run.json names it."""
    write_json(profile_folder / "store" / "manifest.json", manifest)
    return content_key(manifest)
