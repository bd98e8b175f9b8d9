"""Run the language model once over the tokens and keep what the SAEs will read.

A row is the residual stream at one position whose token is not special. Rows are in token order. Which row
lies in which shard follows from the tokens alone, and every shard is computed from its own contexts, in
batches that start at its first one. So a shard that is missing or damaged is made again by itself, byte for
byte as it was.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt16
from numpy.typing import NDArray
from torch import Tensor

from sae_lib.activations import ActivationStore
from sae_lib.errors import ArtifactError
from sae_lib.files import FolderLock, atomic_write, file_sha256, read_json, write_json
from sae_lib.language_model import LanguageModel
from sae_lib.memory import readable_bytes
from sae_lib.store_manifest import FORMAT, INDEX_FILES, MANIFEST, Check, check_source, damage

LONGEST_CONTEXT = 2**16  # positions are kept as uint16
CONTEXTS_PER_CHUNK = 8192


def harvest(
    lm: LanguageModel,
    tokens: Int[np.ndarray, "context position"],
    folder: Path | str,
    *,
    shard_rows: int = 2**18,
    batch: int = 32,
    max_rows: int | None = None,
    check: Check = "full",
    progress: Callable[[int, int], object] | None = None,
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
        progress: called with (rows done, rows in all), after every batch.

    Returns:
        The opened store: bf16 activations with the context and position of every row.

    Raises:
        ArtifactError: the store there was made by another model, layer, corpus or size; fewer rows than
            `max_rows`; tokens that the model does not know; NaN or infinite activations; no room on the disk;
            another run at work in `folder`.
    """
    folder = Path(folder)
    if tokens.ndim != 2 or tokens.size == 0 or tokens.shape[1] > LONGEST_CONTEXT:
        raise ArtifactError(
            f"tokens: shape {list(tokens.shape)} is not [context, position], 1 to {LONGEST_CONTEXT} positions"
        )
    if int(tokens.max()) >= lm.vocab_size or int(tokens.min()) < 0:
        raise ArtifactError(
            f"tokens: ids from {int(tokens.min())} to {int(tokens.max())}, but {lm.name} knows 0 to "
            f"{lm.vocab_size - 1}; tokenise the corpus with this model's tokenizer"
        )
    contexts, positions = row_index(tokens, lm.special_ids, max_rows)
    with FolderLock(folder):
        manifest = _manifest(lm, tokens, folder, len(contexts), shard_rows)
        _write_index(folder, manifest, contexts, positions)
        bad = [i for i, shard in enumerate(manifest["shards"]) if damage(folder, shard, check) is not None]
        _check_disk(folder, sum(manifest["shards"][i]["rows"] for i in bad) * lm.d_in * 2)
        done = len(contexts) - sum(manifest["shards"][i]["rows"] for i in bad)

        def advance(rows_of_batch: int) -> None:
            nonlocal done
            done += rows_of_batch
            if progress is not None:
                progress(done, len(contexts))

        for i in bad:
            shard, first = manifest["shards"][i], i * shard_rows
            rows = slice(first, first + shard["rows"])
            values = _shard_values(lm, tokens, contexts[rows], positions[rows], batch, advance)
            with atomic_write(folder / shard["file"], "wb") as file:
                np.save(file, values)
            shard["bytes"] = (folder / shard["file"]).stat().st_size
            shard["sha256"] = file_sha256(folder / shard["file"])
            write_json(folder / MANIFEST, manifest)
    return ActivationStore.open(folder)


