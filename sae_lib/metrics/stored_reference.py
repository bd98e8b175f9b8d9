"""What a metric needs from the language model, on disk: tensors, and a record that carries their checksum."""

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from sae_lib.errors import ArtifactError
from sae_lib.files import atomic_write, file_sha256, read_json, write_json


def save_reference(stem: Path, tensors: dict[str, Tensor], record: dict[str, Any], made_from: dict[str, Any]) -> None:
    """Write `stem.safetensors` and then `stem.json`, which makes the tensors valid."""
    path = stem.with_suffix(".safetensors")
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_json(stem.with_suffix(".json"), {**record, "made_from": made_from, "sha256": file_sha256(path)})


def load_reference(stem: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the record, or None where a file is missing, cut short or altered."""
    record_path, path = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    if not record_path.exists() or not path.exists():
        return None
    try:
        record = read_json(record_path)
    except ArtifactError:
        return None
    if record["sha256"] != file_sha256(path):
        return None
    return safetensors.torch.load_file(path), record
