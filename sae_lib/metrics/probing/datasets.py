"""SAEBench's eight datasets from the Hugging Face hub, their texts chosen as SAEBench 0.6.0 chooses them.

They give 35 binary tasks: five professions three times (bias_in_bios, men and women evenly), five product
categories (1 and 5 stars evenly), two ratings, five programming languages, four news topics, five languages.
Rows are read through `datasets.load_dataset` alone, by one function for each schema:

- two columns: `hard_text`, `profession`, `gender`, or `text`, `category`, `rating` (integers; rating 1.0 or 5.0);
- sentiment: `text`, `rating`;
- ag_news: `text`, `label` (0 to 3);
- europarl: `translation`, a dictionary of language and sentence, from five language pairs;
- github-code: `content`, `path`, from the repository's own parquet files. The path tells the language, as in
  the loading script that SAEBench runs and that `datasets` no longer supports.

Beside them labelled texts from local files, and which texts a configuration asks for, whichever source they come from.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from sae_lib.data import corpus as corpora
from sae_lib.data import documentation, hub
from sae_lib.data.corpus import Texts, file_rows, text_files
from sae_lib.metrics.probing.config import LabelledFiles, ProbingConfig
from sae_lib.metrics.probing.documentation import DATASETS, documentation_texts
from sae_lib.metrics.probing.tasks import LabelledTexts, require, tasks_of, tokenise
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256

if TYPE_CHECKING:
    from sae_lib.data.config import CorpusConfig


def file_texts(name: str, files: LabelledFiles, config: ProbingConfig) -> tuple[Classes, Classes]:
    """Training and test texts by class from local files; each class of the training file is one.

    Raises ArtifactError: a file that is missing or cannot be read, a column that is not there, a class with too few
    texts.
    """
    train = _read_file(name, files.train, files)
    labels = sorted(train["label"].unique())
    if files.test is None:
        return shuffled_split(
            name, {label: train["text"][train["label"] == label].tolist() for label in labels}, config
        )
    test = _read_file(name, files.test, files)

    def sample(table: pd.DataFrame, size: int, where: str) -> Classes:
        return {label: class_texts(table, "text", "label", label, size // 2, config.seed, where) for label in labels}

    return sample(train, config.train_per_task, f"{name}, training texts"), sample(
        test, config.test_per_task, f"{name}, test texts"
    )


def _read_file(name: str, path: str, files: LabelledFiles) -> pd.DataFrame:
    """The rows that have both a text and a label, which is kept as it is written: an integer beside a null too."""
    where = f"probing.files.{name}"
    (file,) = text_files([path], where)
    texts = Texts(file_rows(file, where), files.text, where)
    rows = [(text, row.get(files.label)) for row, text in texts]
    labelled = [(text, str(label)) for text, label in rows if text and label is not None]
    if rows and all(label is None for _, label in rows):
        has = ", ".join(next(file_rows(file, where)))
        raise ArtifactError(f"{where}: {path} has no column '{files.label}' with labels; it has {has}")
    if left_out := len(rows) - len(labelled):
        warnings.warn(f"{where}: {left_out:,} of {len(rows):,} rows of {path} lack a text or a label", stacklevel=2)
    return pd.DataFrame(labelled, columns=["text", "label"])


Classes = dict[str, list[str]]
"""Texts by class."""
Load = Callable[..., Any]
"""`datasets.load_dataset`."""
Read = Callable[[Load, "HubDataset", ProbingConfig], tuple[Classes, Classes]]


class HubDataset(NamedTuple):
    """One of SAEBench's datasets: where it lies, and the classes that are a task each."""

    repository: str
    classes: tuple[str, ...]
    read: Read


def class_texts(
    table: pd.DataFrame, text: str, label: str, name: str, size: int, seed: int, where: str, other: str | None = None
) -> list[str]:
    """`size` texts of class `name`; with `other`, half of them for each of the two values of that column.

    Source: SAEBench 0.6.0, `gather_dataset_from_df`, `get_balanced_dataset`, `get_balanced_amazon_sentiment_dataset`.

    Raises ArtifactError: there are fewer.
    """
    of_class, what = table[table[label].astype(str) == name], f"{where}, class {name}"
    parts = {what: of_class}
    if other is not None:
        parts = {f"{what} with {other} {value}": group for value, group in of_class.groupby(other)}
        require(len(parts), 2, f"{what}, values of {other}")
        size //= 2
    for of, part in parts.items():
        require(len(part), size, of)
    return [each for part in parts.values() for each in part[text].sample(n=size, random_state=seed)]


