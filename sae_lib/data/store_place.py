"""Where an activation store is kept: on the disk, for every process, or in one process's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from sae_lib.data.store_manifest import MANIFEST, finished_manifest
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import free_bytes, used_bytes
from sae_lib.util.memory import RESIDENT_SHARE, free_memory, readable_bytes
from sae_lib.util.paths import shown

BYTES_PER_ROW_OF_INDEX = 6  # int32 context, uint16 position


class Place(NamedTuple):
    """Where the store goes, and why, for people."""

    kind: Literal["disk", "memory"]
    reason: str


def store_bytes(rows: int, d_in: int) -> int:
    """Size of a store: bf16 rows and their index."""
    return rows * (2 * d_in + BYTES_PER_ROW_OF_INDEX)


def choose_place(
    asked: Literal["disk", "memory", "auto"], needed: int, folder: Path, device: str, processes: int
) -> Place:
    """Where a store of `needed` bytes goes.

    "auto" is the disk where it is large enough, since a store there is made once for all processes; else memory.

    Args:
        asked: `data.store`.
        folder: the store's; what lies there already counts as room.
        device: "cpu" or "cuda", whose memory would hold it.
        processes: how many will read it side by side.

    Raises:
        ArtifactError: it fits nowhere, or memory was asked for and several processes are to share it.
    """
    size, free = readable_bytes(needed), free_memory(device)
    memory = "GPU memory" if device != "cpu" else "memory"
    in_memory = Place("memory", f"in {memory} ({size}, {readable_bytes(free)} free)")
    if asked == "memory":
        if processes > 1:
            raise ArtifactError(
                f"data.store: {processes} processes cannot share a store that one of them holds in memory; "
                "set data.store to disk, or training.workers to 1"
            )
        return in_memory
    room = _room(folder)
    if asked == "disk" or needed <= room:
        return Place("disk", f"in {shown(folder)} ({size}, room for {readable_bytes(room)})")
    if processes == 1 and needed <= RESIDENT_SHARE * free:
        return in_memory
    alone = "" if processes == 1 else f", and {processes} processes are to share it"
    raise ArtifactError(
        f"data.store: the activations are {size}; {folder} has room for {readable_bytes(room)}, and "
        f"{readable_bytes(RESIDENT_SHARE * free)} of {memory} can be used{alone}; lower data.train_tokens "
        "or set SAE_LIB_OUTPUT to a folder on a larger disk"
    )


def only_in_memory(folder: Path) -> bool:
    """Whether the store in `folder` was harvested and is on no disk: its manifest is there and none of its shards."""
    if not (folder / MANIFEST).is_file():
        return False
    shards = finished_manifest(folder, {})["shards"]
    return not any((folder / shard["file"]).is_file() for shard in shards)


def _room(folder: Path) -> int:
    return used_bytes(folder, "*.npy") + free_bytes(folder)
