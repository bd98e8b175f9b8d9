"""Run the language model once over the tokens and keep what the SAEs will read.

A row is the residual stream at one position whose token is not special. Rows are in token order. Which row
lies in which shard follows from the tokens alone, and every shard is computed from its own contexts, in
batches that start at its first one. So a shard that is missing or damaged is made again by itself, byte for
byte as it was, by whichever process. The model works on the next shard while a thread writes the one before.

Rank 0 keeps `manifest.json`, and enters what all ranks have made: a shard that is there is whole, so no two processes
ever write the same file.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_lib.data.activations import ActivationStore
from sae_lib.data.language_model import LanguageModel, not_finite
from sae_lib.data.store_manifest import FORMAT, INDEX_FILES, MANIFEST, check_source, damage
from sae_lib.data.tokens import ahead
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, atomic_write, file_sha256, read_json, write_json
from sae_lib.util.memory import readable_bytes

LONGEST_CONTEXT = 2**16  # positions are kept as uint16
UNFINISHED = {"bytes": None, "sha256": None}
CONTEXTS_PER_CHUNK = 8192  # so memory does not grow with the number of tokens


def harvest(
    lm: LanguageModel,
    tokens: Int[np.ndarray, "context position"],
    folder: Path | str,
    *,
    shard_rows: int = 2**18,
    batch: int = 32,
    max_rows: int | None = None,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], object] = lambda: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> ActivationStore:
    """Make the activation store in `folder`, or what is missing of it.

    Finished shards are kept after a check of their sha256; a missing, truncated or altered one is made again, alone.

    `tokens`: int32 contexts; `shard_rows`: rows of every shard but the last; `batch`: contexts per forward pass;
    `max_rows`: rows of the store, met exactly, by default all there are; `rank`, `world`: this process makes the shards
    whose number is `rank` modulo `world`; `barrier` waits for the other processes, which call `harvest` with the same
    arguments; `progress` is called with (rows done, rows of this process in all) after every batch.

    Returns the opened store: bf16 activations with the context and position of every row.

    Raises ArtifactError: the store there was made by another model, layer, corpus or size; fewer rows than `max_rows`;
    tokens that the model does not know; NaN or infinite activations; no room on the disk; another run at work there.
    """
    folder = Path(folder)
    wanted = _manifest(lm, tokens, shard_rows, max_rows)
    with FolderLock(folder) if rank == 0 else nullcontext():
        if rank == 0:
            manifest = _begin(folder, wanted)
            _write_index(folder, manifest, tokens)
            _check_disk(folder, manifest)
            write_json(folder / MANIFEST, manifest)
        barrier()
        shards = read_json(folder / MANIFEST)["shards"]
        mine = range(rank, len(shards), world)
        missing = [number for number in mine if shards[number]["sha256"] is None]
        rows, to_do = (sum(shards[number]["rows"] for number in some) for some in (mine, missing))
        contexts, positions = (np.load(folder / name, mmap_mode="r") for name in INDEX_FILES)

        def write(number: int, values: NDArray[np.uint16]) -> None:
            with atomic_write(folder / shards[number]["file"], "wb") as file:
                np.save(file, values)

        def advance(made: int) -> None:
            nonlocal to_do
            to_do -= made
            progress(rows - to_do, rows)

        make_shards(RowSource(lm, tokens, contexts, positions, shard_rows, batch), missing, write, advance)
        barrier()
        if rank == 0:
            _take_in(folder, manifest)
        barrier()
    return ActivationStore.open(folder)


class RowSource(NamedTuple):
    """What the rows of a store are computed from."""

    lm: LanguageModel
    tokens: NDArray[np.int32]
    """`[context, position]`"""
    contexts: NDArray[np.int32]
    """The context of every row of the store, ascending."""
    positions: NDArray[np.uint16]
    shard_rows: int
    batch: int
    """Contexts per forward pass."""


def make_shards(
    source: RowSource,
    numbers: Iterable[int],
    take: Callable[[int, NDArray[np.uint16]], object],
    advance: Callable[[int], object],
) -> None:
    """Compute the shards with these numbers and hand each to `take`, in a thread and in order.

    At most two shards are in memory: the one being computed and the one being taken. Only the thread waits for a GPU.
    `take` is called with the number of a shard and its values, bf16 bit patterns `[row, d_in]`; `advance` with the
    number of rows of every batch. Raises ArtifactError: NaN or infinite activations; or what `take` raises.
    """
    lm = source.lm

    def computed() -> Iterator[tuple[int, Tensor, Tensor]]:
        for number in numbers:
            rows = slice(number * source.shard_rows, (number + 1) * source.shard_rows)
            values = torch.empty(len(source.contexts[rows]), lm.d_in, dtype=torch.bfloat16, device=lm.device)
            yield number, values, _compute(source, rows, values, advance)

    def hand_over(shard: tuple[int, Tensor, Tensor]) -> None:
        number, values, finite = shard
        if not finite.all():
            row = number * source.shard_rows + int((~finite).nonzero()[0])
            raise not_finite(lm, f"context {source.contexts[row]}, position {source.positions[row]}")
        take(number, values.cpu().view(torch.int16).numpy().view(np.uint16))

    for _ in ahead(hand_over, computed(), 1):
        pass


def _compute(
    source: RowSource, rows: slice, values: BFloat16[Tensor, "row d_in"], advance: Callable[[int], object]
) -> Bool[Tensor, " row"]:
    """Fill `values` with the rows of one shard; says which rows are finite. Never waits for a GPU."""
    lm, contexts = source.lm, np.asarray(source.contexts[rows])
    first, last, length = int(contexts[0]), int(contexts[-1]), source.tokens.shape[1]
    tokens = torch.from_numpy(np.array(source.tokens[first : last + 1], dtype=np.int64)).to(lm.device)
    # Place of each row in the shard's own contexts, laid end to end.
    places = torch.from_numpy((contexts.astype(np.int64) - first) * length + source.positions[rows]).to(lm.device)
    finite = torch.empty(len(values), dtype=torch.bool, device=lm.device)
    starts = np.arange(first, last + 1, source.batch)
    bounds = np.searchsorted(contexts, np.append(starts, last + 1).astype(contexts.dtype))
    for start, low, high in zip(starts - first, bounds[:-1], bounds[1:], strict=True):
        if low == high:
            continue
        stop = int(contexts[high - 1]) - first + 1
        residual = lm.residual_stream(tokens[start:stop]).flatten(0, 1)
        values[low:high] = residual.index_select(0, places[low:high] - start * length).to(torch.bfloat16)
        finite[low:high] = values[low:high].isfinite().all(dim=1)
        advance(int(high - low))
    return finite


def row_chunks(
    tokens: Int[np.ndarray, "context position"], special_ids: frozenset[int], rows: int | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
    """Context and position of the first `rows` rows (all, if None), some thousands of contexts at a time: every
    position whose token is not special is a row, in token order."""
    special = np.array(sorted(special_ids))
    left = rows
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        context, position = np.nonzero(~np.isin(tokens[start : start + CONTEXTS_PER_CHUNK], special))
        yield (context[:left] + start).astype(np.int32), position[:left].astype(np.uint16)
        if left is not None:
            left -= min(left, len(context))
            if left == 0:
                return


def count_rows(
    tokens: Int[np.ndarray, "context position"], special_ids: frozenset[int], max_rows: int | None = None
) -> int:
    """How many rows the store of these tokens has: `max_rows`, or all there are. Raises ArtifactError: there are none,
    or fewer than `max_rows`."""
    found = sum(len(contexts) for contexts, _ in row_chunks(tokens, special_ids, max_rows))
    if found == 0 or (max_rows is not None and found < max_rows):
        raise ArtifactError(
            f"data.train_tokens: {max_rows or 1} rows were asked for, the corpus has {found} tokens "
            "that are not special; lower it or add text"
        )
    return found


def tokens_sha256(tokens: Int[np.ndarray, "context position"]) -> str:
    """Hexadecimal sha256 of the shape and the int32 values: the `corpus_sha256` of a store."""
    digest = hashlib.sha256(repr(tokens.shape).encode())
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        digest.update(np.ascontiguousarray(tokens[start : start + CONTEXTS_PER_CHUNK], dtype="<i4").tobytes())
    return digest.hexdigest()


def _manifest(lm: LanguageModel, tokens: NDArray[np.int32], shard_rows: int, max_rows: int | None) -> dict[str, Any]:
    """The manifest of a store of which nothing is finished."""
    if tokens.ndim != 2 or tokens.size == 0 or tokens.shape[1] > LONGEST_CONTEXT:
        raise ArtifactError(
            f"tokens: shape {list(tokens.shape)} is not [context, position], 1 to {LONGEST_CONTEXT} positions"
        )
    lm.check_tokens(tokens)
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
            {"file": f"activations-{i:05d}.npy", "rows": min(shard_rows, rows - start)} | UNFINISHED
            for i, start in enumerate(range(0, rows, shard_rows))
        ],
    }


def _begin(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the store in `folder`, with the shards that are there and none that is damaged; or `wanted`.
    Raises ArtifactError: the store there was made from something else."""
    for unfinished in folder.glob(".*.npy.*.tmp"):  # of a run that was killed while it wrote
        unfinished.unlink()
    if not (folder / MANIFEST).exists():
        for shard in folder.glob("activations-*"):  # of a store that somebody removed by half
            shard.unlink()
        return wanted
    there: dict[str, Any] = read_json(folder / MANIFEST)
    check_source(folder, there, {k: v for k, v in wanted.items() if k not in ("model", "index", "shards")})
    for shard in there["shards"]:
        if shard["sha256"] and damage(folder, shard, "full"):
            (folder / shard["file"]).unlink(missing_ok=True)
            shard |= UNFINISHED
    _take_in(folder, there)
    return there