def _table(text: str, label: str, other: str | None = None) -> Read:
    """The reader of a table with these columns; with `other`, as many texts of each of its two values."""

    def read_both(load: Load, dataset: HubDataset, config: ProbingConfig) -> tuple[Classes, Classes]:
        tables = load(dataset.repository, revision=config.revisions.get(dataset.repository))

        def read(split: str, size: int) -> Classes:
            table = tables[split].select_columns([column for column in (text, label, other) if column]).to_pandas()
            where = f"{dataset.repository}, {split} texts"
            return {
                name: class_texts(table, text, label, name, size // 2, config.seed, where, other)
                for name in dataset.classes
            }

        return read("train", config.train_per_task), read("test", config.test_per_task)

    return read_both


BIOGRAPHIES = _table("hard_text", "profession", "gender")
LANGUAGE_PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}


def _europarl(load: Load, dataset: HubDataset, config: ProbingConfig) -> tuple[Classes, Classes]:
    needed = (config.train_per_task + config.test_per_task) // 2
    found: Classes = {}
    for language in dataset.classes:
        revision = config.revisions.get(dataset.repository)
        rows = load(dataset.repository, LANGUAGE_PAIRS[language], split="train", streaming=True, revision=revision)
        found[language] = [row["translation"][language] for row in islice(rows, needed + 1)]
    return shuffled_split(dataset.repository, found, config)


# From the dataset's own loading script; SAEBench skips what is likely a licence: 50 tokens of three characters,
# in files that hold a context of 128 such tokens beyond it.
EXTENSIONS = {
    "C": (".c", ".h"),
    "Python": (".py",),
    "HTML": (".html",),
    "Java": (".java",),
    "PHP": (".php", ".php3", ".php4", ".php5", ".phps", ".phpt"),
}
LICENCE_CHARACTERS = 150
CONTEXT_CHARACTERS = 384


def _github_code(load: Load, dataset: HubDataset, config: ProbingConfig) -> tuple[Classes, Classes]:
    revision = config.revisions.get(dataset.repository) or "main"
    files = f"hf://datasets/{dataset.repository}@{revision}/data/train-*.parquet"
    rows = load("parquet", data_files=files, split="train", streaming=True)
    needed = (config.train_per_task + config.test_per_task) // 2
    found: Classes = {language: [] for language in dataset.classes}
    for row in rows:
        language = next((name for name in found if row["path"].endswith(EXTENSIONS[name])), None)
        if language is None or len(row["content"]) <= LICENCE_CHARACTERS + CONTEXT_CHARACTERS:
            continue
        found[language].append(row["content"][LICENCE_CHARACTERS:])
        if all(len(texts) > needed for texts in found.values()):
            break
    return shuffled_split(dataset.repository, found, config)


def shuffled_split(where: str, classes: Classes, config: ProbingConfig) -> tuple[Classes, Classes]:
    """Shuffle each class, in order, and take its training texts from the front and its test texts after them.

    Source: SAEBench 0.6.0, `get_europarl_dataset` and `get_github_code_dataset`.

    Raises ArtifactError: a class has too few texts.
    """
    train_size, test_size = config.train_per_task // 2, config.test_per_task // 2
    rng = random.Random(config.seed)
    train, test = {}, {}
    for name, texts in classes.items():
        require(len(texts), train_size + test_size, f"{where}, class {name}")
        texts = texts.copy()
        rng.shuffle(texts)
        train[name], test[name] = texts[:train_size], texts[train_size : train_size + test_size]
    return train, test


