"""What the tables share: lines of cells for sets of SAEs, lines of differences, and the notes under them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, NOT_MEASURABLE, method_name
from sae_lib.report.results import MATCHED_L0, why_empty
from sae_lib.report.statistics import Interval, seeds_of, t_interval

ARROW_NOTE = "↑ higher is better, ↓ lower is better, – neither"
# How rows may be compared, as a caption says it. The first two put a dagger at each L0 that is off by too much: off the
# rows' median, or off the first row, which the others are variants of.
MATCHED = f"† L0 off the rows' median by more than a factor {MATCHED_L0:g}: not to be ranked with the others"
VARIANTS = f"† L0 off the first row's by more than a factor {MATCHED_L0:g}: not to be ranked with it"
UNRANKED = "L0 differs between rows: not to be ranked"
# The same for every row: how many letters and words stand behind an absorption score.
COUNTS = ("letters", "words")
Text = Callable[[Interval, int], str]  # of an interval with so many decimals


def cell(interval: Interval, decimals: int) -> str:
    """'0.123 ± 0.004', the mean alone for one seed or the same count at all, '–' for none."""
    if interval.n == 0:
        return "–"
    text = f"{interval.mean:.{decimals}f}"
    return text if interval.n == 1 or (decimals == 0 and interval.sd == 0) else f"{text} ± {interval.sd:.{decimals}f}"


def range_cell(interval: Interval, decimals: int, sign: str = "") -> str:
    """'0.123 [0.100, 0.146]', the mean alone where there is no interval; with `sign` '+', all with their signs."""
    if interval.n == 0:
        return "–"
    mean, low, high = (f"{value:{sign}.{decimals}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]" if math.isfinite(interval.low) else mean


gap_cell = partial(range_cell, sign="+")


def record(row: str, metric: str, interval: Interval, column: Column) -> dict[str, Any]:
    return {"row": row, "n": interval.n, "metric": metric, "better": column.direction, "mean": interval.mean,
            "sd": interval.sd, "low": interval.low, "high": interval.high}  # fmt: skip


class Table(NamedTuple):
    """`shown`: strings, as read. `data`: one row per number (row, n, metric, mean, sd, low, high). `caption`:
    one line."""

    shown: pd.DataFrame
    data: pd.DataFrame
    caption: str

    def with_column(self, metric: str, column: Column, of: Mapping[str, Interval], text: Text = cell) -> Table:
        """With another metric, of those rows that have it."""
        cells = [text(of[row], column.decimals) if row in of else "–" for row in self.shown.iloc[:, 0]]
        data = pd.DataFrame([record(row, metric, each, column) for row, each in of.items()])
        shown = self.shown.assign(**{column.header: cells})
        return self._replace(shown=shown, data=pd.concat([self.data, data], ignore_index=True))


def intervals(part: pd.DataFrame, columns: Iterable[str]) -> dict[str, Interval]:
    """Of a set of SAEs that differ in their seed: metric -> its interval."""
    return {column: t_interval(seeds_of(part, column)) for column in columns}


class Lines:
    """A table in the making; `columns` are shown as they say themselves, or as `METRICS` do."""

    def __init__(self, columns: Iterable[str] = METRICS) -> None:
        self.metrics = columns if isinstance(columns, Mapping) else METRICS
        self.shown: list[dict[str, Any]] = []
        self.data: list[dict[str, Any]] = []

    def add(
        self, keys: Mapping[str, Any], row: str, of: Mapping[str, Interval], text: Text = cell, **more: Any
    ) -> None:
        """A line of `keys` and of the intervals of metrics. The data calls it `row`, with `more` before."""
        cells = {self.metrics[m].header: text(each, self.metrics[m].decimals) for m, each in of.items()}
        self.shown.append({**keys, **cells})
        self.data += [more | record(row, metric, each, self.metrics[metric]) for metric, each in of.items()]

    def table(self, caption: str, parts: Iterable[pd.DataFrame], *notes: str, lacking: str = "") -> Table:
        """What was added. The caption, which comes without its last stop, gets the `notes`, what is `lacking`
        (`left_out`), and the seeds of the rows' `parts`."""
        caption = f"{'. '.join(filter(None, (caption, *notes)))}.{lacking} {seeds_note(parts)}"
        return Table(pd.DataFrame(self.shown).fillna("–"), pd.DataFrame(self.data), caption)


def table_of(
    first: str,
    named: Mapping[str, pd.DataFrame],
    columns: Iterable[str],
    caption: str,
    note: str = MATCHED,
    effects: Mapping[str, Callable[[str], Interval]] | None = None,
) -> Table:
    """One row for each named set of SAEs that is not empty, methods by what they are called, one column for each
    metric; below, each of `effects` on the metrics. The caption is as in `Lines.table`."""
    named = {method_name(name) if first == "method" else name: part for name, part in named.items() if len(part)}
    rows, lines = pd.concat(named.values()), Lines(columns)
    lacking, columns = left_out(rows, columns), measurable(rows, columns)
    l0 = pd.Series({name: t_interval(seeds_of(part, "l0")).mean for name, part in named.items()})
    common = {MATCHED: l0.median(), VARIANTS: l0.iloc[0]}.get(note, math.nan)
    off = np.abs(np.log(l0 / common)) > math.log(MATCHED_L0)
    for name, part in named.items():
        lines.add({first: name, "seeds": str(part["seed"].nunique())}, name, intervals(part, columns))
        if "l0" in columns and off[name]:
            lines.shown[-1][lines.metrics["l0"].header] += " †"
    for name, effect in (effects or {}).items():
        of = {column: effect(column) for column in columns if column not in COUNTS and not why_empty(rows, column)}
        lines.add({first: name, "seeds": str(max((each.n for each in of.values()), default=0))}, name, of, gap_cell)
    return lines.table(caption, named.values(), ARROW_NOTE, note, lacking=lacking)


def measurable(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Those of `columns` that the language model allows."""
    return [column for column in columns if why_empty(rows, column) != NOT_MEASURABLE]


def left_out(rows: pd.DataFrame, columns: Iterable[str]) -> str:
    """The end of a caption that says what the language model does not allow; empty without any."""
    metrics, allowed = Lines(columns).metrics, measurable(rows, columns)
    names = ", ".join(metrics[column].label for column in columns if column not in allowed)
    return f" {NOT_MEASURABLE.capitalize()}: {names}." if names else ""


def seeds_note(rows: Iterable[pd.DataFrame]) -> str:
    """The seeds of a table's rows, and which seeds a row has where they differ.

    >>> seeds_note([pd.DataFrame({"seed": [42, 43]}), pd.DataFrame({"seed": [42]})])
    'Seeds: 42, 43 in rows with 2; 42 in rows with 1.'
    """
    of_rows = dict.fromkeys(tuple(sorted({*part["seed"]})) for part in rows if len(part))
    listed = {seeds: ", ".join(map(str, seeds)) for seeds in of_rows}
    if len(listed) < 2:
        return "".join(f"Seeds {names}." for names in listed.values())
    return f"Seeds: {'; '.join(f'{names} in rows with {len(seeds)}' for seeds, names in listed.items())}."
