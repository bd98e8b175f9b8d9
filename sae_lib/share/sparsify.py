"""sparsify folders (EleutherAI; `sparsify` 1.x, `sae` before it): `cfg.json` + `sae.safetensors`, as
`SparseCoder.save_to_disk` writes them.

    f = the k largest of ReLU((x - b_dec) W_enc^T + b_enc),    x_hat = f W_dec + b_dec

`encoder.weight` is `[d_sae, d_in]`, W_dec `[d_sae, d_in]`. The folder is named after the module whose output it reads
("layers.5"); the folder above it holds all SAEs of a run, with a `config.json` that names the model.
"""

from __future__ import annotations

from pathlib import Path

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.share.origin import Origin, hook_layer, texts
from sae_lib.share.weights import assemble, check_keys, read_config, read_safetensors, setting
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

LIBRARY = "sparsify"
CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
# Settings that make it something else than the k largest latents of its own input, with the values that do not.
PLAIN = {"activation": "topk", "transcode": False, "skip_connection": False, "signed": False}


def load(folder: Path) -> tuple[Autoencoder, Origin]:
    """The SAE of a sparsify folder and where it was trained."""
    config_file, file = folder / CONFIG, folder / WEIGHTS
    config = read_config(config_file, LIBRARY)
    for key, plain in PLAIN.items():
        if config.get(key, plain) != plain:
            raise ArtifactError(f"sae: {config_file} has {key} {config[key]!r}; only {plain!r} can be read")
    tensors = read_safetensors(file, LIBRARY)
    check_keys(tensors, NAMES.values(), file, LIBRARY)
    own = {name: tensors[theirs] for name, theirs in NAMES.items()}
    own["W_enc"] = own["W_enc"].T
    sae = assemble("topk", own, file, subtract_b_dec=True, k=setting(config, "k", int, config_file))
    return sae, _origin(folder.resolve())


def _origin(folder: Path) -> Origin:
    """Where the folder's name and the run's own file put it; a folder that was renamed says nothing."""
    run = read_json(folder.parent / "config.json") if (folder.parent / "config.json").is_file() else {}
    (model,) = texts(run if isinstance(run, dict) and "sae" in run else {}, "model")
    named = any(part.isdigit() for part in folder.name.split("."))  # layers.5, h.3.mlp
    hook = folder.name if named else None
    return Origin("its folder", model, hook, hook_layer(hook))
