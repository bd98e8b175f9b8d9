"""The manifest of an activation store: what it was made from, and whether its files are what they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sae_lib.errors import ArtifactError
from sae_lib.files import file_sha256

FORMAT = 1
MANIFEST = "manifest.json"
INDEX_FILES = ("contexts.npy", "positions.npy")

Check = Literal["size", "full"]


def check_source(folder: Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a store that was made from something else than what is asked for.

    Raises:
        ArtifactError: names every field that differs.
    """
    differing = [
        f"{field} {_short(manifest.get(field))} instead of {_short(value)}"
        for field, value in asked.items()
        if manifest.get(field) != value
    ]
    if differing:
        raise ArtifactError(
            f"store: {folder} was made from something else ({', '.join(differing)}; "
            f"its model is {manifest.get('model')}); remove that folder or set SAE_LIB_OUTPUT to another"
        )


def damage(folder: Path, entry: Mapping[str, Any], check: Check) -> str | None:
    """What is wrong with one file of the store, or None.

    Args:
        entry: `file`, and the `bytes` and `sha256` it had when it was made (None: it was never finished).
        check: compare the size, or ("full") the sha256 as well.
    """
    path = folder / entry["file"]
    if entry["sha256"] is None or not path.is_file():
        return "missing"
    if path.stat().st_size != entry["bytes"]:
        return "truncated"
    return "altered" if check == "full" and file_sha256(path) != entry["sha256"] else None


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) > 40 else text
