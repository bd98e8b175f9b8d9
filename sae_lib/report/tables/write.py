"""A table as files: CSV holds the numbers, Markdown and LaTeX the table as it is read.

What the tables share: a row of cells for a set of SAEs, rows of differences, and the notes under them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lib.report.names import METRICS, in_order
from sae_lib.report.results import MATCHED_L0
from sae_lib.report.statistics import Interval, by_seed, t_interval
from sae_lib.util.files import atomic_write

ARROW_NOTE = "↑ higher is better, ↓ lower is better, – neither"
MATCHED_NOTE = f"† L0 off the rows' median by more than a factor {MATCHED_L0:g}: not to be ranked with the others"
FIRST_ROW_NOTE = f"† L0 off the first row's by more than a factor {MATCHED_L0:g}: not to be ranked with it"
UNRANKED_NOTE = "L0 differs between rows: not to be ranked"


def table_of(first: str, named: dict[str, pd.DataFrame], columns: Iterable[str], caption: str) -> Table:
    """One row for each named set of SAEs, one column for each metric. The caption gets the rows' seeds."""
    shown, data = [], []
    for name, part in named.items():
        seeds = part["seed"].nunique()
        line: dict[str, Any] = {first: name, "seeds": str(seeds)}
        for column in columns:
            values = by_seed(part, column) if column in part else []
            interval = t_interval(values)
            line[METRICS[column].header] = cell(interval, METRICS[column].decimals)
            data.append(record(name, column, interval))
        shown.append(line)
    return Table(pd.DataFrame(shown), pd.DataFrame(data), f"{caption} {seeds_note(named.values())}".strip())


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
            line[METRICS[column].header] = effect_cell(interval, METRICS[column].decimals)
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


def effect_cell(interval: Interval, decimals: int) -> str:
    if interval.n == 0:
        return "–"
    text = f"{interval.mean:+.{decimals}f}"
    return text if interval.n == 1 else f"{text} [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"


def pair_cell(interval: Interval, decimals: int) -> str:
    if interval.n == 0:
        return "–"
    return f"{interval.mean:.{decimals}f} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def record(row: str, column: str, interval: Interval) -> dict[str, Any]:
    direction = METRICS[column].direction
    return {"row": row, "n": interval.n, "metric": column, "better": direction, "mean": interval.mean,
            "sd": interval.sd, "low": interval.low, "high": interval.high}  # fmt: skip


def split(rows: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    return [(value, rows[rows[column] == value]) for value in in_order([*rows[column]])]


class Table(NamedTuple):
    """`shown`: strings, as read. `data`: one row per number (row, n, metric, mean, sd, low, high). `caption`:
    one line."""

    shown: pd.DataFrame
    data: pd.DataFrame
    caption: str


def write_table(table: Table, name: str, folder: Path | str, note: str = "") -> list[Path]:
    """Write `name`.csv (numbers), `name`.md and `name`.tex (as read, with caption and `note`) into `folder`.

    The LaTeX needs the package booktabs. Returns the three paths.
    """
    folder = Path(folder)
    caption = f"{table.caption} {note}".strip()
    texts = {
        "csv": table.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "md": f"{to_markdown(table.shown)}\n\n{caption}\n",
        "tex": to_latex(table.shown, caption, f"tab:{name}"),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(folder / f"{name}.{ending}")
        with atomic_write(paths[-1]) as file:
            file.write(text)
    return paths


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; the first column to the left, the others to the right."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|:--|" + "--:|" * (frame.shape[1] - 1)
    return "\n".join([line(frame.columns), rule, *(line(row) for row in frame.itertuples(index=False))])


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$", "λ": r"$\lambda$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def to_latex(frame: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table float."""

    def escaped(text: Any) -> str:
        return "".join(_LATEX.get(character, character) for character in str(text))

    def line(cells: Iterable[Any]) -> str:
        return " & ".join(escaped(c) for c in cells) + r" \\"

    columns = "l" + "r" * (frame.shape[1] - 1)
    body = "\n".join(line(row) for row in frame.itertuples(index=False))
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{escaped(caption)}}}\n\\label{{{label}}}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(frame.columns)}\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )
