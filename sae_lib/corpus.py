"""Text to tokens: documents from one of three sources, packed into contexts.

Every source is a Hugging Face dataset with a text column, so nothing else knows where text comes from:

- `documentation`: the packaged corpus (`documentation.py`), no download;
- `hub`: a dataset of the Hugging Face hub, streamed, pinned to a revision;
- `files`: local .jsonl, .parquet or .txt files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sae_lib import documentation
from sae_lib.errors import ArtifactError, first_line
from sae_lib.files import atomic_write, file_sha256, json_key, read_json, write_json
from sae_lib.source_key import source_key
from sae_lib.spelling import with_lessons

if TYPE_CHECKING:
    from sae_lib.profile import CorpusConfig, Profile

Split = Literal["train", "held_out", "calibration"]
SPLITS: tuple[Split, ...] = ("train", "held_out", "calibration")
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
DOCUMENTS_PER_BATCH = 256  # tokenised together


def split_of(text: str, config: CorpusConfig) -> Split:
    """The split that a document belongs to: decided by the hash of its text, so it never moves between runs."""
    share = int.from_bytes(hashlib.sha256(text.encode("utf8", "replace")).digest()[:8], "big") / 2**64
    # The corpus is sorted by this very hash, so the position is hashed once more or a split would be a stretch of it.
    share = int.from_bytes(hashlib.sha256(f"{share:.17f}".encode()).digest()[:8], "big") / 2**64
    if share < config.held_out_fraction:
        return "held_out"
    return "calibration" if share < config.held_out_fraction + config.calibration_fraction else "train"


def load_documents(config: CorpusConfig, cache: Path | None = None) -> Iterable[dict[str, Any]]:
    """The corpus as a Hugging Face dataset: rows with a text column (`config.text_field`).

    `cache` is a folder where the packaged corpus is kept between calls.

    Raises ArtifactError for a source that cannot be read: unknown file type, missing file, no network or revision.
    """
    import datasets  # half a second to import, so only where text is read

    if config.source == "documentation":
        return _documentation_dataset(config, cache)
    if config.source == "files":
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
            raise ArtifactError(
                f"corpus.files: need files of one type out of {', '.join(LOADERS)}, got {sorted(suffixes)}"
            )
        return _load(datasets.load_dataset, LOADERS[suffixes.pop()], data_files=files, split="train", streaming=True)
    return _load(
        datasets.load_dataset, config.name, config.subset, split=config.split, revision=config.revision, streaming=True
    )


def _load(load: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return load(*arguments, **options)
    except Exception as error:
        reason = first_line(error)
        raise ArtifactError(
            f"corpus.name: cannot read '{arguments[0]}' ({type(error).__name__}: {reason}); "
            "check the name, the revision and the network, or set corpus.source to documentation or files"
        ) from error


def _documentation_dataset(config: CorpusConfig, cache: Path | None) -> Any:
    import datasets

    versions = documentation.versions(config.packages)
    file = None
    if cache is not None:
        # Keyed by versions and by the code that extracts: a finished extraction is never done twice.
        file = cache / f"documentation-{json_key([versions, source_key('sae_lib.documentation')])[:16]}.parquet"
        if file.is_file():
            return datasets.Dataset.from_parquet(str(file), cache_dir=str(cache / "datasets"))
    documents = documentation.extract(config.packages)
    columns = {name: [getattr(d, name) for d in documents] for name in documentation.Document._fields}
    dataset = datasets.Dataset.from_dict(columns)
    if file is not None:
        datasets.disable_progress_bars()
        with atomic_write(file, "wb") as stream:
            dataset.to_parquet(stream)
    return dataset


def documents_of(split: Split, rows: Iterable[dict[str, Any]], config: CorpusConfig) -> Iterator[str]:
    """The texts of one split, in corpus order.

    Raises ArtifactError when the corpus cannot be read to its end, or has no such column.
    """
    for row in _readable(rows):
        if config.text_field not in row:
            raise ArtifactError(
                f"corpus.text_field: no column '{config.text_field}' in the corpus; it has {', '.join(sorted(row))}"
            )
        text = row[config.text_field]
        if text and split_of(text, config) == split:
            yield text


def _readable(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows; a file or a network that fails on the way is reported in one line."""
    try:
        yield from rows
    except Exception as error:
        reason = first_line(error)
        raise ArtifactError(
            f"corpus: the text cannot be read to its end ({type(error).__name__}: {reason}); "
            "check the files or the network, then run again"
        ) from error


