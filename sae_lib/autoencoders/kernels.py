"""Loops over latents on a CPU, compiled by Numba: NumPy and PyTorch take several passes over memory for each.

Entries of a matrix are held as in SciPy's CSR arrays: those of row i are `latent[starts[i] : starts[i + 1]]`,
ascending, with `values` beside them. Rows are cut into pieces, one for each thread; how many there are changes no
result.
"""

import os
import threading
import warnings
from typing import no_type_check

import numba
import numpy as np
import torch
from numba import njit, prange

Csr = tuple[np.ndarray, np.ndarray, np.ndarray]  # latent, values, starts

TINY = np.finfo(np.float32).tiny
GROUP_SIZES = (16, 8, 4, 2)
GROUPS_FOR_EACH = 4  # groups for each of the k largest, at least


def use_threads() -> int:
    """As many threads as PyTorch uses, whose number is returned."""
    threads = torch.get_num_threads()
    if threads > 1:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        if torch.get_num_threads() != threads:  # the first call sets OpenMP's number, which is PyTorch's too
            torch.set_num_threads(threads)
    return threads


NOTE = (
    "compiled loops cannot be kept (neither this checkout nor the home folder can be written): every process compiles "
    "them again, which takes up to a minute; NUMBA_CACHE_DIR names a folder for them"
)


@no_type_check
def compiled(**options):
    """Numba's njit, with what it compiles kept on the disk where there is a place for it."""

    def decorated(loop):
        try:
            return njit(cache=True, **options)(loop)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
        if os.environ.setdefault("SAE_LIB_TOLD", "") != "uncached":  # once, and in no process that this one starts
            os.environ["SAE_LIB_TOLD"] = "uncached"
            warnings.warn(NOTE, stacklevel=3)
        return njit(**options)(loop)

    return decorated


_ONE_AT_A_TIME = threading.Lock()  # not every threading layer of Numba takes calls from two threads at once
_SPACES = threading.local()  # two threads that train at once must not work in the same memory


