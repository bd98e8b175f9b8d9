"""Labelled texts: SAEBench's eight datasets from the Hugging Face hub, chosen as SAEBench 0.6.0 does; local files; and
which texts a configuration asks for, whichever source they come from.

The eight give 35 binary tasks: five professions three times (bias_in_bios, men and women evenly), five product
categories (1 and 5 stars evenly), two ratings, five programming languages, four news topics, five languages. They are
read through `datasets.load_dataset`: tables with a column of texts and one of labels; europarl's `translation`, a
dictionary of language and sentence, from five language pairs; `content` and `path` of github-code's parquet files. The
path tells the language, as in the loading script that SAEBench runs and that `datasets` no longer supports.
"""

import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sae_lib.data import corpus as corpora
from sae_lib.data import documentation, hub
from sae_lib.data.config import CorpusConfig
from sae_lib.data.corpus import Texts, file_rows, text_files
from sae_lib.metrics.probing.config import LabelledFiles, ProbingConfig
from sae_lib.metrics.probing.documentation import DATASETS, documentation_texts
from sae_lib.metrics.probing.tasks import LabelledTexts, require, tasks_of, tokenise
from sae_lib.metrics.registry import Inputs
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256

Classes = dict[str, list[str]]
"""Texts by class."""


class HubDataset(NamedTuple):
    """One of SAEBench's datasets: where it lies, and the classes that are a task each."""

    repository: str
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    """Of a table: texts, labels, and what has two values, each of which gives half of a class."""


BIOS, AMAZON = "LabHC/bias_in_bios", "canrager/amazon_reviews_mcauley_1and5"
BY_GENDER, BY_RATING = ("hard_text", "profession", "gender"), ("text", "category", "rating")
HUB_DATASETS = {
    "bias_in_bios_class_set1": HubDataset(BIOS, ("0", "1", "2", "6", "9"), BY_GENDER),
    "bias_in_bios_class_set2": HubDataset(BIOS, ("11", "13", "14", "18", "19"), BY_GENDER),
    "bias_in_bios_class_set3": HubDataset(BIOS, ("20", "21", "22", "25", "26"), BY_GENDER),
    "amazon_reviews": HubDataset(AMAZON, ("1", "2", "3", "5", "6"), BY_RATING),
    "amazon_reviews_sentiment": HubDataset(AMAZON, ("1.0", "5.0"), ("text", "rating")),
    "github-code": HubDataset("codeparrot/github-code", ("C", "Python", "HTML", "Java", "PHP")),
    "ag_news": HubDataset("fancyzhx/ag_news", ("0", "1", "2", "3"), ("text", "label")),
    "europarl": HubDataset("Helsinki-NLP/europarl", ("en", "fr", "de", "es", "nl")),
}
LANGUAGE_PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
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


def hub_texts(name: str, config: ProbingConfig) -> tuple[Classes, Classes]:
    """Training and test texts by class of one of `HUB_DATASETS`, half of a task's for each class. Raises ArtifactError:
    the dataset cannot be read, or a class has too few texts."""
    repository, classes, columns = HUB_DATASETS[name]
    if columns:
        return _drawn(repository, hub_tables(repository, columns, config), classes, columns, config)
    import datasets  # half a second to import, so only where text is read

    needed = (config.train_per_task + config.test_per_task) // 2 + 1
    revision = config.revisions.get(repository)
    options: dict[str, Any] = {"split": "train", "streaming": True}
    with hub.reading(repository, revision, hub.PROBING):
        if name == "europarl":
            found: Classes = {}
            for language in classes:
                rows = datasets.load_dataset(repository, LANGUAGE_PAIRS[language], revision=revision, **options)
                found[language] = [row["translation"][language] for row in islice(rows, needed)]
        else:
            files = f"hf://datasets/{repository}@{revision or 'main'}/data/train-*.parquet"
            found = _code(datasets.load_dataset("parquet", data_files=files, **options), classes, needed)
    return shuffled_split(repository, found, config)


def hub_tables(repository: str, columns: Sequence[str], config: ProbingConfig) -> list[pd.DataFrame]:
    """These columns of a dataset's training and test table. Raises ArtifactError: it cannot be read."""
    import datasets

    revision = config.revisions.get(repository)
    with hub.reading(repository, revision, hub.PROBING):
        splits = datasets.load_dataset(repository, revision=revision)
        return [splits[split].select_columns([*columns]).to_pandas() for split in ("train", "test")]


