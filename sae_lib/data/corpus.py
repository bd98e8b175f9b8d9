"""Text to tokens: documents from one of three sources, packed into contexts.

Every source is a Hugging Face dataset with a text column, so nothing else knows where text comes from:

- `documentation`: the packaged corpus (`documentation.py`), no download;
- `hub`: a dataset of the Hugging Face hub, streamed, pinned to a revision;
- `files`: local .jsonl, .parquet or .txt files.

Rows of a dataset that arrive over a network are read in spite of the network (`Retried`).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from sae_lib.data import documentation, hub
from sae_lib.data.config import CorpusConfig, DataConfig
from sae_lib.data.spelling import Lessons
from sae_lib.data.tokens import (
    SPLITS,
    Split,
    boundary_tokens,
    load_tokens,
    put_together,
    tokenised,
    write_contexts,
)
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.files import file_sha256, json_key, read_json, write_json, write_parquet
from sae_lib.util.keys import Stage, result_key

TOKENS, DOCUMENTATION = Stage("tokens", 1), Stage("documentation", 1)
# After each failure in a row the wait doubles: 1, 2, 4 ... 64 seconds, two minutes in all. `datasets` has then already
# tried each read many times itself.
MOST_FAILURES = 7


class Retried:
    """The rows of a streamed dataset; after a network error it goes on with the row that comes next.

    >>> list(Retried(dataset, "the corpus"))      # doctest: +SKIP

    Raises:
        ArtifactError: while iterating, when `MOST_FAILURES` + 1 attempts to read one row have failed.
    """

    def __init__(self, dataset: Any, name: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self._dataset, self._name, self._sleep = dataset, name, sleep
        self._beginning = dataset.state_dict()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset, place = self._dataset, self._beginning
        read = failures = 0
        while True:
            dataset.load_state_dict(place)
            try:
                for row in dataset:
                    read, failures = read + 1, 0
                    # Not later: a failure leaves the state of a share of the rows between two of them.
                    place = dataset.state_dict()
                    yield row
                return
            except Exception as error:
                if not is_network_error(error):
                    raise
                failures += 1
                if failures > MOST_FAILURES:
                    raise ArtifactError(
                        f"corpus: {self._name} could not be read on after {read:,} rows, in {failures} attempts "
                        f"({type(error).__name__}: {first_line(error)}); run the same command again when the network "
                        "works, what is finished is kept; or download the files and set corpus.source to files"
                    ) from error
            self._sleep(2.0 ** (failures - 1))


def is_network_error(error: BaseException) -> bool:
    """Whether trying again may help: a lost connection, a timeout, a server that is busy or broken."""
    import httpx2  # what huggingface_hub reads with

    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return False
    return isinstance(error, OSError | EOFError | httpx2.HTTPError)


LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
TOKEN_SIZES = {"context_length", "train_tokens", "held_out_contexts", "calibration_contexts"}


def split_of(text: str, config: CorpusConfig) -> Split:
    """The split that a document belongs to: decided by the hash of its text, so it never moves between runs."""
    share = int.from_bytes(hashlib.sha256(text.encode("utf8", "replace")).digest()[:8], "big") / 2**64
    # The corpus is sorted by this very hash, so the position is hashed once more or a split would be a stretch of it.
    share = int.from_bytes(hashlib.sha256(f"{share:.17f}".encode()).digest()[:8], "big") / 2**64
    if share < config.held_out_fraction:
        return "held_out"
    return "calibration" if share < config.held_out_fraction + config.calibration_fraction else "train"


def load_documents(
    config: CorpusConfig, cache: Path | None = None, *, rank: int = 0, world: int = 1
) -> Iterable[dict[str, Any]]:
    """The corpus as a Hugging Face dataset: rows with a text column (`config.text_field`).

    Args:
        cache: a folder where the packaged corpus is kept between calls.
        rank, world: the rows `rank`, `rank + world`, `rank + 2 world` ...; all of them by default.

    Raises ArtifactError for a source that cannot be read: unknown file type, missing file, no network or revision.
    """
    rows = _dataset(config, cache)
    if world > 1:
        from datasets import Dataset
        from datasets.distributed import split_dataset_by_node

        # By examples: shards would leave each rank with files of its own, and rows in an order that depends on `world`.
        streamed = rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows
        rows = split_dataset_by_node(streamed, rank=rank, world_size=world, strategy="examples")
    return Retried(rows, str(config.name)) if config.source == "hub" else rows


def _dataset(config: CorpusConfig, cache: Path | None) -> Any:
    import datasets  # half a second to import, so only where text is read

    if config.source == "documentation":
        return _documentation_dataset(config, cache)
    if config.source == "files":
        files, loader = text_files(config)
        return _load(datasets.load_dataset, loader, data_files=files, split="train", streaming=True)
    return _load(
        datasets.load_dataset, config.name, config.subset, split=config.split, revision=config.revision, streaming=True
    )


def text_files(config: CorpusConfig) -> tuple[list[str], str]:
    """The files of `corpus.files`, and which of datasets' loaders reads them.

    Raises ArtifactError: a file is missing or empty, or they are not of one known type.
    """
    files = [str(Path(file)) for file in config.files]
    missing = [file for file in files if not Path(file).is_file()]
    if missing or not files:
        raise ArtifactError(f"corpus.files: no such file: {', '.join(missing) or '(the list is empty)'}")
    empty = [file for file in files if not Path(file).stat().st_size]
    if empty:
        raise ArtifactError(f"corpus.files: {', '.join(empty)} is empty; give files that hold text")
    # data.jsonl.zst is a .jsonl file; datasets opens what is compressed by itself.
    suffixes = {Path(file.removesuffix(".zst").removesuffix(".gz")).suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= set(LOADERS):
        raise ArtifactError(f"corpus.files: need files of one type out of {', '.join(LOADERS)}, got {sorted(suffixes)}")
    return files, LOADERS[suffixes.pop()]


def _load(load: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return load(*arguments, **options)
    except Exception as error:
        told = hub.explain(error, arguments[0], options["revision"], hub.CORPUS) if "revision" in options else None
        raise ArtifactError(
            told
            or f"corpus.name: cannot read '{arguments[0]}' ({type(error).__name__}: {first_line(error)}); "
            "check the name, the revision and the network, or set corpus.source to documentation or files"
        ) from error


def _documentation_dataset(config: CorpusConfig, cache: Path | None) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    versions = documentation.versions(config.packages)
    file = None
    if cache is not None:
        file = cache / f"documentation-{result_key(DOCUMENTATION, versions)[:16]}.parquet"
        # A file that is damaged is made again.
        with suppress(OSError, ValueError, DatasetsError):
            if file.is_file():
                return datasets.Dataset.from_parquet(str(file), cache_dir=str(cache / "datasets"))
    documents = documentation.extract(config.packages)
    columns = {name: [getattr(d, name) for d in documents] for name in documentation.Document._fields}
    dataset = datasets.Dataset.from_dict(columns)
    if file is not None:
        datasets.disable_progress_bars()
        write_parquet(file, dataset)
    return dataset


def documents_of(split: Split, rows: Iterable[dict[str, Any]], config: CorpusConfig) -> Iterator[str]:
    """The texts of one split, in corpus order.

    Raises ArtifactError when the corpus cannot be read to its end, or has no such column.
    """
    for text in _texts(rows, config):
        if text and split_of(text, config) == split:
            yield text


def _texts(rows: Iterable[dict[str, Any]], config: CorpusConfig) -> Iterator[str]:
    for row in _readable(rows):
        if config.text_field not in row:
            raise ArtifactError(
                f"corpus.text_field: no column '{config.text_field}' in the corpus; it has {', '.join(sorted(row))}"
            )
        yield row[config.text_field] or ""


def _readable(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows; a file or a network that fails on the way is reported in one line."""
    try:
        yield from rows
    except ArtifactError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise ArtifactError(
            f"corpus: the text cannot be read to its end ({type(error).__name__}: {reason}); "
            "check the files or the network, then run again"
        ) from error


