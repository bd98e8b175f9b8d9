"""Text: rows (dictionaries) from one of three sources, and from each row its text, by `Texts`.

- `documentation`: the packaged corpus (`documentation.py`), no download;
- `hub`: a dataset of the Hugging Face hub, streamed, pinned to a revision; `datasets` tries each read many times;
- `files`: local .jsonl, .json, .parquet or .txt files; text may be packed (.gz, .xz, .bz2, .zst).
"""

import bz2
import gzip
import io
import json
import lzma
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, cast

from zstandard import ZstdDecompressor

from sae_lib.data import documentation, hub
from sae_lib.data.config import CorpusConfig, DataConfig
from sae_lib.data.spelling import Lessons
from sae_lib.data.tokens import SPLITS, Split, contexts_needed, load_tokens, tokenised, tokenizer_key, write_contexts
from sae_lib.util.errors import ArtifactError, first_line, told_as
from sae_lib.util.files import file_sha256, json_key, read_json, write_json, write_parquet
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.paths import corpus_cache

TOKENS, DOCUMENTATION = Stage("tokens", 1), Stage("documentation", 1)

Row = dict[str, Any]

FILE_TYPES = (".jsonl", ".json", ".parquet", ".txt")
ROWS_WITHOUT_COLUMN = 1000  # so many in the beginning, and nobody expects one that has it
# How a file that is packed is opened, by the last part of its name.
PACKED: dict[str, Callable[[Path], Any]] = {
    ".zst": lambda file: ZstdDecompressor().stream_reader(file.open("rb"), read_across_frames=True),
    ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open,
}  # fmt: skip
TOKEN_SIZES = {"context_length", "train_tokens", "held_out_contexts", "calibration_contexts"}


def load_documents(config: CorpusConfig, cache: Path | None = None) -> Iterable[Row]:
    """Rows with a text column (`config.text_field`); the packaged corpus is kept in `cache`, or `corpus_cache`. Raises
    ArtifactError for a source that cannot be read: unknown file type, missing file, no network or revision."""
    if config.source == "files":
        return chain.from_iterable(map(file_rows, text_files(config.files)))
    if config.source == "documentation":
        import pandas as pd
        import pyarrow.parquet as pq

        key = result_key(DOCUMENTATION, documentation.versions(config.packages))
        file = (cache or corpus_cache()) / f"documentation-{key[:16]}.parquet"
        with suppress(OSError, ValueError):  # one that is damaged is made again
            table = pq.read_table(file)
            return (row for batch in table.to_batches(1024) for row in batch.to_pylist())
        documents = documentation.extract(config.packages)
        write_parquet(file, pd.DataFrame(documents), index=False)
        return (document._asdict() for document in documents)
    import datasets  # half a second to import

    name, revision = str(config.name), config.revision
    with hub.reading(name, revision, hub.CORPUS):
        found = datasets.load_dataset(name, config.subset, split=config.split, revision=revision, streaming=True)
    return cast(Iterable[Row], found)


class Texts:
    """The texts of rows: goes through (row, text), where a row without text has "".

    Raises ArtifactError while iterating, for a column that holds no text or that no row has, and for files or a
    network that fail on the way.
    """

    def __init__(self, rows: Iterable[Row], column: str, field: str = "corpus.text_field") -> None:
        self._rows, self._column, self._field = rows, column, field
        self.read = self.without_text = 0

    def __iter__(self) -> Iterator[tuple[Row, str]]:
        known, row = False, Row()
        with told_as("corpus: the text cannot be read to its end", "; check the files or the network, then run again"):
            for row in self._rows:
                self.read += 1
                known = known or self._column in row
                if not known and self.read == ROWS_WITHOUT_COLUMN:
                    break
                value = row.get(self._column)
                if value is not None and not isinstance(value, str):
                    fix = ", ".join(name for name, other in row.items() if isinstance(other, str)) or "there is none"
                    what = f"column '{self._column}' holds a {type(value).__name__}, not text, in row {self.read}"
                    raise ArtifactError(f"{self._field}: {what}; name a column of text ({fix})")
                # Half of a surrogate pair, which JSON may hold, is no text for a tokenizer.
                text = (value or "").encode("utf8", "replace").decode("utf8")
                self.without_text += not text
                yield row, text
        if self.read and not known:
            has = ", ".join(sorted(map(str, row)))
            raise ArtifactError(f"{self._field}: no column '{self._column}' in the corpus; it has {has}")

    @property
    def note(self) -> str | None:
        """What there is to say about the rows so far."""
        what = f"of {self.read:,} rows have no text in '{self._column}' and are left out"
        return f"{self.without_text:,} {what}" if self.without_text else None


