"""Texts of two attributes that a training set confounds, for the removal of spurious correlations.

Of a pair, each text has the first attribute or not and the second or not: four quadrants. The probe `both` learns from
texts that have both or neither, so that either attribute would do; `first` and `second` learn theirs alone. SAEBench
takes professions and gender, and product categories and ratings, from the hub; on the packaged corpus it is two
packages, and whether the text has an interactive example.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lib.data.config import CorpusConfig
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import AMAZON, BIOS, BY_GENDER, BY_RATING, Load, held_out_documents, hub_tables
from sae_lib.metrics.probing.documentation import PATTERNS, Pieces
from sae_lib.metrics.probing.tasks import ProbingTask, Tokens, require, tokenise

PROBES = ("first", "second", "both")
PACKAGE_PAIRS = 3
SECOND = "interactive example"

Row = tuple[Tokens, bool, bool]
"""A text; whether it has the first attribute, and the second."""


class Pair(NamedTuple):
    name: str
    train: list[Row]
    test: list[Row]


Columns = tuple[str, str, str]
Two = tuple[str, str]
# SAEBench's: columns of texts and of both attributes, values of the first by pair, values of the second.
HUB_PAIRS: dict[str, tuple[Columns, tuple[Two, ...], Two]] = {
    BIOS: (BY_GENDER, (("21", "13"), ("1", "11"), ("25", "22"), ("2", "26")), ("0", "1")),
    AMAZON: (BY_RATING, (("24", "26"), ("30", "6"), ("18", "11"), ("3", "1")), ("1.0", "5.0")),
}


def spurious_tasks(
    tokenizer: Any, config: ProbingConfig, corpus: CorpusConfig | None, cache: Path | None, load: Load | None = None
) -> tuple[list[Tokens], list[ProbingTask]]:
    """The distinct texts, and three tasks for each pair, named as `PROBES`; none for source `files`, whose texts have
    one attribute. Source: SAEBench 0.6.0, `get_spurious_corr_data`.

    Raises ArtifactError: a dataset cannot be read, a quadrant has too few texts.
    """
    if config.source == "hub":
        pairs = _on_hub(tokenizer, config, load)
    else:
        pairs = _on_documentation(tokenizer, config, corpus, cache) if config.source == "documentation" else iter(())
    sizes = (config.train_per_task, config.test_per_task)
    number: dict[Tokens, int] = {}
    tasks: list[ProbingTask] = []
    for pair in pairs:
        train, test = (
            _of_split(rows, size // 4, f"{pair.name}, {what} texts", config.min_per_class)
            for rows, size, what in zip((pair.train, pair.test), sizes, ("training", "test"), strict=True)
        )
        for probe in PROBES:
            drawn = (_numbered(split[probe], number) for split in (train, test))
            tasks.append(ProbingTask(pair.name, probe, *next(drawn), *next(drawn)))
    return list(number), tasks


Classes = tuple[list[Tokens], list[Tokens]]


def _of_split(rows: Iterable[Row], quarter: int, where: str, least: int) -> dict[str, Classes]:
    """Positives and negatives of each probe: half of the one's and half of the other's with each value of the second
    attribute, for `first`; the same turned round for `second`."""
    quadrants: dict[Any, list[Tokens]] = {each: [] for each in product((True, False), repeat=2)}
    for tokens, first, second in rows:
        quadrants[first, second].append(tokens)
    both, only_first, only_second, neither = quadrants.values()
    quarter = min(quarter, len(only_first), len(only_second), len(both) // 2, len(neither) // 2)
    require(2 * quarter, least, f"{where} of the smallest quadrant, with as many again of both and neither")
    return {
        "first": (both[:quarter] + only_first[:quarter], only_second[:quarter] + neither[:quarter]),
        "second": (both[:quarter] + only_second[:quarter], only_first[:quarter] + neither[:quarter]),
        "both": (both[: 2 * quarter], neither[: 2 * quarter]),
    }


def _numbered(classes: Classes, number: dict[Tokens, int]) -> tuple[Int[Tensor, " text"], Bool[Tensor, " text"]]:
    texts = [number.setdefault(text, len(number)) for texts in classes for text in texts]
    return torch.tensor(texts), torch.arange(len(texts)) < len(classes[0])


def _on_hub(tokenizer: Any, config: ProbingConfig, load: Load | None) -> Iterator[Pair]:
    for repository, (columns, pairs, values) in HUB_PAIRS.items():
        tables = hub_tables(repository, columns, config, load)
        for pair in pairs:
            name = f"{repository}, {columns[1]} {pair[0]} or {pair[1]} by {columns[2]}"
            yield Pair(name, *(_hub_rows(table, columns, pair, values, tokenizer, config) for table in tables))


def _hub_rows(
    table: pd.DataFrame, columns: Columns, pair: Two, values: Two, tokenizer: Any, config: ProbingConfig
) -> list[Row]:
    """The first texts of each quadrant, as many as any task can use."""
    text, *both = columns
    first, second = (table[column].astype(str) for column in both)
    here = table[first.isin(pair) & second.isin(values)]
    few = here.groupby(both, sort=False).head(config.train_per_task // 2)
    tokens = tokenise(few[text].tolist(), tokenizer, config.context)
    has = (first[few.index] == pair[0]).tolist(), (second[few.index] == values[0]).tolist()
    return [*zip(tokens, *has, strict=True)]


def _on_documentation(
    tokenizer: Any, config: ProbingConfig, corpus: CorpusConfig | None, cache: Path | None
) -> Iterator[Pair]:
    pieces = Pieces(held_out_documents(corpus, cache), tokenizer, config)
    found = re.compile(PATTERNS["layout"][SECOND]).search
    packages = pieces.largest("package", 2 * PACKAGE_PAIRS)
    for pair in zip(packages[::2], packages[1::2], strict=False):
        train, test = (
            [(each.tokens, each.package == pair[0], bool(found(each.text))) for each in split if each.package in pair]
            for split in pieces.splits
        )
        yield Pair(f"{pair[0]} or {pair[1]} by {SECOND}", train, test)
