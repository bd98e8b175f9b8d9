"""The manifest of an activation store: what it was made from, and whether its files are what they were. No torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sae_lib.util.errors import ArtifactError, shortened
from sae_lib.util.files import file_sha256, json_key, read_json

FORMAT = 1
MANIFEST = "manifest.json"
INDEX_FILES = ("contexts.npy", "positions.npy")
NOT_IN_KEY = ("model", "shard_rows", "index", "shards")

Check = Literal["size", "full"]


def check_source(folder: Path, manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises ArtifactError, naming every field that differs, for a store made from something else than is asked for."""
    differing = [
        f"{field} {shortened(str(manifest.get(field)), 16)} instead of {shortened(str(value), 16)}"
        for field, value in asked.items()
        if manifest.get(field) != value
    ]
    if differing:
        fault = f"was made from something else ({', '.join(differing)}; its model is {manifest.get('model')})"
        raise ArtifactError(f"store: {folder} {fault}; remove that folder or set SAE_LIB_OUTPUT to another")


def finished_manifest(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a store that has once been made to its end. Raises ArtifactError: there is no store, an
    unfinished one, or one whose fields are not those `asked`."""
    if not (folder / MANIFEST).exists():
        raise ArtifactError(f"store: there are no activations in {folder}; harvest them first (notebook 01_data)")
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    check_source(folder, manifest, {"format": FORMAT, **asked})
    if any(shard["sha256"] is None for shard in manifest["shards"]):
        fix = "harvest again (notebook 01_data), it goes on from there"
        raise ArtifactError(f"store: the shards in {folder} are not all made yet; {fix}")
    return manifest


def content_key(manifest: Mapping[str, Any]) -> str:
    """sha256 over model, layer, text and number of rows: neither where a store lies nor the bits of its rows, whose
    last ones differ between makes of processor."""
    return json_key({field: value for field, value in manifest.items() if field not in NOT_IN_KEY})


def damage(folder: Path, entry: Mapping[str, Any], check: Check) -> str | None:
    """What is wrong with one file, or None; `entry`: its name, and the bytes and sha256 it was made with, if it was."""
    path = folder / entry["file"]
    if entry["sha256"] is None or not path.is_file():
        return "missing"
    if path.stat().st_size != entry["bytes"]:
        return "truncated"
    return "altered" if check == "full" and file_sha256(path) != entry["sha256"] else None


def damaged_files(folder: Path, manifest: Mapping[str, Any], check: Check) -> Iterator[tuple[str, str]]:
    """The files of a finished store with which something is wrong, and what."""
    for entry in (*manifest["index"].values(), *manifest["shards"]):
        if fault := damage(folder, entry, check):
            yield entry["file"], fault


def lost_file(folder: Path) -> str | None:
    """The first file of a finished store that is missing or has another size, or None."""
    return next((file for file, _ in damaged_files(folder, read_json(folder / MANIFEST), "size")), None)
