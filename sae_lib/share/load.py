"""SAEs from elsewhere: a folder that this package or another library wrote becomes an `Autoencoder`.

`share/README.md` says which versions and kinds of each are read. Latents and reconstructions are those of the library's
own class; decoder rows that are not of norm 1 stay so. Here are the formats that are only read:

- sparsify: the k largest of ReLU((x - b_dec) W_enc^T + b_enc). Its folder is named after the module whose output it
  reads ("layers.5"); the one above holds all SAEs of a run, with a `config.json` that names the model;
- Gemma Scope 1 and 2: x W_enc + b_enc where it is above the threshold. What the first's files do not say is in the
  names of the folders where they were kept: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import WEIGHTS_FILE, load_autoencoder
from sae_lib.share import dictionary_learning, saelens
from sae_lib.share.origin import Origin, hook_layer, read_config, setting, texts
from sae_lib.share.weights import Tensors, assemble, check_keys, floats, read_safetensors
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

SPARSIFY = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
# Settings that make it something else than the k largest latents of its own input, with the values that do not.
PLAIN = {"activation": "topk", "transcode": False, "skip_connection": False, "signed": False}
SCOPE = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}


class LoadedSAE(NamedTuple):
    """An SAE and what its folder says about where it was trained."""

    sae: Autoencoder
    origin: Origin


def load_sae(folder: Path | str, device: str = "cpu") -> Autoencoder:
    """The SAE of a folder, whichever library wrote it: float32, in evaluation mode, for raw activations.

    Raises ArtifactError: no such folder or no known format; a file that is missing, damaged or holds more than
    tensors; an architecture, a key or a shape that does not fit.
    """
    return load_with_origin(folder, device).sae


def load_with_origin(folder: Path | str, device: str = "cpu") -> LoadedSAE:
    """As `load_sae`, with the model and place that the folder names."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ArtifactError(f"sae: there is no folder {folder}; give the folder that holds the SAE's files")
    here = {file.name for file in folder.iterdir()}
    read = next((read for files, read in READERS.items() if here.issuperset(files)), None)
    if read is None:
        known = (
            f"{WEIGHTS_FILE} + run.json (this package), cfg.json + sae_weights.safetensors (SAELens), cfg.json + "
            "sae.safetensors (sparsify), config.json + ae.pt (dictionary_learning) or params.npz (Gemma Scope)"
        )
        raise ArtifactError(f"sae: {folder} holds no SAE of a known format: {known}")
    sae, origin = read(folder)
    return LoadedSAE(sae.to(device).eval().requires_grad_(False), origin)


def _own(folder: Path) -> tuple[Autoencoder, Origin]:
    run = read_config(folder / "run.json", "sae_lib")
    (model,), layer = texts(run, "model"), run.get("layer")
    layer = layer if isinstance(layer, int) else None
    return load_autoencoder(folder), Origin("run.json", model, None if layer is None else f"layer {layer}", layer)


def _sparsify(folder: Path) -> tuple[Autoencoder, Origin]:
    config_file, file, folder = folder / "cfg.json", folder / "sae.safetensors", folder.resolve()
    config = read_config(config_file, "sparsify")
    for key, plain in PLAIN.items():
        if config.get(key, plain) != plain:
            raise ArtifactError(f"sae: {config_file} has {key} {config[key]!r}; only {plain!r} can be read")
    tensors = read_safetensors(file, "sparsify")
    check_keys(tensors, SPARSIFY.values(), file, "sparsify")
    own = {name: tensors[theirs] for name, theirs in SPARSIFY.items()} | {"W_enc": tensors["encoder.weight"].T}
    sae = assemble("topk", own, file, subtract_b_dec=True, k=setting(config, "k", int, config_file))
    run = read_json(folder.parent / "config.json") if (folder.parent / "config.json").is_file() else {}
    (model,) = texts(run if isinstance(run, dict) and "sae" in run else {}, "model")
    named = any(part.isdigit() for part in folder.name.split("."))  # layers.5, h.3.mlp; renamed, it says nothing
    hook = folder.name if named else None
    return sae, Origin("its folder", model, hook, hook_layer(hook))


def _gemma_scope(folder: Path) -> tuple[Autoencoder, Origin]:
    file, path = folder / "params.npz", folder.resolve().as_posix()
    try:
        with np.load(file, allow_pickle=False) as arrays:
            # In this machine's byte order, which torch asks for.
            stored = {name: arrays[name].astype(arrays[name].dtype.newbyteorder("=")) for name in arrays}
        tensors = {name: torch.from_numpy(array) for name, array in stored.items()}
    except Exception as error:  # of any kind, as for ae.pt
        raise ArtifactError(f"sae: {file} is damaged or holds more than numbers; fetch it again") from error
    sae = _jumprelu(file, floats(tensors, file))
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)(?![a-z])", path)
    model = f"gemma-2-{repository[1]}{'-it' if repository[2] == 'it' else ''}" if repository else None
    layer, hook = re.search(r"/layer_(\d+)(?:/|$)", path), None
    if "/embedding/" in f"{path}/":
        hook = "hook_embed"
    elif layer:
        hook = f"blocks.{layer[1]}.{SITES[repository[3] if repository else 'res']}"
    return sae, Origin("its folder", model, hook, hook_layer(hook))


def _gemma_scope_2(folder: Path) -> tuple[Autoencoder, Origin]:
    file = folder / "params.safetensors"
    sae = _jumprelu(file, read_safetensors(file, "Gemma Scope"))
    model, hook = texts(read_config(folder / "config.json", "Gemma Scope"), "model_name", "hf_hook_point_in")
    return sae, Origin("config.json", model and model.replace("-v3", "-3"), hook, hook_layer(hook))


def _jumprelu(file: Path, stored: Tensors) -> Autoencoder:
    tensors = {name.replace("w_", "W_"): tensor for name, tensor in stored.items()}
    check_keys(tensors, SCOPE, file, "Gemma Scope")
    return assemble("jumprelu", tensors, file, subtract_b_dec=False)


# What reads a folder that holds these files; the first that fits.
READERS = {
    (WEIGHTS_FILE, "run.json"): _own,
    ("cfg.json", "sae.safetensors"): _sparsify,
    (saelens.CONFIG,): saelens.load,
    (saelens.WEIGHTS,): saelens.load,
    (dictionary_learning.WEIGHTS,): dictionary_learning.load,
    ("params.npz",): _gemma_scope,
    ("params.safetensors",): _gemma_scope_2,
}