def space(purpose: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory to work in, whatever is in it, until the next call for this purpose: new memory costs more."""
    found: torch.Tensor | None = getattr(_SPACES, purpose, None)
    if found is None or found.shape != shape or found.dtype != dtype:
        found = torch.empty(shape, dtype=dtype)
        setattr(_SPACES, purpose, found)
    return found


def above(pre: np.ndarray, bound: np.ndarray, most: int, k: int = 0, groups: int = 1) -> Csr | None:
    """The entries of `pre` above `bound`, which has one value for each column; None where they are more than `most`.
    Where k > 0 each row's strongest instead."""
    pieces = use_threads()
    room = (pieces, most + pre.shape[1] + 8)  # for `most`, and for one row more
    latent, values = space("latent", room, torch.int32).numpy(), space("values", room, torch.float32).numpy()
    counts = np.zeros(len(pre), np.int64)
    if pieces == 1:
        _piece(pre, bound, most, k, groups, latent[0], values[0], counts)
    else:
        with _ONE_AT_A_TIME:
            _pieces(pre, bound, most, k, groups, latent, values, counts)
    if counts.sum() > most:
        return None
    starts = np.append(0, counts.cumsum()).astype(np.int32)
    noted = np.diff(starts[np.arange(pieces + 1) * len(pre) // pieces])  # by each piece
    found, at = (np.concatenate([held[p, :n] for p, n in enumerate(noted)]) for held in (latent, values))
    return found, at, starts


@no_type_check
@compiled()
def _noted(row, flags, busy, latent, values, end):
    """Note where flags are set from place `end` on, and return the place after them. Some places more are written: a
    branch that is hard to foresee costs more."""
    eights = flags[: len(row) // 8 * 8].view(np.uint64)
    some = 0
    for i in range(len(eights)):
        busy[some] = i
        some += eights[i] != 0
    for i in busy[:some]:
        for j in range(8 * i, 8 * i + 8):
            latent[end], values[end] = j, row[j]
            end += flags[j]
    for j in range(8 * len(eights), len(row)):
        latent[end], values[end] = j, row[j]
        end += flags[j]
    return end


@no_type_check
@compiled()
def _strongest_of_row(row, k, maxima, flags, busy, latent, values, end):
    """Note the positive ones of the row's k largest; of equal values the first.

    The row is cut into more than k groups. A bound that the maxima of k groups reach is at most the k-th largest of
    all; and few others are above the highest such bound, because two of the largest rarely share a group. Halving the
    distance to it nine times comes near enough.
    """
    n, groups = len(row), len(maxima)
    maxima[:] = row[:groups]
    for first in range(groups, n, groups):
        for j in range(groups):
            maxima[j] = row[first + j] if row[first + j] > maxima[j] else maxima[j]
    bound, high = TINY, maxima.max()
    for _ in range(9):
        middle = (bound + high) / np.float32(2)
        reached = 0
        for j in range(groups):
            reached += maxima[j] >= middle
        bound, high = (middle, high) if reached >= k else (bound, middle)
    for j in range(n):
        flags[j] = row[j] >= bound
    start, end = end, _noted(row, flags, busy, latent, values, end)
    if end - start <= k:
        return end
    smallest = np.sort(values[start:end])[-k]
    of_equal = k - (values[start:end] > smallest).sum()
    kept = start
    for i in range(start, end):
        if values[i] > smallest or (values[i] == smallest and of_equal > 0):
            of_equal -= values[i] == smallest
            latent[kept], values[kept] = latent[i], values[i]
            kept += 1
    return kept


@no_type_check
@compiled()
def _piece(pre, bound, most, k, groups, latent, values, counts):
    n, end = pre.shape[1], 0
    flags, busy = np.empty(n, np.uint8), np.empty(n // 8 + 1, np.int32)
    maxima = np.empty(groups, np.float32)
    for i in range(len(pre)):
        row, start = pre[i], end
        if k > 0:
            end = _strongest_of_row(row, k, maxima, flags, busy, latent, values, start)
        else:
            for j in range(n):
                flags[j] = row[j] > bound[j]
            end = _noted(row, flags, busy, latent, values, start)
        counts[i] = end - start
        if end > most:
            break


@no_type_check
@compiled(parallel=True)
def _pieces(pre, bound, most, k, groups, latent, values, counts):
    pieces, rows = len(latent), len(pre)
    for p in prange(pieces):
        mine = slice(p * rows // pieces, (p + 1) * rows // pieces)
        _piece(pre[mine], bound, most, k, groups, latent[p], values[p], counts[mine])


def strongest_of_rows(pre: np.ndarray, k: int) -> Csr:
    """The positive ones of each row's k largest; of equal values the first."""
    rows, n = pre.shape
    fitting = [size for size in GROUP_SIZES if n % size == 0 and n >= GROUPS_FOR_EACH * k * size]
    found = above(pre, pre[0], rows * k, k, n // max(fitting, default=1))
    assert found is not None, "no row has more than k"
    return found


@no_type_check
@compiled()
def change(values, order, row, first, weight, both):
    """sum_i w_i ||f_i - f_{i-1}||^2 over rows i, and half its gradient at the entries: that of f_i, and that of f_{i-1}
    if `both`. `weight` has one entry more than there are rows, 0, as the first is.
    """
    n = len(values)
    f, follows = np.zeros(n + 1, np.float32), np.zeros(n + 1, np.float32)  # in the order by latent; at the end nothing
    for i in range(n):
        f[i] = values[order[i]]
    for i in range(1, n):
        follows[i] = row[i] == row[i - 1] + 1
    for i in first:
        follows[i] = 0.0
    rises, falls, gradient = 0.0, 0.0, np.empty(n, np.float32)
    for i in range(n):
        before, after = follows[i] * f[i - 1], follows[i + 1] * f[i + 1]
        rise, fall = weight[row[i]] * (f[i] - before), weight[row[i] + 1] * (f[i] - after)
        rises += rise * (f[i] - before)
        falls += (np.float32(1) - follows[i + 1]) * fall * f[i]  # the next entry's rise, where there is one
        gradient[order[i]] = rise + fall if both else rise
    return rises + falls, gradient
