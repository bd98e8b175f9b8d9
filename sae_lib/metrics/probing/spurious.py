"""Texts of two attributes that a training set confounds, for the removal of spurious correlations.

Of a pair, each text has the first attribute or not and the second or not: four quadrants. The probe `both` learns from
texts that have both or neither, so that either attribute would do; `first` and `second` learn theirs alone. SAEBench
takes professions and gender, and product categories and ratings, from the hub; on the packaged corpus it is two
packages, and whether the text has an interactive example.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count, product
from typing import Any

import torch
from torch import Tensor

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import AMAZON, BIOS, BY_GENDER, BY_RATING, held_out_documents, hub_tables
from sae_lib.metrics.probing.documentation import PATTERNS, Pieces
from sae_lib.metrics.probing.tasks import ProbingTask, Tokens, require, tokenise
from sae_lib.metrics.registry import Inputs

PROBES = ("first", "second", "both")
PACKAGE_PAIRS = 3
SECOND = "interactive example"

Row = tuple[Tokens, bool, bool]
"""A text; whether it has the first attribute, and the second."""
Pair = tuple[str, list[list[Row]]]
"""Its name, and the rows for training and for testing."""
Columns = tuple[str, str, str]
Two = tuple[str, str]
# SAEBench's: columns of texts and of both attributes, values of the first by pair, values of the second.
HUB_PAIRS: dict[str, tuple[Columns, tuple[Two, ...], Two]] = {
    BIOS: (BY_GENDER, (("21", "13"), ("1", "11"), ("25", "22"), ("2", "26")), ("0", "1")),
    AMAZON: (BY_RATING, (("24", "26"), ("30", "6"), ("18", "11"), ("3", "1")), ("1.0", "5.0")),
}


def spurious_tasks(inputs: Inputs) -> tuple[list[Tokens], list[ProbingTask]]:
    """The distinct texts, and three tasks for each pair, named as `PROBES`; none for source `files`, whose texts have
    one attribute. Source: SAEBench 0.6.0, `get_spurious_corr_data`.

    Raises ArtifactError: a dataset cannot be read, a quadrant has too few texts.
    """
    config = inputs.settings("probing")
    number: dict[Tokens, int] = defaultdict(count().__next__)
    pairs = {"hub": _on_hub, "documentation": _on_documentation}.get(config.source)
    tasks: list[ProbingTask] = []
    for name, splits in pairs(inputs, config) if pairs else ():
        sizes = (("training", config.train_per_task), ("test", config.test_per_task))
        classes = [
            _of_split(rows, size // 4, f"{name}, {what} texts", config.min_per_class)
            for rows, (what, size) in zip(splits, sizes, strict=True)
        ]
        for probe in PROBES:
            drawn: list[Tensor] = []
            for positive, negative in (each[probe] for each in classes):
                texts = torch.tensor([number[text] for text in positive + negative])
                drawn += texts, torch.arange(len(texts)) < len(positive)
            tasks.append(ProbingTask(name, probe, *drawn))
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


def _on_hub(inputs: Inputs, config: ProbingConfig) -> Iterator[Pair]:
    """The first texts of each quadrant, as many as any task can use."""
    for repository, (columns, pairs, values) in HUB_PAIRS.items():
        (text, *both), tables = columns, hub_tables(repository, columns, config)
        for pair in pairs:
            splits = []
            for table in tables:
                first, second = (table[column].astype(str) for column in both)
                here = table[first.isin(pair) & second.isin(values)]
                few = here.groupby(both, sort=False).head(config.train_per_task // 2)
                tokens = tokenise(few[text].tolist(), inputs.lm.tokenizer, config.context)
                has = (first[few.index] == pair[0]).tolist(), (second[few.index] == values[0]).tolist()
                splits.append([*zip(tokens, *has, strict=True)])
            yield f"{repository}, {both[0]} {pair[0]} or {pair[1]} by {both[1]}", splits


def _on_documentation(inputs: Inputs, config: ProbingConfig) -> Iterator[Pair]:
    pieces = Pieces(held_out_documents(inputs), inputs.lm.tokenizer, config)
    found = re.compile(PATTERNS["layout"][SECOND]).search
    packages = pieces.largest("package", 2 * PACKAGE_PAIRS)
    for pair in zip(packages[::2], packages[1::2], strict=False):
        yield (
            f"{pair[0]} or {pair[1]} by {SECOND}",
            [
                [
                    (each.tokens, each.package == pair[0], bool(found(each.text)))
                    for each in split
                    if each.package in pair
                ]
                for split in pieces.splits
            ],
        )
