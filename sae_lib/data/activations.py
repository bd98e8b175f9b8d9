"""Activations, on disk or in memory, and the one stream of batches that every SAE is trained on.

The store, which `harvest.py` makes, is a folder of .npy shards `[row, d_in]` (bf16 bit patterns) in token order, with
`contexts.npy` and `positions.npy` that say where each row comes from. A batch is a set of windows of consecutive rows,
because the temporal mechanisms compare a token with the one before it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_lib.data.store_manifest import INDEX_FILES, Check, content_key, damaged_files, finished_manifest
from sae_lib.util.errors import ArtifactError
from sae_lib.util.memory import free_memory

ROWS_PER_CHUNK = 2**16
RESIDENT_SHARE = 0.7  # of the free memory; the rest is for the SAEs that are trained on it


class Batch(NamedTuple):
    """Windows of consecutive rows, in token order along `step`."""

    activations: Float[Tensor, "window step d_in"]
    has_predecessor: Bool[Tensor, "window step"]
    """Whether the step before, in the same window, is the position before in the same context."""
    number: int
    """Place in the stream, counted from 0."""


class ActivationStore:
    """The rows that one model gave for one corpus; opened with `open`, never changed.

    `key`: `content_key`; `contexts`, `positions`: where each row comes from, int32 and uint16; `resident`: all rows in
    the memory of one device, bf16, None while they are read from the disk.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.key = content_key(manifest)
        self.n_rows: int = manifest["rows"]
        self.d_in: int = manifest["d_in"]
        self.contexts, self.positions = (np.load(folder / name, mmap_mode="r") for name in INDEX_FILES)
        self.resident: Tensor | None = None
        self._shards = [np.load(folder / shard["file"], mmap_mode="r") for shard in manifest["shards"]]

    @classmethod
    def open(cls, folder: Path | str, *, check: Check = "size", **source: Any) -> "ActivationStore":
        """Open a finished store.

        `check`: compare the size of every file, or ("full") its sha256; `source`: fields of the manifest (identity,
        layer, corpus_sha256) that it must have. Raises ArtifactError: no store, an unfinished one, a truncated or
        altered file, or another model, corpus or layer.
        """
        folder = Path(folder)
        manifest = finished_manifest(folder, source)
        for file, fault in damaged_files(folder, manifest, check):
            # The runner of the notebooks sees that a file is gone, not that it was altered.
            fix = "remove it and harvest" if fault == "altered" else "harvest"
            fix = f"{fix} again (notebook 01_data), that file alone is made again"
            raise ArtifactError(f"store: {file} in {folder} is {fault}; {fix}")
        return cls(folder, manifest)

    def preload(self, device: str = "cpu") -> bool:
        """Take all rows into the memory of `device` as bf16, if they fit; says whether they did."""
        if self.resident is not None and self.resident.device.type == torch.device(device).type:
            return True
        if self.n_rows * self.d_in * 2 > RESIDENT_SHARE * free_memory(device):
            return False
        resident = torch.empty(self.n_rows, self.d_in, dtype=torch.bfloat16, device=device)
        for i, shard in enumerate(self._shards):
            first = i * self.manifest["shard_rows"]
            resident[first : first + len(shard)].copy_(_bfloat16(np.array(shard)))
        self.resident = resident
        return True

    def rows(
        self, indices: Int[np.ndarray, "*shape"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*shape d_in"]:
        """The rows with these numbers, on the device of the preloaded rows, else on the CPU. Raises IndexError."""
        flat = np.asarray(indices, dtype=np.int64).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.n_rows):
            raise IndexError(f"rows {flat.min()} to {flat.max()} asked for, the store has 0 to {self.n_rows - 1}")
        if self.resident is not None:
            values = self.resident.index_select(0, torch.from_numpy(flat).to(self.resident.device))
        else:
            # From the memory-mapped shards, each read in ascending order.
            order, size = np.argsort(flat, kind="stable"), self.manifest["shard_rows"]
            bounds = np.searchsorted(flat[order], np.arange(1, len(self._shards)) * size)
            patterns = np.empty((len(flat), self.d_in), dtype=np.uint16)
            for i, part in enumerate(np.split(order, bounds)):
                if len(part):
                    patterns[part] = self._shards[i][flat[part] - i * size]
            values = _bfloat16(patterns)
        return values.view(*np.shape(indices), self.d_in).to(dtype)

    def mean_squared_norm(self, n: int) -> float:
        """E||x||^2 over `n` rows spread evenly over the store (all rows, if there are fewer)."""
        picked = np.linspace(0, self.n_rows - 1, min(n, self.n_rows)).round().astype(np.int64)
        total = 0.0
        for start in range(0, len(picked), ROWS_PER_CHUNK):
            total += float(self.rows(picked[start : start + ROWS_PER_CHUNK]).square().sum(dtype=torch.float64))
        return total / len(picked)


class WindowStream:
    """An endless stream of batches in which any batch can be asked for by its number.

    The store is cut into windows of `window` consecutive rows (the last `n_rows % window` rows belong to none). Each
    epoch is a permutation of all windows, drawn from (seed, epoch) alone; the epochs laid end to end are cut into
    batches, so every window is drawn once before any is drawn again, whatever trains on them.

    Raises ArtifactError: `batch_rows`, a multiple of `window`, are more than the store has.
    """

    def __init__(
        self, store: ActivationStore, window: int, batch_rows: int, seed: int, device: str | torch.device = "cpu"
    ) -> None:
        self.store, self.window, self.seed, self.device = store, window, seed, torch.device(device)
        self.n_windows = store.n_rows // window
        self.windows_per_batch = batch_rows // window
        if self.windows_per_batch > self.n_windows:
            fault = f"{batch_rows} rows in windows of {window} are more than the {store.n_rows} rows of the store"
            raise ArtifactError(f"data.batch_tokens: {fault}; lower it")
        contexts, positions = (index[: self.n_windows * window] for index in (store.contexts, store.positions))
        linked = np.zeros(len(contexts), dtype=bool)
        linked[1:] = (contexts[1:] == contexts[:-1]) & (positions[1:] == positions[:-1] + 1)
        linked[::window] = False
        self._has_predecessor = torch.from_numpy(linked).view(self.n_windows, window).to(self.device)
        self._orders: dict[int, NDArray[np.int32]] = {}

    def batch(self, index: int) -> Batch:
        """Batch number `index`, counted from 0."""
        windows = self.windows(index)
        picked = torch.from_numpy(windows)
        resident = self.store.resident
        if resident is not None:
            table = resident[: self.n_windows * self.window].view(self.n_windows, self.window * self.store.d_in)
            values = table.index_select(0, _sent(picked, resident.device))
        else:
            values = self.store.rows(windows[:, None] * self.window + np.arange(self.window), torch.bfloat16)
        values = _sent(values.view(-1, self.window, self.store.d_in), self.device).float()
        return Batch(values, self._has_predecessor.index_select(0, _sent(picked, self.device)), index)

    def windows(self, index: int) -> Int[np.ndarray, "window"]:
        """Numbers of the windows in batch `index`: window j is rows j * window to (j + 1) * window - 1."""
        if index < 0:
            raise IndexError(f"batch {index}: batches are counted from 0")
        epoch, offset = divmod(index * self.windows_per_batch, self.n_windows)
        drawn = self._order(epoch)[offset : offset + self.windows_per_batch]
        if rest := self.windows_per_batch - len(drawn):
            drawn = np.concatenate([drawn, self._order(epoch + 1)[:rest]])
        return drawn.astype(np.int64)

    def _order(self, epoch: int) -> NDArray[np.int32]:
        """The permutation of an epoch; the two in use are kept."""
        if epoch not in self._orders:
            order = np.random.default_rng([self.seed, epoch]).permutation(np.arange(self.n_windows, dtype=np.int32))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; to a GPU without waiting for it."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _bfloat16(patterns: NDArray[np.uint16]) -> Tensor:
    return torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16)