def contexts_needed(data: DataConfig) -> dict[Split, int]:
    """How many contexts each split needs for these sizes."""
    # EOS and BOS give no activation rows; 3 % more contexts than rows covers documents of 40 tokens and longer.
    train = -(-int(data.train_tokens * 1.03) // (data.context_length - 1)) + 1
    return {"train": train, "held_out": data.held_out_contexts, "calibration": data.calibration_contexts}


def build_tokens(
    config: CorpusConfig,
    data: DataConfig,
    tokenizer: Any,
    folder: Path,
    cache: Path,
    *,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write `train.npy`, `held_out.npy`, `calibration.npy` (int32 `[context, position]`) and `manifest.json`.

    The corpus is read once, and memory does not grow with the number of tokens. Each of `world` processes calls this
    with the same arguments, tokenises its share of the documents and gets the same manifest; rank 0 writes the files.

    Returns the manifest: the hash of each split, the hash of the corpus, and for the packaged corpus the versions it
    was made from. A finished build with the same key is reused.

    Raises ArtifactError when the text cannot be read or is too little.
    """
    versions = documentation.versions(config.packages) if config.source == "documentation" else {}
    key = result_key(
        TOKENS,
        config.model_dump(exclude={"files"}),
        [file_sha256(file) if Path(file).is_file() else file for file in config.files],
        data.model_dump(include=TOKEN_SIZES),
        versions,
        hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
    )
    manifest_file = folder / "manifest.json"
    if manifest_file.is_file():
        manifest = cast(dict[str, Any], read_json(manifest_file))
        if manifest["key"] == key and _unaltered(folder, manifest["splits"]):
            return manifest
    if rank > 0:
        barrier()  # rank 0 has extracted the packaged corpus
    rows = load_documents(config, cache, rank=rank, world=world)
    if rank == 0:
        barrier()
    pieces = tokenised(((_split_number(text, config), text) for text in _texts(rows, config)), tokenizer)
    if world > 1:
        pieces = put_together(pieces, folder / ".pieces", rank, world, barrier)
    contexts = contexts_needed(data)
    taught = round(contexts["train"] * config.lessons_fraction)
    lessons = {"train": Lessons(tokenizer, contexts["train"], taught)} if taught else {}
    bos, _ = boundary_tokens(tokenizer)
    hashes = write_contexts(folder if rank == 0 else None, pieces, contexts, bos, data.context_length, lessons)
    manifest = {"key": key, "corpus_hash": json_key(hashes), "splits": hashes, "versions": versions}
    if rank == 0:
        write_json(manifest_file, manifest)
    barrier()
    if rank == 0:
        shutil.rmtree(folder / ".pieces", ignore_errors=True)
    return manifest


def _unaltered(folder: Path, splits: Mapping[str, Any]) -> bool:
    """Whether the files hold the contexts that the manifest says."""
    try:
        return all(
            hashlib.sha256(load_tokens(folder, split).data).hexdigest() == splits[split]["sha256"] for split in SPLITS
        )
    except ArtifactError:
        return False


def _split_number(text: str, config: CorpusConfig) -> int:
    return SPLITS.index(split_of(text, config))