def documents_of(split: Split, rows: Iterable[Row], config: CorpusConfig) -> Iterator[str]:
    """The texts of one split, in corpus order. Raises as `Texts`."""
    return (text for _, text in Texts(rows, config.text_field) if text and split_of(text, config) == split)


def split_of(text: str, config: CorpusConfig) -> Split:
    """The split that a document belongs to, by the hash of its text."""
    share = int.from_bytes(sha256(text.encode("utf8", "replace")).digest()[:8], "big") / 2**64
    # The corpus is sorted by this very hash, so the position is hashed once more or a split would be a stretch of it.
    share = int.from_bytes(sha256(f"{share:.17f}".encode()).digest()[:8], "big") / 2**64
    if share < config.held_out_fraction:
        return "held_out"
    return "calibration" if share < config.held_out_fraction + config.calibration_fraction else "train"


def text_files(names: Sequence[Path | str], field: str = "corpus.files") -> list[Path]:
    """The files with these names. Raises ArtifactError: one is missing, empty or of an unknown type."""
    files = [Path(name).expanduser() for name in names]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise ArtifactError(f"{field}: no such file: {', '.join(missing) or '(the list is empty)'}")
    for file in files:
        if _type(file) not in FILE_TYPES:
            raise ArtifactError(f"{field}: {file} is none of {', '.join(FILE_TYPES)}; convert it to one of them")
        if not file.stat().st_size:
            raise ArtifactError(f"{field}: {file} is empty; give files that hold text")
    return files


def file_rows(file: Path, field: str = "corpus.files") -> Iterator[Row]:
    """The rows of a table, the objects of JSON (one a line, or one list), or the lines of a text. Raises ArtifactError
    where it cannot be read."""
    number = 0
    try:
        for row in _rows_of(file):
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not an object with columns")
            number += 1
            yield row
    except UnicodeDecodeError:
        raise ArtifactError(f"{field}: {file} is not UTF-8 after row {number}; convert it (iconv -t utf-8)") from None
    except Exception as error:  # of whichever library reads it
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ArtifactError(f"{field}: {file} cannot be read after row {number} ({why})") from error


def _rows_of(file: Path) -> Iterator[Any]:
    if _type(file) == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
        return
    opener = PACKED.get(file.suffix.lower(), lambda file: file.open("rb"))
    with io.TextIOWrapper(io.BufferedReader(opener(file)), encoding="utf-8-sig") as lines:
        if _type(file) == ".txt":
            yield from ({"text": line.rstrip("\n")} for line in lines)
            return
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip().startswith("["):
            yield from json.loads(first + lines.read())
        else:
            yield from (json.loads(line) for line in chain([first], lines) if line.strip())


def _type(file: Path) -> str:
    """data.jsonl.zst is a .jsonl file, as data.JSONL is."""
    return (file.with_suffix("") if file.suffix.lower() in PACKED else file).suffix.lower()


def build_tokens(config: CorpusConfig, data: DataConfig, tokenizer: Any, folder: Path, cache: Path) -> dict[str, Any]:
    """Write `train.npy`, `held_out.npy`, `calibration.npy` (int32 `[context, position]`) and `manifest.json`, which is
    returned: the hashes of each split and of the corpus, and of the packaged one the versions it was made from. A
    finished build with the same key is reused.

    A warning counts the rows without text. Raises ArtifactError when the text cannot be read or is too little.
    """
    versions = documentation.versions(config.packages) if config.source == "documentation" else {}
    key = result_key(
        TOKENS,
        config.model_dump(exclude={"files"}),
        [file_sha256(file) if Path(file).is_file() else file for file in config.files],
        data.model_dump(include=TOKEN_SIZES),
        versions,
        tokenizer_key(tokenizer),
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
    )
    manifest_file = folder / "manifest.json"
    if manifest_file.is_file():
        there: dict[str, Any] = read_json(manifest_file)
        digests = {split: known["sha256"] for split, known in there["splits"].items()}
        with suppress(ArtifactError):  # of a file that is not there, or is cut short
            if there["key"] == key and digests == {s: sha256(load_tokens(folder, s).data).hexdigest() for s in SPLITS}:
                return there
    texts = Texts(load_documents(config, cache), config.text_field)
    documents = tokenised(((split_of(text, config), text) for _, text in texts if text), tokenizer)
    contexts = contexts_needed(data)["train"]
    taught = round(contexts * config.lessons_fraction)
    lessons = Lessons(tokenizer, contexts, taught) if taught else None
    hashes = write_contexts(folder, documents, tokenizer, data, lessons)
    manifest = {"key": key, "corpus_hash": json_key(hashes), "splits": hashes, "versions": versions}
    write_json(manifest_file, manifest)
    if texts.note:
        warnings.warn(f"corpus: {texts.note}", stacklevel=2)
    return manifest