def pack(texts: Iterable[str], tokenizer: Any, context_length: int, contexts: int | None = None) -> NDArray[np.int32]:
    """Pack documents into contexts `[context, position]`: BOS, then context_length - 1 tokens of the joined documents.

    Documents are joined by EOS (BOS where the tokenizer has none); the tokens left over at the end are dropped.

    Raises ArtifactError when there is no text for even one context or, if `contexts` is given, for that many.
    """
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ArtifactError("model.name: the tokenizer has neither a BOS nor an EOS token to begin a context with")
    joint = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else bos
    body = context_length - 1
    needed = None if contexts is None else contexts * body
    pieces: list[NDArray[np.int32]] = []
    n_tokens = 0
    texts = iter(texts)
    while (needed is None or n_tokens < needed) and (batch := list(islice(texts, DOCUMENTS_PER_BATCH))):
        encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        pieces += [np.array([*ids, joint], dtype=np.int32) for ids in encoded]
        n_tokens += sum(len(ids) + 1 for ids in encoded)
    available = n_tokens // body
    if available < (contexts or 1):
        raise ArtifactError(
            f"corpus: {n_tokens:,} tokens fill {available:,} contexts of {context_length}, needed: {contexts or 1:,}; "
            "lower data.train_tokens (or the other sizes under data), or give more text"
        )
    stream = np.concatenate(pieces)[: (contexts or available) * body].reshape(-1, body)
    return np.concatenate([np.full((len(stream), 1), bos, dtype=np.int32), stream], axis=1)


def contexts_needed(profile: Profile) -> dict[Split, int]:
    """How many contexts each split needs for this profile's sizes."""
    data = profile.data
    # EOS and BOS give no activation rows; 3 % more contexts than rows covers documents of 40 tokens and longer.
    train = -(-int(data.train_tokens * 1.03) // (data.context_length - 1)) + 1
    return {"train": train, "held_out": data.held_out_contexts, "calibration": data.calibration_contexts}


def build_tokens(profile: Profile, tokenizer: Any, folder: Path, cache: Path) -> dict[str, Any]:
    """Write `train.npy`, `held_out.npy`, `calibration.npy` (int32 `[context, position]`) and `manifest.json`.

    Returns the manifest: the hash of each split, the hash of the corpus, and for the packaged corpus the versions it
    was made from. A finished build with the same key is reused.
    """
    versions = documentation.versions(profile.corpus.packages) if profile.corpus.source == "documentation" else {}
    files = {file: file_sha256(Path(file)) for file in profile.corpus.files if Path(file).is_file()}
    key = json_key(
        [
            profile.corpus.model_dump(),
            profile.data.model_dump(),
            versions,
            files,
            hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            source_key("sae_lib.corpus"),
        ]
    )
    manifest_file = folder / "manifest.json"
    if manifest_file.is_file():
        manifest = cast(dict[str, Any], read_json(manifest_file))
        if manifest["key"] == key and all((folder / f"{split}.npy").is_file() for split in SPLITS):
            return manifest
    hashes = {}
    for split, contexts in contexts_needed(profile).items():
        rows = load_documents(profile.corpus, cache)
        tokens = pack(documents_of(split, rows, profile.corpus), tokenizer, profile.data.context_length, contexts)
        if split == "train":
            tokens = with_lessons(tokens, tokenizer, profile.corpus.lessons_fraction)
        with atomic_write(folder / f"{split}.npy", "wb") as stream:
            np.save(stream, tokens)
        hashes[split] = {"contexts": contexts, "sha256": hashlib.sha256(tokens.tobytes()).hexdigest()}
    manifest = {"key": key, "corpus_hash": json_key(hashes), "splits": hashes, "versions": versions}
    write_json(manifest_file, manifest)
    return manifest


def load_tokens(folder: Path, split: Split) -> NDArray[np.int32]:
    """The contexts of one split, memory-mapped: int32 `[context, position]`.

    Raises ArtifactError when they are not there.
    """
    if not (folder / f"{split}.npy").is_file():
        raise ArtifactError(f"tokens: there is no {split}.npy in {folder}; make it first (notebook 01_data)")
    return cast(NDArray[np.int32], np.load(folder / f"{split}.npy", mmap_mode="r"))
