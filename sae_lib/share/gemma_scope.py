"""Gemma Scope folders (Google DeepMind): `params.npz` (Gemma Scope, for Gemma 2), or `params.safetensors` +
`config.json` (Gemma Scope 2, for Gemma 3).

    f = pre where pre = x W_enc + b_enc is above the threshold, else 0,    x_hat = f W_dec + b_dec

The layout is this package's. What Gemma Scope's files do not say is in the names of its folders, where they were kept:
`gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.share.origin import Origin, hook_layer, texts
from sae_lib.share.weights import Tensors, assemble, check_keys, floats, read_config, read_safetensors
from sae_lib.util.errors import ArtifactError

LIBRARY = "Gemma Scope"
WEIGHTS = "params.npz"
WEIGHTS_2, CONFIG_2 = "params.safetensors", "config.json"
NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


def load(folder: Path) -> tuple[Autoencoder, Origin]:
    """The SAE of a Gemma Scope folder and where it was trained."""
    first = (folder / WEIGHTS).is_file()
    file = folder / (WEIGHTS if first else WEIGHTS_2)
    stored = _read_npz(file) if first else read_safetensors(file, LIBRARY)
    tensors = {name.replace("w_", "W_"): tensor for name, tensor in stored.items()}
    check_keys(tensors, NAMES, file, LIBRARY)
    sae = assemble("jumprelu", tensors, file, subtract_b_dec=False)
    return sae, _origin(folder.resolve()) if first else _origin_2(folder / CONFIG_2)


def _read_npz(file: Path) -> Tensors:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            # In this machine's byte order, which torch asks for.
            stored = {name: arrays[name].astype(arrays[name].dtype.newbyteorder("=")) for name in arrays}
        tensors = {name: torch.from_numpy(array) for name, array in stored.items()}
    except Exception as error:  # of any kind, as for ae.pt
        raise ArtifactError(f"sae: {file} is damaged or holds more than numbers; fetch it again") from error
    return floats(tensors, file)


def _origin(folder: Path) -> Origin:
    path = folder.as_posix()
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)(?![a-z])", path)
    model = f"gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}" if repository else None
    if "/embedding/" in f"{path}/":
        return Origin("its folder", model, "hook_embed")
    layer = re.search(r"/layer_(\d+)(?:/|$)", path)
    if not layer:
        return Origin("its folder", model)
    hook = f"blocks.{layer[1]}.{SITES[repository[3] if repository else 'res']}"
    return Origin("its folder", model, hook, hook_layer(hook))


def _origin_2(file: Path) -> Origin:
    model, hook = texts(read_config(file, LIBRARY), "model_name", "hf_hook_point_in")
    return Origin(CONFIG_2, model and model.replace("-v3", "-3"), hook, hook_layer(hook))
