"""Text to tokens to contexts: tokenised ahead of whoever writes them, shared out over processes, packed.

The rows of a corpus are numbered. Alone, a process tokenises all of them in order. Process r of w takes the rows r,
r + w, r + 2w ...; after every round the processes put their pieces together again in the order of the rows. So what
comes out does not depend on how many there are.

Documents of any length become contexts of one length, written to disk as they fill up.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sae_lib.data.npy import npy_header
from sae_lib.data.spelling import Lessons
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.files import atomic_write

Split = Literal["train", "held_out", "calibration"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "calibration")
DOCUMENTS_PER_BATCH = 256  # packed together in memory


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


ROWS_PER_BATCH = 256  # tokenised together
BATCHES_AHEAD = 4
BATCHES_PER_ROUND = 16  # of all processes together, or one of each

Item = TypeVar("Item")
Result = TypeVar("Result")


class Piece(NamedTuple):
    """Tokens of consecutive rows of a corpus, int8 `[row]`, int32 `[row]` and int32 `[token]`."""

    splits: NDArray[np.int8]
    """The number of the split that each row belongs to; -1 for a row without text."""
    lengths: NDArray[np.int32]
    """Tokens of each row, the one that closes a document included; 0 without text."""
    ids: NDArray[np.int32]

    def of(self, split: int) -> NDArray[np.int32]:
        """The tokens of one split."""
        return self.ids[np.repeat(self.splits == split, self.lengths)]


def boundary_tokens(tokenizer: Any) -> tuple[int, int]:
    """The token that opens a context (BOS, or EOS where there is none) and the one that closes a document (EOS, or
    BOS).

    Raises ArtifactError when the tokenizer has neither.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ArtifactError("model.name: the tokenizer has neither a BOS nor an EOS token to begin a context with")
    return int(bos), int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else bos)


def encode(texts: Sequence[str], tokenizer: Any, closing: int) -> list[NDArray[np.int32]]:
    """Token ids of each text, with `closing` behind them."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array([*ids, closing], dtype=np.int32) for ids in encoded]


def tokenised(rows: Iterable[tuple[int, str]], tokenizer: Any) -> Iterator[Piece]:
    """The rows, (number of the split, text), in pieces of `ROWS_PER_BATCH`; an empty text is a row without tokens.

    A thread tokenises up to `BATCHES_AHEAD` batches ahead, with the tokenizer's own threads below it, while the
    caller reads rows and uses the pieces. No more than that is ever in memory.
    """
    _, closing = boundary_tokens(tokenizer)
    rows = iter(rows)

    def piece(batch: list[tuple[int, str]]) -> Piece:
        ids = iter(encode([text for _, text in batch if text], tokenizer, closing))
        each = [next(ids) if text else np.empty(0, dtype=np.int32) for _, text in batch]
        splits = np.array([split if text else -1 for split, text in batch], dtype=np.int8)
        return Piece(splits, np.array([len(ids) for ids in each], dtype=np.int32), np.concatenate(each))

    return ahead(piece, iter(lambda: list(islice(rows, ROWS_PER_BATCH)), []), BATCHES_AHEAD)


def ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """`work(item)` for each item, in order, done by a thread that is at most `depth` items ahead of the reader."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(thread.submit(work, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def put_together(
    pieces: Iterator[Piece], folder: Path, rank: int, world: int, barrier: Callable[[], object]
) -> Iterator[Piece]:
    """The pieces of all processes in the order of the corpus, the same in each of them.

    Args:
        pieces: of rows `rank`, `rank + world`, `rank + 2 world` ... of the corpus.
        folder: one that all processes can read; nothing is left in it.
        barrier: waits for the other processes.
    """
    batches = -(-BATCHES_PER_ROUND // world)
    number = 0
    while True:
        own = joined(list(islice(pieces, batches)))
        mine = folder / f"{number % 2}-{rank}.npz"
        with atomic_write(mine, "wb") as file:
            np.savez(file, **own._asdict())
        barrier()  # every piece of this round is there, and those of the round before have been read
        merged = interleaved([_read(folder / f"{number % 2}-{other}.npz") for other in range(world)])
        yield merged
        if len(merged.splits) < world * batches * ROWS_PER_BATCH:
            return
        number += 1


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces that follow each other, as one."""
    empty = Piece(np.empty(0, np.int8), np.empty(0, np.int32), np.empty(0, np.int32))
    return Piece(*(np.concatenate(column) for column in zip(empty, *pieces, strict=True)))


def interleaved(parts: Sequence[Piece]) -> Piece:
    """Part r of w has the rows r, r + w, r + 2w ... of what is returned."""
    world, rows = len(parts), sum(len(part.splits) for part in parts)
    splits, lengths = np.empty(rows, dtype=np.int8), np.empty(rows, dtype=np.int32)
    for rank, part in enumerate(parts):
        splits[rank::world], lengths[rank::world] = part.splits, part.lengths
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    ids = np.empty(int(lengths.sum()), dtype=np.int32)
    for rank, part in enumerate(parts):
        own = np.cumsum(part.lengths, dtype=np.int64) - part.lengths
        ids[np.arange(len(part.ids)) + np.repeat(starts[rank::world] - own, part.lengths)] = part.ids
    return Piece(splits, lengths, ids)


def _read(file: Path) -> Piece:
    with np.load(file) as arrays:
        return Piece(**arrays)


def pack(texts: Iterable[str], tokenizer: Any, context_length: int, contexts: int | None = None) -> NDArray[np.int32]:
    """Pack documents, in memory, into contexts `[context, position]`: BOS, then context_length - 1 tokens of the rest.

    Documents are joined by EOS (BOS where the tokenizer has none); the tokens left over at the end are dropped.

    Raises ArtifactError when there is no text for even one context or, if `contexts` is given, for that many.
    """
    bos, closing = boundary_tokens(tokenizer)
    body = context_length - 1
    needed = None if contexts is None else contexts * body
    pieces: list[NDArray[np.int32]] = []
    n_tokens = 0
    texts = iter(texts)
    while (needed is None or n_tokens < needed) and (batch := list(islice(texts, DOCUMENTS_PER_BATCH))):
        encoded = encode(batch, tokenizer, closing)
        pieces += encoded
        n_tokens += sum(len(ids) for ids in encoded)
    available = n_tokens // body
    if available < (contexts or 1):
        raise too_little_text(n_tokens, context_length, contexts or 1)
    stream = np.concatenate(pieces)[: (contexts or available) * body].reshape(-1, body)
    return np.concatenate([np.full((len(stream), 1), bos, dtype=np.int32), stream], axis=1)


def load_tokens(folder: Path, split: Split) -> NDArray[np.int32]:
    """The contexts of one split, memory-mapped: int32 `[context, position]`.

    Raises ArtifactError when they are not there or the file is cut short.
    """
    file = folder / f"{split}.npy"
    if not file.is_file():
        raise ArtifactError(f"tokens: there is no {split}.npy in {folder}; make it first (notebook 01_data)")
    try:
        return cast(NDArray[np.int32], np.load(file, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        raise ArtifactError(
            f"tokens: {file} is damaged ({first_line(error)}); make it again (notebook 01_data)"
        ) from None
