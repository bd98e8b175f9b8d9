"""Run the language model once over the tokens and keep what the SAEs will read.

A row is the residual stream at one position whose token is not special. Rows are in token order. Which row
lies in which shard follows from the tokens alone, and every shard is computed from its own contexts, in
batches that start at its first one. So a shard that is missing or damaged is made again by itself, byte for
byte as it was, by whichever process. The model works on the next shard while a thread writes the one before.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from sae_lib.data.activations import ActivationStore
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.npy import write_npy
from sae_lib.data.row_index import CONTEXTS_PER_CHUNK, count_rows, row_chunks
from sae_lib.data.shards import RowSource, make_shards
from sae_lib.data.store_manifest import (
    FORMAT,
    INDEX_FILES,
    MANIFEST,
    Check,
    begin_manifest,
    damage,
    leave_record,
    take_in_records,
)
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, read_json, write_json
from sae_lib.util.memory import readable_bytes, require_memory

LONGEST_CONTEXT = 2**16  # positions are kept as uint16
Progress = Callable[[int, int], object]


def harvest(
    lm: LanguageModel,
    tokens: Int[np.ndarray, "context position"],
    folder: Path | str,
    *,
    shard_rows: int = 2**18,
    batch: int = 32,
    max_rows: int | None = None,
    check: Check = "full",
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], object] = lambda: None,
    progress: Progress | None = None,
) -> ActivationStore:
    """Make the activation store in `folder`, or what is missing of it.

    Finished shards are kept after a check; a missing, truncated or altered one is made again, alone.

    Args:
        lm: the model, cut or whole.
        tokens: int32 contexts.
        shard_rows: rows of every shard but the last.
        batch: contexts per forward pass.
        max_rows: rows of the store, met exactly; all there are by default.
        check: how finished shards are checked: their size, or ("full") their sha256.
        rank, world: this process makes the shards whose number is `rank` modulo `world`; all of them by default.
        barrier: waits for the other processes, which call `harvest` with the same arguments.
        progress: called with (rows done, rows of this process in all), after every batch.

    Returns:
        The opened store: bf16 activations with the context and position of every row.

    Raises:
        ArtifactError: the store there was made by another model, layer, corpus or size; fewer rows than
            `max_rows`; tokens that the model does not know; NaN or infinite activations; no room on the disk;
            another run at work in `folder`.
    """
    folder = Path(folder)
    wanted = _manifest(lm, tokens, shard_rows, max_rows)
    with FolderLock(folder) if rank == 0 else nullcontext():
        if rank == 0:
            for unfinished in folder.glob(".*.npy.*.tmp"):  # of a run that was killed while it wrote
                unfinished.unlink()
            manifest = begin_manifest(folder, wanted)
            _write_index(folder, manifest, tokens)
            _check_disk(folder, manifest)
        barrier()
        if rank > 0:
            manifest = read_json(folder / MANIFEST)
        shards = manifest["shards"]
        mine = range(rank, len(shards), world)
        bad = [number for number in mine if damage(folder, shards[number], check) is not None]
        contexts, positions = (np.load(folder / name, mmap_mode="r") for name in INDEX_FILES)

        def write(number: int, values: NDArray[np.uint16]) -> None:
            shard = shards[number]
            written = write_npy(folder / shard["file"], np.uint16, values.shape, [values])
            if rank == 0:
                shard |= written._asdict()
                write_json(folder / MANIFEST, manifest)
            else:
                leave_record(folder, shard, written)

        report = _Progress(progress, *(sum(shards[number]["rows"] for number in some) for some in (mine, bad)))
        source = RowSource(lm, tokens, contexts, positions, shard_rows, batch)
        make_shards(source, bad, write, report.add)
        barrier()
        if rank == 0:
            take_in_records(folder, manifest)
        barrier()
    return ActivationStore.open(folder)


def harvest_in_memory(
    lm: LanguageModel,
    tokens: Int[np.ndarray, "context position"],
    folder: Path | str,
    *,
    shard_rows: int = 2**18,
    batch: int = 32,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> ActivationStore:
    """The same store, in the memory of the model's device; on the disk only its manifest, so that its key is known
    to processes that do not hold it. Those that need the rows harvest again.

    Arguments as for `harvest`.

    Raises:
        ArtifactError: as for `harvest`; not enough memory; other activations than the manifest in `folder` names.
    """
    folder = Path(folder)
    wanted = _manifest(lm, tokens, shard_rows, max_rows)
    rows = wanted["rows"]
    fix = "set data.store to disk, or lower data.train_tokens"
    require_memory("data.store: the activation store", rows * lm.d_in * 2, lm.device.type, fix)
    contexts, positions = np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.uint16)
    done = 0
    for context, position in row_chunks(tokens, lm.special_ids, rows):
        contexts[done : done + len(context)], positions[done : done + len(context)] = context, position
        done += len(context)
    with FolderLock(folder):
        known = begin_manifest(folder, wanted)
        for name, values in zip(INDEX_FILES, (contexts, positions), strict=True):
            wanted["index"][name] = {"file": name} | write_npy(None, values.dtype, values.shape, [values])._asdict()

        shards = wanted["shards"]

        def note(number: int, values: NDArray[np.uint16]) -> None:
            shards[number] |= write_npy(None, np.uint16, values.shape, [values])._asdict()

        resident = torch.empty(rows, lm.d_in, dtype=torch.bfloat16, device=lm.device)
        source = RowSource(lm, tokens, contexts, positions, shard_rows, batch)
        make_shards(source, range(len(shards)), note, _Progress(progress, rows, rows).add, resident)
        for before, now in zip(known["shards"], shards, strict=True):
            if before["sha256"] not in (None, now["sha256"]):
                raise ArtifactError(
                    f"store: {now['file']} is not what it was when {folder} was first harvested, so the SAEs trained "
                    "then and now would not share a store; set data.store to disk, or remove that folder"
                )
        write_json(folder / MANIFEST, wanted)
    return ActivationStore(folder, wanted, contexts, positions, resident=resident)


def tokens_sha256(tokens: Int[np.ndarray, "context position"]) -> str:
    """Hexadecimal sha256 of the shape and the int32 values: the `corpus_sha256` of a store."""
    digest = hashlib.sha256(repr(tokens.shape).encode())
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        digest.update(np.ascontiguousarray(tokens[start : start + CONTEXTS_PER_CHUNK], dtype="<i4").tobytes())
    return digest.hexdigest()


class _Progress:
    """Counts the rows of one process."""

    def __init__(self, report: Progress | None, rows: int, to_do: int) -> None:
        self._report, self._rows, self._done = report, rows, rows - to_do

    def add(self, rows: int) -> None:
        self._done += rows
        if self._report is not None:
            self._report(self._done, self._rows)


def _manifest(lm: LanguageModel, tokens: NDArray[np.int32], shard_rows: int, max_rows: int | None) -> dict[str, Any]:
    """The manifest of a store of which nothing is finished."""
    if tokens.ndim != 2 or tokens.size == 0 or tokens.shape[1] > LONGEST_CONTEXT:
        raise ArtifactError(
            f"tokens: shape {list(tokens.shape)} is not [context, position], 1 to {LONGEST_CONTEXT} positions"
        )
    if int(tokens.max()) >= lm.vocab_size or int(tokens.min()) < 0:
        raise ArtifactError(
            f"tokens: ids from {int(tokens.min())} to {int(tokens.max())}, but {lm.name} knows 0 to "
            f"{lm.vocab_size - 1}; tokenise the corpus with this model's tokenizer"
        )
    if shard_rows < 1:
        raise ArtifactError(f"data.shard_rows: {shard_rows} is not a number of rows; take one from 1 on")
    rows = count_rows(tokens, lm.special_ids, max_rows)
    return {
        "format": FORMAT,
        "dtype": "bfloat16",
        "model": lm.name,
        "identity": lm.identity,
        "layer": lm.layer,
        "d_in": lm.d_in,
        "corpus_sha256": tokens_sha256(tokens),
        "contexts": tokens.shape[0],
        "positions": tokens.shape[1],
        "special_ids": sorted(lm.special_ids),
        "rows": rows,
        "shard_rows": shard_rows,
        "index": {},
        "shards": [
            {"file": f"activations-{i:05d}.npy", "rows": min(shard_rows, rows - start), "bytes": None, "sha256": None}
            for i, start in enumerate(range(0, rows, shard_rows))
        ],
    }


def _write_index(folder: Path, manifest: dict[str, Any], tokens: NDArray[np.int32]) -> None:
    """Context and position of every row, written where they are missing or not what they should be."""
    rows, special = manifest["rows"], frozenset(manifest["special_ids"])
    for column, (name, dtype) in enumerate(zip(INDEX_FILES, (np.int32, np.uint16), strict=True)):
        entry = manifest["index"].get(name, {"file": name, "bytes": None, "sha256": None})
        if damage(folder, entry, "full") is None:
            continue
        pieces = (chunk[column] for chunk in row_chunks(tokens, special, rows))
        written = write_npy(folder / name, dtype, (rows,), pieces)
        manifest["index"][name] = {"file": name} | written._asdict()
        write_json(folder / MANIFEST, manifest)


def _check_disk(folder: Path, manifest: dict[str, Any]) -> None:
    missing = sum(shard["rows"] for shard in manifest["shards"] if damage(folder, shard, "size") is not None)
    needed, free = missing * manifest["d_in"] * 2, shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"disk: the activations still to be made need {readable_bytes(needed)}, "
            f"{folder} has {readable_bytes(free)} free; lower data.train_tokens "
            "or set SAE_LIB_OUTPUT to a folder on a larger disk"
        )