HUB_DATASETS = {
    "bias_in_bios_class_set1": HubDataset("LabHC/bias_in_bios", ("0", "1", "2", "6", "9"), BIOGRAPHIES),
    "bias_in_bios_class_set2": HubDataset("LabHC/bias_in_bios", ("11", "13", "14", "18", "19"), BIOGRAPHIES),
    "bias_in_bios_class_set3": HubDataset("LabHC/bias_in_bios", ("20", "21", "22", "25", "26"), BIOGRAPHIES),
    "amazon_reviews": HubDataset(
        "canrager/amazon_reviews_mcauley_1and5", ("1", "2", "3", "5", "6"), _table("text", "category", "rating")
    ),
    "amazon_reviews_sentiment": HubDataset(
        "canrager/amazon_reviews_mcauley_1and5", ("1.0", "5.0"), _table("text", "rating")
    ),
    "github-code": HubDataset("codeparrot/github-code", ("C", "Python", "HTML", "Java", "PHP"), _github_code),
    "ag_news": HubDataset("fancyzhx/ag_news", ("0", "1", "2", "3"), _table("text", "label")),
    "europarl": HubDataset("Helsinki-NLP/europarl", ("en", "fr", "de", "es", "nl"), _europarl),
}


def hub_texts(name: str, config: ProbingConfig, load: Load | None = None) -> tuple[Classes, Classes]:
    """Training and test texts by class of one of `HUB_DATASETS`; a class has half of `train_per_task` and of
    `test_per_task`.

    `load`: `datasets.load_dataset` unless something else is to be read in its place.

    Raises ArtifactError: the dataset cannot be read, or a class has too few texts.
    """
    import datasets  # half a second to import, so only where text is read

    dataset = HUB_DATASETS[name]
    with hub.reading(dataset.repository, config.revisions.get(dataset.repository), hub.PROBING):
        return dataset.read(load or datasets.load_dataset, dataset, config)


def known_datasets(config: ProbingConfig) -> tuple[str, ...]:
    """Names of the datasets that the configuration asks for.

    Raises ArtifactError: a name that its source does not have.
    """
    known = {"documentation": DATASETS, "hub": tuple(HUB_DATASETS), "files": tuple(config.files)}[config.source]
    for name in config.datasets:
        if name not in known:
            raise ArtifactError(
                f"probing.datasets: source '{config.source}' has no dataset '{name}'; it has {', '.join(known)}"
            )
    return config.datasets or known


def check_texts(config: ProbingConfig, corpus: CorpusConfig | None) -> None:
    """Before anything is trained for them: whether the texts are there. Those of the hub are not fetched.

    Raises ArtifactError: as `file_texts`, or a dataset that its source does not have.
    """
    names = known_datasets(config)
    text_key(config, corpus)
    for name in names if config.source == "files" else ():
        file_texts(name, config.files[name], config)


def text_key(config: ProbingConfig, corpus: CorpusConfig | None) -> Any:
    """What the texts depend on beside the configuration."""
    if config.source == "documentation":
        if corpus is None or corpus.source != "documentation":
            raise ArtifactError(
                "probing.source: 'documentation' needs corpus.source documentation; set it to hub or files"
            )
        return [corpus.model_dump(), documentation.versions(corpus.packages)]
    paths = [Path(path) for files in config.files.values() for path in (files.train, files.test) if path]
    return {str(path): file_sha256(path) for path in paths if path.is_file()}


def held_out_documents(corpus: CorpusConfig | None, cache: Path | None) -> Iterator[dict[str, Any]]:
    """The documents of the packaged corpus that no SAE was trained on."""
    assert corpus is not None  # `text_key` has checked it
    for row, text in Texts(corpora.load_documents(corpus, cache), corpus.text_field):
        if text and corpora.split_of(text, corpus) == "held_out":
            yield row


def load_part(
    names: Sequence[str], config: ProbingConfig, tokenizer: Any, corpus: CorpusConfig | None, cache: Path | None
) -> list[LabelledTexts]:
    """The texts of the datasets `names`, to be probed together: all of the packaged corpus, or one other dataset.

    Raises ArtifactError: text that cannot be read, a class with too few texts.
    """
    if config.source == "documentation":
        return documentation_texts(held_out_documents(corpus, cache), tokenizer, config, tuple(names))
    (name,) = names
    splits = hub_texts(name, config) if config.source == "hub" else file_texts(name, config.files[name], config)
    train, test = (
        {label: tokenise(texts, tokenizer, config.context) for label, texts in classes.items()} for classes in splits
    )
    return [LabelledTexts(name, train, test, tasks_of(tuple(train)))]
