"""Text to tokens to contexts: documents of any length become contexts of one length, written as they fill up."""

import hashlib
import io
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from sae_lib.data.config import DataConfig
from sae_lib.data.spelling import Lessons
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.files import atomic_write, file_sha256, json_key

Split = Literal["train", "held_out", "calibration"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "calibration")

DOCUMENTS_PER_BATCH = 256  # tokenised together
BATCHES_AHEAD = 4

Document = tuple[Split, NDArray[np.int32]]  # its tokens with the one that closes it
Item = TypeVar("Item")
Result = TypeVar("Result")


def boundary_tokens(tokenizer: Any) -> tuple[int, int]:
    """What opens a context (BOS, else EOS) and closes a document (EOS, else BOS). Raises ArtifactError: neither."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        fault = f"the tokenizer {tokenizer.name_or_path} has neither BOS nor EOS to open a context with"
        raise ArtifactError(f"model.name: {fault}; set bos_token in its tokenizer_config.json")
    return int(eos if bos is None else bos), int(bos if eos is None else eos)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """BOS, EOS, padding and every other special token: positions that no SAE sees."""
    declared = {*boundary_tokens(tokenizer), tokenizer.pad_token_id, *tokenizer.all_special_ids}
    return frozenset(int(token) for token in declared if token is not None)


def tokenizer_key(tokenizer: Any) -> str:
    """sha256 over all that a tokenizer's output depends on."""
    if getattr(tokenizer, "is_fast", False):
        return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:  # one written in Python has no other complete description
        tokenizer.save_pretrained(folder)
        return json_key({file.name: file_sha256(file) for file in Path(folder).iterdir()})


class ContextWriter:
    """Packs a stream of tokens into contexts `[context, position]`: an opening token, then `length - 1` of the stream.

    `file`: where they go, as .npy of int32; `contexts`: how many are wanted, what comes after them is dropped; `rows`:
    so many tokens that are not special are wanted too, in as many more contexts as that takes, and where the stream
    ends with enough rows, fewer contexts will do; `lessons`: what replaces some contexts.
    """

    def __init__(
        self, file: Any, tokenizer: Any, length: int, contexts: int, rows: int = 0, lessons: Lessons | None = None
    ) -> None:
        self._file, self._length, self._contexts, self._rows, self._lessons = file, length, contexts, rows, lessons
        self._bos, _ = boundary_tokens(tokenizer)
        self._special = np.array(sorted(special_ids(tokenizer)))
        self.rest = np.empty(0, dtype=np.int32)  # tokens that fill no context yet
        self._digest = hashlib.sha256()
        self.contexts = self.rows = 0
        self.finish()

    @property
    def full(self) -> bool:
        return self.contexts >= self._contexts and self.rows >= self._rows

    def add(self, documents: Sequence[NDArray[np.int32]]) -> None:
        """Go on with the tokens of these."""
        if self.full:
            return
        body = self._length - 1
        stream = np.concatenate([self.rest, *documents])
        n = len(stream) // body
        self.rest = stream[n * body :].copy()
        block = np.empty((n, self._length), dtype=np.int32)
        block[:, 0], block[:, 1:] = self._bos, stream[: n * body].reshape(n, body)
        if self._lessons is not None:
            self._lessons.replace(block, self.contexts)
        rows = self.rows + np.cumsum((~np.isin(block, self._special)).sum(axis=1))
        needed = max(self._contexts - self.contexts, 1 + int(np.searchsorted(rows, self._rows)))
        block = block[:needed]
        self.contexts += len(block)
        self.rows = int(rows[len(block) - 1]) if len(block) else self.rows
        self._digest.update(block.data)
        self._file.write(block.data)

    def finish(self) -> dict[str, Any]:
        """How many contexts there are, and the sha256 of their values. Writes their header, whose size is fixed."""
        self._file.seek(0)
        description = {"descr": "<i4", "fortran_order": False, "shape": (self.contexts, self._length)}
        np.lib.format.write_array_header_1_0(self._file, description)
        return {"contexts": self.contexts, "sha256": self._digest.hexdigest()}


