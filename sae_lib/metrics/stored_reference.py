"""What a metric needs from the language model, on disk: tensors, and a record that carries their checksum.

Two checks for all metrics: an SAE as wide as what it is to read, whose latents are numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write, file_state, is_unaltered, read_json, write_json


def require_width(
    sae: Autoencoder, width: int, holder: str = "the reference's residual stream has", name: str = "sae"
) -> None:
    """Raises ArtifactError when the SAE's d_in is not `width`, that of what `holder` names."""
    if sae.d_in != width:
        raise ArtifactError(
            f"{name}: d_in is {sae.d_in}, {holder} {width}; evaluate it on the model and layer it was trained on"
        )


def require_finite(latents: Tensor) -> None:
    """Raises ArtifactError when some latent is NaN or infinite."""
    # A sum is finite only where its terms are, and reads each of them once.
    if not latents.sum().isfinite() and not latents.isfinite().all():
        raise ArtifactError(
            "sae: its latents hold NaN or infinite values; train it again from its last good checkpoint"
        )


def save_reference(stem: Path, tensors: dict[str, Tensor], record: dict[str, Any], made_from: dict[str, Any]) -> None:
    """Write `stem.safetensors` and then `stem.json`, which makes the tensors valid."""
    path = stem.with_suffix(".safetensors")
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_json(stem.with_suffix(".json"), {**record, "made_from": made_from, "file": file_state(path)})


def load_reference(stem: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the record, or None where a file is missing, cut short or altered."""
    path = stem.with_suffix(".safetensors")
    try:
        record = read_json(stem.with_suffix(".json"))
        return (safetensors.torch.load_file(path), record) if is_unaltered(path, record["file"]) else None
    except (FileNotFoundError, ArtifactError):
        return None