def _code(rows: Iterable[dict[str, Any]], languages: Sequence[str], needed: int) -> Classes:
    """The first programs of each language, at least as many as are needed where there are."""
    found: Classes = {language: [] for language in languages}
    for row in rows:
        language = next((name for name in found if row["path"].endswith(EXTENSIONS[name])), None)
        if language is None or len(row["content"]) <= LICENCE_CHARACTERS + CONTEXT_CHARACTERS:
            continue
        found[language].append(row["content"][LICENCE_CHARACTERS:])
        if all(len(texts) >= needed for texts in found.values()):
            break
    return found


def _drawn(
    where: str, tables: Sequence[pd.DataFrame], classes: Sequence[str], columns: Sequence[str], config: ProbingConfig
) -> tuple[Classes, Classes]:
    """Texts of each class of a training and a test table; `columns` as of `HubDataset`. Raises ArtifactError: a class
    has too few texts.

    Source: SAEBench 0.6.0, `gather_dataset_from_df`, `get_balanced_dataset`, `get_balanced_amazon_sentiment_dataset`.
    """
    text, label, *other = columns

    def of_class(table: pd.DataFrame, name: str, size: int, what: str) -> list[str]:
        rows = table[table[label].astype(str) == name]
        parts = {what: rows}
        if other:
            parts = {f"{what} with {other[0]} {value}": group for value, group in rows.groupby(other[0])}
            require(len(parts), 2, f"{what}, values of {other[0]}")
            size //= 2
        for of, part in parts.items():
            require(len(part), size, of)
        return [each for part in parts.values() for each in part[text].sample(n=size, random_state=config.seed)]

    sizes = {"train": config.train_per_task // 2, "test": config.test_per_task // 2}
    train, test = (
        {name: of_class(table, name, size, f"{where}, {split} texts, class {name}") for name in classes}
        for table, (split, size) in zip(tables, sizes.items(), strict=True)
    )
    return train, test


def shuffled_split(where: str, classes: Classes, config: ProbingConfig) -> tuple[Classes, Classes]:
    """Shuffle each class, in order, and take its training texts from the front and its test texts after them. Raises
    ArtifactError: a class has too few texts.

    Source: SAEBench 0.6.0, `get_europarl_dataset` and `get_github_code_dataset`.
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


def file_texts(name: str, files: LabelledFiles, config: ProbingConfig) -> tuple[Classes, Classes]:
    """Training and test texts by class from local files; each class of the training file is one. Raises ArtifactError:
    a file or a column that is missing or cannot be read, a class with too few texts."""
    train = _read_file(name, files.train, files)
    labels = sorted(train["label"].unique())
    if files.test is None:
        of_label = {label: train["text"][train["label"] == label].tolist() for label in labels}
        return shuffled_split(name, of_label, config)
    return _drawn(name, [train, _read_file(name, files.test, files)], labels, ("text", "label"), config)


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


def known_datasets(config: ProbingConfig) -> tuple[str, ...]:
    """Names of the datasets that the configuration asks for. Raises ArtifactError: its source has no such one."""
    known = {"documentation": DATASETS, "hub": tuple(HUB_DATASETS), "files": tuple(config.files)}[config.source]
    for name in config.datasets:
        if name not in known:
            raise ArtifactError(
                f"probing.datasets: source '{config.source}' has no dataset '{name}'; it has {', '.join(known)}"
            )
    return config.datasets or known


def check_texts(config: ProbingConfig, corpus: CorpusConfig | None) -> None:
    """Before anything is trained for them: whether the texts are there. Those of the hub are not fetched. Raises
    ArtifactError: as `file_texts` and `known_datasets`."""
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


def held_out_documents(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """The documents of the packaged corpus that no SAE was trained on."""
    assert inputs.corpus is not None  # `text_key` has checked it
    rows = corpora.load_documents(inputs.corpus, inputs.corpus_cache)
    for row, text in Texts(rows, inputs.corpus.text_field):
        if text and corpora.split_of(text, inputs.corpus) == "held_out":
            yield row


def load_part(names: Sequence[str], inputs: Inputs) -> list[LabelledTexts]:
    """The texts of the datasets `names`, to be probed together: all of the packaged corpus, or one other dataset.
    Raises ArtifactError: text that cannot be read, a class with too few texts."""
    config, tokenizer = inputs.settings("probing"), inputs.lm.tokenizer
    if config.source == "documentation":
        return documentation_texts(held_out_documents(inputs), tokenizer, config, tuple(names))
    (name,) = names
    splits = hub_texts(name, config) if config.source == "hub" else file_texts(name, config.files[name], config)
    train, test = (
        {label: tokenise(texts, tokenizer, config.context) for label, texts in classes.items()} for classes in splits
    )
    return [LabelledTexts(name, train, test, tasks_of(tuple(train)))]
