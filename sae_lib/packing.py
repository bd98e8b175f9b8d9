"""Documents of any length to contexts of one length, written to disk as they fill up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sae_lib.errors import ArtifactError
from sae_lib.files import atomic_write
from sae_lib.npy import npy_header
from sae_lib.spelling import Lessons
from sae_lib.tokenising import Piece

if TYPE_CHECKING:
    from sae_lib.corpus import Split


class ContextWriter:
    """Packs a stream of tokens into contexts `[context, position]`: an opening token, then `length - 1` of the stream.

    Args:
        file: where they go, as .npy of int32; None only counts.
        bos: the opening token.
        length: tokens of a context.
        contexts: how many are wanted; what comes after them is dropped.
        lessons: what replaces some of them.
    """

    def __init__(self, file: IO[bytes] | None, bos: int, length: int, contexts: int, lessons: Lessons | None) -> None:
        self._file, self._bos, self._length, self._contexts, self._lessons = file, bos, length, contexts, lessons
        self._rest = np.empty(0, dtype=np.int32)
        self._digest = hashlib.sha256()
        self._tokens = self._written = 0
        if file is not None:
            file.write(npy_header(np.int32, (contexts, length)))

    @property
    def full(self) -> bool:
        return self._written == self._contexts

    def add(self, ids: NDArray[np.int32]) -> None:
        """Go on with these tokens."""
        self._tokens += len(ids)
        body = self._length - 1
        stream = np.concatenate([self._rest, ids])
        n = min(len(stream) // body, self._contexts - self._written)
        self._rest = np.empty(0, dtype=np.int32) if self._written + n == self._contexts else stream[n * body :].copy()
        block = np.empty((n, self._length), dtype=np.int32)
        block[:, 0], block[:, 1:] = self._bos, stream[: n * body].reshape(n, body)
        if self._lessons is not None:
            self._lessons.replace(block, self._written)
        self._written += n
        self._digest.update(block.data)
        if self._file is not None:
            self._file.write(block.data)

    def finish(self) -> dict[str, Any]:
        """How many contexts there are, and the sha256 of their values.

        Raises ArtifactError when the stream ended too early.
        """
        if not self.full:
            raise too_little_text(self._tokens, self._length, self._contexts)
        return {"contexts": self._contexts, "sha256": self._digest.hexdigest()}


def write_contexts(
    folder: Path | None,
    pieces: Iterable[Piece],
    contexts: Mapping[Split, int],
    bos: int,
    length: int,
    lessons: Mapping[str, Lessons],
) -> dict[str, Any]:
    """Write `<split>.npy` for every split, from no more pieces than it takes; all of them whole, or none.

    Args:
        folder: where they go; None only counts.
        pieces: tokens of the corpus; the number of a split is its place in `contexts`.
        contexts: how many each split is to have.
        lessons: what replaces some contexts of a split.

    Returns:
        For each split the number of its contexts and the sha256 of their values.

    Raises:
        ArtifactError: too little text; the disk is full.
    """
    with ExitStack() as stack:
        writers = []
        for split, count in contexts.items():
            file = None if folder is None else stack.enter_context(atomic_write(folder / f"{split}.npy", "wb"))
            writers.append(ContextWriter(file, bos, length, count, lessons.get(split)))
        for piece in pieces:
            for number, writer in enumerate(writers):
                writer.add(piece.of(number))
            if all(writer.full for writer in writers):
                break
        return {split: writer.finish() for split, writer in zip(contexts, writers, strict=True)}


def too_little_text(tokens: int, length: int, contexts: int) -> ArtifactError:
    """So many tokens do not fill so many contexts."""
    return ArtifactError(
        f"corpus: {tokens:,} tokens fill {tokens // (length - 1):,} contexts of {length}, needed: {contexts:,}; "
        "lower data.train_tokens (or the other sizes under data), or give more text"
    )
