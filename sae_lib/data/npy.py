"""`.npy` files written piece by piece, so that no array is ever whole in memory: the header, which says how large the
file will be, comes first. The bytes are those of `np.save`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sae_lib.util.files import atomic_write


class Written(NamedTuple):
    """Size and hexadecimal sha256 of a file."""

    bytes: int
    sha256: str


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """What `np.save` writes before the values of an array in C order."""
    buffer = io.BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(buffer, {"descr": description, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def write_npy(path: Path | None, dtype: DTypeLike, shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]) -> Written:
    """Write an array of this dtype and shape, given as pieces along its first axis; whole or not at all.

    With no path nothing is written, and the answer is what the file would have been.

    Raises:
        ArtifactError: the disk is full.
    """
    digest, size = hashlib.sha256(), 0
    with atomic_write(path, "wb") if path is not None else nullcontext() as file:
        header = np.frombuffer(npy_header(dtype, shape), dtype=np.uint8)
        for piece in chain([header], pieces):
            values = np.ascontiguousarray(piece)
            digest.update(values.data)
            size += values.nbytes
            if file is not None:
                file.write(values.data)
    return Written(size, digest.hexdigest())
