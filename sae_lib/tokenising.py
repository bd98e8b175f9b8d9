"""Text to tokens, ahead of whoever writes them, and shared out over processes.

The rows of a corpus are numbered. Alone, a process tokenises all of them in order. Process r of w takes the rows r,
r + w, r + 2w ...; after every round the processes put their pieces together again in the order of the rows. So what
comes out does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sae_lib.errors import ArtifactError
from sae_lib.files import atomic_write

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
