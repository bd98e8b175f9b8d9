"""SAEs from elsewhere: a folder that this package or another library wrote becomes an `Autoencoder`.

`share/README.md` says which versions and kinds of each are read. Latents and reconstructions are those of the library's
own class; decoder rows that are not of norm 1 stay so.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import WEIGHTS_FILE, load_autoencoder
from sae_lib.share import dictionary_learning, gemma_scope, saelens, sparsify
from sae_lib.share.origin import Origin, texts
from sae_lib.share.weights import read_config
from sae_lib.util.errors import ArtifactError

__all__ = ["LoadedSAE", "Origin", "load_sae", "load_with_origin"]


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
    if {WEIGHTS_FILE, "run.json"} <= here:
        sae, origin = _own(folder)
    elif {sparsify.CONFIG, sparsify.WEIGHTS} <= here:
        sae, origin = sparsify.load(folder)
    elif {saelens.CONFIG, saelens.WEIGHTS} & here:
        sae, origin = saelens.load(folder)
    elif dictionary_learning.WEIGHTS in here:
        sae, origin = dictionary_learning.load(folder)
    elif {gemma_scope.WEIGHTS, gemma_scope.WEIGHTS_2} & here:
        sae, origin = gemma_scope.load(folder)
    else:
        raise ArtifactError(
            f"sae: {folder} holds no SAE of a known format: {WEIGHTS_FILE} + run.json (this package), "
            f"{saelens.CONFIG} + {saelens.WEIGHTS} (SAELens), {sparsify.CONFIG} + {sparsify.WEIGHTS} (sparsify), "
            f"{dictionary_learning.CONFIG} + {dictionary_learning.WEIGHTS} (dictionary_learning) or "
            f"{gemma_scope.WEIGHTS} (Gemma Scope)"
        )
    return LoadedSAE(sae.to(device).eval().requires_grad_(False), origin)


def _own(folder: Path) -> tuple[Autoencoder, Origin]:
    run = read_config(folder / "run.json", "sae_lib")
    (model,), layer = texts(run, "model"), run.get("layer")
    layer = layer if isinstance(layer, int) else None
    return load_autoencoder(folder), Origin("run.json", model, None if layer is None else f"layer {layer}", layer)
