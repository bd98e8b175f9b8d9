"""SAEs from elsewhere: a folder that this package, SAELens or dictionary_learning wrote becomes an `Autoencoder`.

Which of the three wrote a folder is told from its files:

| files                              | written by                                  |
|------------------------------------|---------------------------------------------|
| `sae.safetensors`, `run.json`      | this package (a run folder)                 |
| `cfg.json`, `sae_weights.safetensors` | SAELens (`save_model`), 6.x and older    |
| `config.json`, `ae.pt`             | dictionary_learning                         |

Latents and reconstructions are those of the library's own class: weights are transposed where they must be, never
rescaled. Decoder rows that are not of norm 1 stay so; metrics fold the norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import WEIGHTS_FILE, load_autoencoder
from sae_lib.share import dictionary_learning, saelens
from sae_lib.share.origin import Origin
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

__all__ = ["LoadedSAE", "Origin", "load_sae", "load_with_origin"]


class LoadedSAE(NamedTuple):
    """An SAE and what its folder says about where it was trained."""

    sae: Autoencoder
    origin: Origin


def load_sae(folder: Path | str, device: str = "cpu") -> Autoencoder:
    """The SAE of a folder, whichever library wrote it: float32, in evaluation mode, for raw activations.

    >>> load_sae("gemma-2-2b-layer-12").d_in        # doctest: +SKIP
    2304

    Raises:
        ArtifactError: no such folder or no known format; a file that is missing, damaged or holds more than
            tensors; an architecture, a key or a shape that does not fit.
    """
    return load_with_origin(folder, device).sae


def load_with_origin(folder: Path | str, device: str = "cpu") -> LoadedSAE:
    """As `load_sae`, with the model and place that the folder names.

    Raises:
        ArtifactError: as `load_sae`.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ArtifactError(f"sae: there is no folder {folder}; give the folder that holds the SAE's files")
    if (folder / WEIGHTS_FILE).is_file() and (folder / "run.json").is_file():
        sae, origin = _own(folder)
    elif (folder / saelens.WEIGHTS).is_file() or (folder / saelens.CONFIG).is_file():
        sae, origin = saelens.load(folder)
    elif (folder / dictionary_learning.WEIGHTS).is_file():
        sae, origin = dictionary_learning.load(folder)
    else:
        raise ArtifactError(
            f"sae: {folder} holds no SAE of a known format: {WEIGHTS_FILE} + run.json (this package), "
            f"{saelens.CONFIG} + {saelens.WEIGHTS} (SAELens) or "
            f"{dictionary_learning.CONFIG} + {dictionary_learning.WEIGHTS} (dictionary_learning)"
        )
    return LoadedSAE(sae.to(device).eval().requires_grad_(False), origin)


def _own(folder: Path) -> tuple[Autoencoder, Origin]:
    run = read_json(folder / "run.json")
    layer = run.get("layer")
    hook = None if layer is None else f"layer {layer}"
    return load_autoencoder(folder), Origin("run.json", run.get("model"), hook, layer)