def contexts_needed(data: DataConfig) -> dict[Split, int]:
    """How many contexts each split has; the training split has more where these do not hold enough rows."""
    # EOS and BOS give no activation rows; 3 % more contexts than rows covers documents of 40 tokens and longer.
    train = -(-int(data.train_tokens * 1.03) // (data.context_length - 1)) + 1
    return {"train": train, "held_out": data.held_out_contexts, "calibration": data.calibration_contexts}


def write_contexts(
    folder: Path, documents: Iterable[list[Document]], tokenizer: Any, data: DataConfig, lessons: Lessons | None = None
) -> dict[str, Any]:
    """Write `<split>.npy` for every split, all of them whole or none; `lessons` replace some training contexts.

    Returns for each split the number of its contexts and the sha256 of their values. Raises ArtifactError: too little
    text; the disk is full.
    """
    with ExitStack() as stack:
        writers: dict[Split, ContextWriter] = {}
        for split, count in contexts_needed(data).items():
            file = stack.enter_context(atomic_write(folder / f"{split}.npy", "wb"))
            rows, taught = (data.train_tokens, lessons) if split == "train" else (0, None)
            writers[split] = ContextWriter(file, tokenizer, data.context_length, count, rows, taught)
        for batch in documents:
            for split, writer in writers.items():
                writer.add([ids for own, ids in batch if own == split])
            if all(writer.full for writer in writers.values()):
                break
        for split, writer in writers.items():
            if writer.full or (split == "train" and writer.rows >= data.train_tokens):
                continue
            if split == "train":
                field, given, share = "data.train_tokens", writer.rows, ""
                what = f"the training documents give {given:,} tokens, needed: {data.train_tokens:,}"
            else:
                field, given, share = f"data.{split}_contexts", writer.contexts, f" or raise corpus.{split}_fraction"
                asked = f"{data.context_length}, needed: {contexts_needed(data)[split]:,}"
                what = f"their documents fill {given:,} contexts of {asked}"
            lower = f"lower it to {given} or less, or " if given else ""
            raise ArtifactError(f"{field}: {what}; {lower}give more text{share}")
        return {split: writer.finish() for split, writer in writers.items()}


def tokenised(rows: Iterable[tuple[Split, str]], tokenizer: Any) -> Iterator[list[Document]]:
    """The rows in batches, tokenised by a thread, with the tokenizer's own below it, ahead of whoever uses them."""
    _, closing = boundary_tokens(tokenizer)
    rows = iter(rows)

    def documents(batch: list[tuple[Split, str]]) -> list[Document]:
        splits, texts = zip(*batch, strict=True)
        return [*zip(splits, encode(texts, tokenizer, closing), strict=True)]

    return ahead(documents, iter(lambda: list(islice(rows, DOCUMENTS_PER_BATCH)), []), BATCHES_AHEAD)


def encode(texts: Sequence[str], tokenizer: Any, closing: int) -> list[NDArray[np.int32]]:
    """Token ids of each text, with `closing` behind them."""
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array([*ids, closing], dtype=np.int32) for ids in encoded]


def ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """`work(item)` for each item, in order, done by a thread that has at most `depth` items before it."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(waiting) == depth:
                    yield waiting.popleft().result()
                waiting.append(thread.submit(work, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def pack(texts: Iterable[str], tokenizer: Any, context_length: int, contexts: int = sys.maxsize) -> NDArray[np.int32]:
    """As `ContextWriter`, in memory: contexts `[context, position]`, at most so many, from no more text than they take.
    Raises ArtifactError when there is no text for even one context."""
    _, closing = boundary_tokens(tokenizer)
    file, texts = io.BytesIO(), iter(texts)
    writer = ContextWriter(file, tokenizer, context_length, contexts)
    while not writer.full and (batch := list(islice(texts, DOCUMENTS_PER_BATCH))):
        writer.add(encode(batch, tokenizer, closing))
    if not writer.contexts:
        few = f"{len(writer.rest):,} tokens fill no context of {context_length}"
        raise ArtifactError(f"text: {few}; give more text")
    writer.finish()
    file.seek(0)
    return cast(NDArray[np.int32], np.load(file))


def with_masked(contexts: NDArray[np.int32], share: float, seed: int = 0) -> Int[np.ndarray, "context position"]:
    """`contexts` with so large a share of their tokens replaced by the one that opens a context, drawn evenly."""
    drawn = np.random.default_rng(seed).random(contexts.shape) < share
    return np.where(drawn, contexts[:, :1], contexts)


def load_tokens(folder: Path, split: Split) -> NDArray[np.int32]:
    """The contexts of one split, mapped: int32 `[context, position]`. Raises ArtifactError: none, or cut short."""
    file = folder / f"{split}.npy"
    if not file.is_file():
        raise ArtifactError(f"tokens: there is no {split}.npy in {folder}; make it first (notebook 01_data)")
    try:
        return cast(NDArray[np.int32], np.load(file, mmap_mode="r"))
    except (ValueError, EOFError) as error:
        fault = f"{file} is damaged ({first_line(error)})"
        raise ArtifactError(f"tokens: {fault}; make it again (notebook 01_data)") from None