def _take_in(folder: Path, manifest: dict[str, Any]) -> None:
    """Enter the shards that are there into the manifest, on disk too. They are written whole or not at all; one that
    was cut short since, by a copy, goes."""
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if shard["sha256"] is None and path.is_file():
            try:
                values = np.load(path, mmap_mode="r")
                whole = values.shape == (shard["rows"], manifest["d_in"]) and values.dtype == np.uint16
            except (ValueError, EOFError):  # of a file that is shorter than it says, and of an empty one
                whole = False
            if whole:
                shard |= _entry(folder, shard["file"])
                write_json(folder / MANIFEST, manifest)
            else:
                path.unlink()
    write_json(folder / MANIFEST, manifest)


def _entry(folder: Path, name: str) -> dict[str, Any]:
    return {"file": name, "bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}


def _write_index(folder: Path, manifest: dict[str, Any], tokens: NDArray[np.int32]) -> None:
    """Context and position of every row, written where they are missing or not what they should be."""
    rows, special = manifest["rows"], frozenset(manifest["special_ids"])
    for column, (name, descr) in enumerate(zip(INDEX_FILES, ("<i4", "<u2"), strict=True)):
        if damage(folder, manifest["index"].get(name, {"file": name} | UNFINISHED), "full"):
            with atomic_write(folder / name, "wb") as file:
                header = {"descr": descr, "fortran_order": False, "shape": (rows,)}
                np.lib.format.write_array_header_1_0(file, header)
                for chunk in row_chunks(tokens, special, rows):
                    file.write(chunk[column].data)
            manifest["index"][name] = _entry(folder, name)


def _check_disk(folder: Path, manifest: dict[str, Any]) -> None:
    missing = sum(shard["rows"] for shard in manifest["shards"] if shard["sha256"] is None)
    needed, free = missing * manifest["d_in"] * 2, shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"disk: the activations still to be made need {readable_bytes(needed)}, "
            f"{folder} has {readable_bytes(free)} free; lower data.train_tokens "
            "or set SAE_LIB_OUTPUT to a folder on a larger disk"
        )