def row_index(
    tokens: Int[np.ndarray, "context position"], special_ids: frozenset[int], max_rows: int | None = None
) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Context and position of every row: all positions whose token is not special, in token order, `max_rows`
    at most.

    Raises:
        ArtifactError: there are no rows, or fewer than `max_rows`.
    """
    special = np.array(sorted(special_ids))
    contexts, positions, found = [], [], 0
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        context, position = np.nonzero(~np.isin(tokens[start : start + CONTEXTS_PER_CHUNK], special))
        contexts.append((context + start).astype(np.int32))
        positions.append(position.astype(np.uint16))
        found += len(context)
        if max_rows is not None and found >= max_rows:
            break
    if found == 0 or (max_rows is not None and found < max_rows):
        raise ArtifactError(
            f"data.train_tokens: {max_rows or 1} rows were asked for, the corpus has {found} tokens "
            "that are not special; lower it or add text"
        )
    return np.concatenate(contexts)[:max_rows], np.concatenate(positions)[:max_rows]


def tokens_sha256(tokens: Int[np.ndarray, "context position"]) -> str:
    """Hexadecimal sha256 of the shape and the int32 values: the `corpus_sha256` of a store."""
    digest = hashlib.sha256(repr(tokens.shape).encode())
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        digest.update(np.ascontiguousarray(tokens[start : start + CONTEXTS_PER_CHUNK], dtype="<i4").tobytes())
    return digest.hexdigest()


def _manifest(lm: LanguageModel, tokens: NDArray[np.int32], folder: Path, rows: int, shard_rows: int) -> dict[str, Any]:
    """The manifest in `folder` if it is of this very store, or a new one without finished shards."""
    if shard_rows < 1:
        raise ArtifactError(f"data.shard_rows: {shard_rows} is not a number of rows; take one from 1 on")
    counts = [min(shard_rows, rows - start) for start in range(0, rows, shard_rows)]
    wanted: dict[str, Any] = {
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
            {"file": f"activations-{i:05d}.npy", "rows": count, "bytes": None, "sha256": None}
            for i, count in enumerate(counts)
        ],
    }
    if not (folder / MANIFEST).exists():
        write_json(folder / MANIFEST, wanted)
        return wanted
    there: dict[str, Any] = read_json(folder / MANIFEST)
    check_source(
        folder,
        there,
        {key: value for key, value in wanted.items() if key not in ("model", "index", "shards")},
    )
    return there


def _write_index(
    folder: Path, manifest: dict[str, Any], contexts: NDArray[np.int32], positions: NDArray[np.uint16]
) -> None:
    """Context and position of every row, written where they are missing or not what they should be."""
    index: dict[str, NDArray[Any]] = dict(zip(INDEX_FILES, (contexts, positions), strict=True))
    for name, values in index.items():
        entry = manifest["index"].get(name, {"file": name, "bytes": None, "sha256": None})
        if damage(folder, entry, "full") is None:
            continue
        with atomic_write(folder / name, "wb") as file:
            np.save(file, values)
        size = (folder / name).stat().st_size
        manifest["index"][name] = {"file": name, "bytes": size, "sha256": file_sha256(folder / name)}
        write_json(folder / MANIFEST, manifest)


def _shard_values(
    lm: LanguageModel,
    tokens: NDArray[np.int32],
    contexts: NDArray[np.int32],
    positions: NDArray[np.uint16],
    batch: int,
    advance: Callable[[int], None],
) -> UInt16[np.ndarray, "row d_in"]:
    """The rows of one shard: bf16 values, as the 16-bit patterns that NumPy can hold."""
    values = np.empty((len(contexts), lm.d_in), dtype=np.uint16)
    for start in range(int(contexts[0]), int(contexts[-1]) + 1, batch):
        low, high = np.searchsorted(contexts, (start, start + batch))
        if low == high:
            continue
        stop = int(contexts[high - 1]) + 1
        residual = lm.residual_stream(torch.from_numpy(np.array(tokens[start:stop], dtype=np.int64)))
        context = torch.from_numpy(contexts[low:high].astype(np.int64) - start).to(residual.device)
        position = torch.from_numpy(positions[low:high].astype(np.int64)).to(residual.device)
        rows = residual[context, position].to(torch.bfloat16)
        _check_finite(lm, rows, contexts[low:high], positions[low:high])
        values[low:high] = rows.view(torch.int16).cpu().numpy().view(np.uint16)
        advance(int(high - low))
    return values


def _check_finite(lm: LanguageModel, rows: Tensor, contexts: NDArray[np.int32], positions: NDArray[np.uint16]) -> None:
    finite = torch.isfinite(rows)
    if not finite.all():
        row = int((~finite.all(dim=1)).nonzero()[0])
        dtype = str(lm.dtype).removeprefix("torch.")
        raise ArtifactError(
            f"activations: {lm.name} gives NaN or infinity after layer {lm.layer}, "
            f"context {contexts[row]}, position {positions[row]}; it computes in {dtype}: "
            "try another model.dtype"
        )


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"disk: the activations still to be made need {readable_bytes(needed)}, "
            f"{folder} has {readable_bytes(free)} free; lower data.train_tokens "
            "or set SAE_LIB_OUTPUT to a folder on a larger disk"
        )
