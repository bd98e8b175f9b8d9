"""What the tables share: a row of cells for a set of SAEs, rows of differences, and the notes under them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, NOT_MEASURABLE
from sae_lib.report.results import MATCHED_L0, why_empty
from sae_lib.report.statistics import Interval, seeds_of, t_interval

ARROW_NOTE = "↑ higher is better, ↓ lower is better, – neither"
MATCHED_NOTE = f"† L0 off the rows' median by more than a factor {MATCHED_L0:g}: not to be ranked with the others"
FIRST_ROW_NOTE = f"† L0 off the first row's by more than a factor {MATCHED_L0:g}: not to be ranked with it"
UNRANKED_NOTE = "L0 differs between rows: not to be ranked"


class Table(NamedTuple):
    """`shown`: strings, as read. `data`: one row per number (row, n, metric, mean, sd, low, high). `caption`:
    one line."""

    shown: pd.DataFrame
    data: pd.DataFrame
    caption: str


def table_of(
    first: str,
    named: dict[str, pd.DataFrame],
    columns: Iterable[str],
    caption: str,
    metrics: Mapping[str, Column] = METRICS,
) -> Table:
    """One row for each named set of SAEs, one column for each metric. The caption gets the rows' seeds, and the metrics
    that are left out because the language model does not allow them."""
    shown, data = [], []
    rows = pd.concat(named.values()) if named else pd.DataFrame()
    lacking = [column for column in columns if why_empty(rows, column) == NOT_MEASURABLE]
    columns = [column for column in columns if column not in lacking]
    caption += left_out(lacking, metrics)
    for name, part in named.items():
        seeds = part["seed"].nunique()
        line: dict[str, Any] = {first: name, "seeds": str(seeds)}
        for column in columns:
            interval = t_interval(seeds_of(part, column))
            line[metrics[column].header] = cell(interval, metrics[column].decimals)
            data.append(record(name, column, interval, metrics))
        shown.append(line)
    return Table(pd.DataFrame(shown), pd.DataFrame(data), f"{caption} {seeds_note(named.values())}".strip())


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


def marked(table: Table, against_first: bool = False) -> Table:
    """`table` with a dagger at each L0 that is off by more than `MATCHED_L0`: off the median of the rows, or off the
    first row, which others are variants of."""
    l0 = table.data[table.data["metric"] == "l0"].set_index("row")["mean"]
    off = np.abs(np.log(l0 / (l0.iloc[0] if against_first else l0.median()))) > np.log(MATCHED_L0)
    header = METRICS["l0"].header
    cells = [
        text + (" †" if off[name] else "")
        for name, text in zip(table.shown.iloc[:, 0], table.shown[header], strict=True)
    ]
    return table._replace(shown=table.shown.assign(**{header: cells}))


def with_effects(table: Table, effects: dict[str, dict[str, Interval]]) -> Table:
    """`table` with rows of differences below."""
    lines, data = [], []
    for name, of_column in effects.items():
        line = {table.shown.columns[0]: name, "seeds": str(max((i.n for i in of_column.values()), default=0))}
        for column, interval in of_column.items():
            line[METRICS[column].header] = range_cell(interval, METRICS[column].decimals, "+")
            data.append(record(name, column, interval))
        lines.append(line)
    shown = pd.concat([table.shown, pd.DataFrame(lines)], ignore_index=True).fillna("–") if lines else table.shown
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
