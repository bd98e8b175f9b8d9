"""What a metric needs from the language model, on disk: tensors, and a record that carries their checksum.

And two checks for all metrics: an SAE as wide as what it is to read, whose latents are numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write, file_state, is_unaltered, read_json, write_json
from sae_lib.util.keys import Stage, result_key

Reference = TypeVar("Reference")


def require_width(
    sae: Autoencoder, width: int, holder: str = "the reference's residual stream has", name: str = "sae"
) -> None:
    """Raises ArtifactError when the SAE's d_in is not `width`, that of what `holder` names."""
    if sae.d_in != width:
        fix = "evaluate it on the model and layer it was trained on"
        raise ArtifactError(f"{name}: d_in is {sae.d_in}, {holder} {width}; {fix}")


def require_finite(latents: Tensor) -> None:
    """Raises ArtifactError when some latent is NaN or infinite."""
    # A sum is finite only where its terms are, and reads each of them once.
    if not latents.sum().isfinite() and not latents.isfinite().all():
        raise ArtifactError(
            "sae: its latents hold NaN or infinite values; train it again from its last good checkpoint"
        )


def kept_reference(
    folder: Path | str,
    stage: Stage,
    made_from: dict[str, Any],
    kind: type[Reference],
    compute: Callable[[], Reference],
    groups: Mapping[str, Any] = MappingProxyType({}),
    mapped: bool = False,
) -> Reference:
    """What `compute` gives, or gave before, from files in `folder` that are named by what it is made from. Files that
    are missing, cut short or altered are made again; the record, written last, makes the tensors valid.

    `kind`: a dataclass of tensors and of values that JSON can hold; `groups`: its fields that are tuples of tensors,
    and their classes; `mapped`: whether what was just computed is read back, since what is read is mapped from disk.
    """
    stem = Path(folder) / f"{stage.name.split()[0]}-{result_key(stage, made_from)[:16]}"
    path, record_file = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    try:
        record = read_json(record_file)
        if "values" in record and is_unaltered(path, record["file"]):
            tensors = safetensors.torch.load_file(path)
            tuples = {name: of(*(tensors.pop(f"{name}.{part}") for part in of._fields)) for name, of in groups.items()}
            return kind(**record["values"], **tensors, **tuples)
    except (FileNotFoundError, NotADirectoryError, ArtifactError):
        pass
    reference = compute()
    values = {each.name: getattr(reference, each.name) for each in fields(kind)}  # type: ignore[arg-type]
    for name, of in groups.items():
        values |= {f"{name}.{part}": tensor for part, tensor in zip(of._fields, values.pop(name), strict=True)}
    tensors = {name: values.pop(name).contiguous() for name in [*values] if isinstance(values[name], Tensor)}
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save(tensors))
    write_json(record_file, {"values": values, "made_from": made_from, "file": file_state(path)})
    return kept_reference(folder, stage, made_from, kind, compute, groups) if mapped else reference
