"""Run the language model once over the tokens and keep what the SAEs will read.

A row is the residual stream at one position whose token is not special. Rows are in token order, which row lies in
which shard follows from the tokens alone, and every shard is computed from its own contexts: one that is missing or
damaged is made again by itself, byte for byte, by whichever process. A shard that is there is whole; rank 0 keeps
`manifest.json` and enters what all ranks have made.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

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
from sae_lib.util.files import FolderLock, atomic_write, file_sha256, read_json, require_room, write_json

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
    """The activation store in `folder`, made or completed: a missing, truncated or altered shard is made, alone.

    `tokens`: int32; `shard_rows`: rows of every shard but the last; `batch`: contexts per forward pass; `max_rows`:
    rows of the store, met exactly, by default all there are; `rank`, `world`: this process makes the shards whose
    number is `rank` modulo `world`, and `barrier` waits for the others, which call this with the same arguments;
    `progress` is called with (rows done, rows of this process in all) after every batch.

    Raises ArtifactError: the store there was made by another model, layer, corpus or size; fewer rows than `max_rows`;
    tokens that the model does not know; NaN or infinite activations; no room on the disk; another run at work there.
    """
    folder = Path(folder)
    wanted = _manifest(lm, tokens, shard_rows, max_rows)
    with FolderLock(folder) if rank == 0 else nullcontext():
        if rank == 0:
            manifest = _begin(folder, wanted)
            _write_index(folder, manifest, tokens)
            to_make = sum(shard["rows"] for shard in manifest["shards"] if shard["sha256"] is None)
            what = "the activations still to be made need"
            require_room(folder, to_make * lm.d_in * 2, what, "lower data.train_tokens")
            write_json(folder / MANIFEST, manifest)
        barrier()
        shards = read_json(folder / MANIFEST)["shards"]
        mine = range(rank, len(shards), world)
        missing = [number for number in mine if shards[number]["sha256"] is None]
        rows, to_do = (sum(shards[number]["rows"] for number in some) for some in (mine, missing))
        contexts, positions = (np.load(folder / name, mmap_mode="r") for name in INDEX_FILES)

        def advance(made: int) -> None:
            nonlocal to_do
            to_do -= made
            progress(rows - to_do, rows)

        def compute(number: int) -> tuple[int, Tensor, Tensor]:
            of_shard = slice(number * shard_rows, (number + 1) * shard_rows)
            return number, *_shard(lm, tokens, contexts[of_shard], positions[of_shard], batch, advance)

        def write(shard: tuple[int, Tensor, Tensor]) -> None:
            number, values, finite = shard
            if not finite.all():
                row = number * shard_rows + int((~finite).nonzero()[0])
                raise not_finite(lm, f"context {contexts[row]}, position {positions[row]}")
            with atomic_write(folder / shards[number]["file"], "wb") as file:
                np.save(file, values.cpu().view(torch.int16).numpy().view(np.uint16))

        list(ahead(write, map(compute, missing), 1))  # two shards are in memory, and a thread alone waits for a GPU
        barrier()
        if rank == 0:
            _take_in(folder, manifest)
            write_json(folder / MANIFEST, manifest)
        barrier()
    return ActivationStore.open(folder)


def _shard(
    lm: LanguageModel,
    tokens: NDArray[np.int32],
    contexts: NDArray[np.int32],
    positions: NDArray[np.uint16],
    batch: int,
    advance: Callable[[int], object],
) -> tuple[BFloat16[Tensor, "row d_in"], Bool[Tensor, " row"]]:
    """The rows of one shard, by their contexts and positions, and which are finite. Never waits for a GPU."""
    contexts, length = np.asarray(contexts), tokens.shape[1]
    first, last = int(contexts[0]), int(contexts[-1])
    values = torch.empty(len(contexts), lm.d_in, dtype=torch.bfloat16, device=lm.device)
    finite = torch.empty(len(contexts), dtype=torch.bool, device=lm.device)
    ids = torch.from_numpy(np.array(tokens[first : last + 1], dtype=np.int64)).to(lm.device)
    # Place of each row in the shard's own contexts, laid end to end.
    places = torch.from_numpy((contexts.astype(np.int64) - first) * length + positions).to(lm.device)
    starts = np.arange(first, last + 1, batch)
    bounds = np.searchsorted(contexts, np.append(starts, last + 1).astype(contexts.dtype))
    for start, low, high in zip(starts - first, bounds[:-1], bounds[1:], strict=True):
        if low == high:
            continue
        stop = int(contexts[high - 1]) - first + 1
        residual = lm.residual_stream(ids[start:stop]).flatten(0, 1)
        values[low:high] = residual.index_select(0, places[low:high] - start * length).to(torch.bfloat16)
        finite[low:high] = values[low:high].isfinite().all(dim=1)
        advance(int(high - low))
    return values, finite


def row_chunks(
    tokens: Int[np.ndarray, "context position"], special_ids: frozenset[int], rows: int | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
    """Context and position of the first `rows` rows (all, if None), some thousands of contexts at a time: every
    position whose token is not special is a row, in token order."""
    special, left = np.array(sorted(special_ids)), rows
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        context, position = np.nonzero(~np.isin(tokens[start : start + CONTEXTS_PER_CHUNK], special))
        yield (context[:left] + start).astype(np.int32), position[:left].astype(np.uint16)
        if left is not None:
            left -= min(left, len(context))
            if left == 0:
                return


def tokens_sha256(tokens: Int[np.ndarray, "context position"]) -> str:
    """Hexadecimal sha256 of the shape and the int32 values: the `corpus_sha256` of a store."""
    digest = hashlib.sha256(repr(tokens.shape).encode())
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").data)
    return digest.hexdigest()


def _manifest(lm: LanguageModel, tokens: NDArray[np.int32], shard_rows: int, max_rows: int | None) -> dict[str, Any]:
    """The manifest of a store of which nothing is finished."""
    if tokens.ndim != 2 or tokens.size == 0 or tokens.shape[1] > LONGEST_CONTEXT:
        wanted = f"[context, position], 1 to {LONGEST_CONTEXT} positions"
        raise ArtifactError(f"tokens: shape {list(tokens.shape)} is not {wanted}")
    lm.check_tokens(tokens)
    rows = sum(len(contexts) for contexts, _ in row_chunks(tokens, lm.special_ids, max_rows))
    if rows < (max_rows or 1):
        fault = f"{max_rows or 1} rows were asked for, the corpus has {rows} tokens that are not special"
        raise ArtifactError(f"data.train_tokens: {fault}; lower it or add text")
    return {
        "format": FORMAT, "dtype": "bfloat16", "model": lm.name, "identity": lm.identity, "layer": lm.layer,
        "d_in": lm.d_in, "corpus_sha256": tokens_sha256(tokens), "contexts": tokens.shape[0],
        "positions": tokens.shape[1], "special_ids": sorted(lm.special_ids), "rows": rows, "shard_rows": shard_rows,
        "index": {},
        "shards": [
            {"file": f"activations-{i:05d}.npy", "rows": min(shard_rows, rows - start)} | UNFINISHED
            for i, start in enumerate(range(0, rows, shard_rows))
        ],
    }  # fmt: skip


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
    """Enter the shards that are there into the manifest; one that was cut short since, as by a copy, goes."""
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if shard["sha256"] is None and path.is_file():
            with suppress(ValueError, EOFError):  # of a file that is shorter than it says, and of an empty one
                values = np.load(path, mmap_mode="r")
                if values.shape == (shard["rows"], manifest["d_in"]) and values.dtype == np.uint16:
                    shard |= _entry(folder, shard["file"])
                    continue
            path.unlink()


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
