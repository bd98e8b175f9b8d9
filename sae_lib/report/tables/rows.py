"""What the tables share: a row of cells for a set of SAEs, rows of differences, and the notes under them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, NOT_MEASURABLE
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


class Table(NamedTuple):
    """`shown`: strings, as read. `data`: one row per number (row, n, metric, mean, sd, low, high). `caption`:
    one line."""

    shown: pd.DataFrame
    data: pd.DataFrame
    caption: str


def table_of(
    first: str,
    named: Mapping[str, pd.DataFrame],
    columns: Iterable[str],
    caption: str,
    note: str = MATCHED,
    metrics: Mapping[str, Column] = METRICS,
) -> Table:
    """One row for each named set of SAEs that is not empty, one column for each metric. The caption, which comes
    without its last stop, gets the `note`, the metrics that the language model does not allow, and the rows' seeds."""
    named = {name: part for name, part in named.items() if len(part)}
    rows = pd.concat(named.values())
    lacking = not_measurable(rows, columns)
    columns = [column for column in columns if column not in lacking]
    l0 = pd.Series({name: t_interval(seeds_of(part, "l0")).mean for name, part in named.items()})
    common = {MATCHED: l0.median(), VARIANTS: l0.iloc[0]}.get(note, math.nan)
    off = np.abs(np.log(l0 / common)) > math.log(MATCHED_L0)
    shown, data = [], []
    for name, part in named.items():
        line: dict[str, Any] = {first: name, "seeds": str(part["seed"].nunique())}
        cells, records = measured(name, part, columns, metrics)
        if "l0" in columns and off[name]:
            cells[metrics["l0"].header] += " †"
        shown.append(line | cells)
        data += records
    notes = ". ".join(filter(None, (caption, ARROW_NOTE, note)))
    ending = f"{left_out(lacking, metrics)} {seeds_note(named.values())}"
    return Table(pd.DataFrame(shown), pd.DataFrame(data), f"{notes}.{ending}")


def measured(
    row: str, part: pd.DataFrame, columns: Iterable[str], metrics: Mapping[str, Column] = METRICS
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Of a set of SAEs: a cell for each of `columns` by its header, and the numbers behind them."""
    intervals = {column: t_interval(seeds_of(part, column)) for column in columns}
    cells = {metrics[column].header: cell(each, metrics[column].decimals) for column, each in intervals.items()}
    return cells, [record(row, column, each, metrics) for column, each in intervals.items()]


def not_measurable(rows: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """Those of `columns` that the language model does not allow."""
    return [column for column in columns if why_empty(rows, column) == NOT_MEASURABLE]


def left_out(columns: Iterable[str], metrics: Mapping[str, Column] = METRICS) -> str:
    """The end of a caption that says what the language model does not allow; empty without any."""
    names = ", ".join(metrics[column].label for column in columns)
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


def with_effects(
    table: Table, rows: pd.DataFrame, columns: Iterable[str], effects: Mapping[str, Callable[[str], Interval]]
) -> Table:
    """`table` with rows of differences below: each of `effects` in those of `columns` that have values in `rows`."""
    columns = [c for c in columns if c not in COUNTS and not why_empty(rows, c)]
    lines, data = [], []
    for name, effect in effects.items():
        of_column = {column: effect(column) for column in columns}
        line = {table.shown.columns[0]: name, "seeds": str(max((i.n for i in of_column.values()), default=0))}
        for column, interval in of_column.items():
            line[METRICS[column].header] = range_cell(interval, METRICS[column].decimals, "+")
            data.append(record(name, column, interval))
        lines.append(line)
    shown = pd.concat([table.shown, pd.DataFrame(lines)], ignore_index=True).fillna("–")
    return Table(shown, pd.concat([table.data, pd.DataFrame(data)], ignore_index=True), table.caption)


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


def record(row: str, column: str, interval: Interval, metrics: Mapping[str, Column] = METRICS) -> dict[str, Any]:
    """A number and its interval, as the CSV files have them."""
    direction = metrics[column].direction
    return {"row": row, "n": interval.n, "metric": column, "better": direction, "mean": interval.mean,
            "sd": interval.sd, "low": interval.low, "high": interval.high}  # fmt: skip
