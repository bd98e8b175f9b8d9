"""Every table that `make paper` writes: which function makes it, from which results, and how it becomes files.

CSV holds the numbers, Markdown and LaTeX the table as it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lib.profiles.profile import Profile
from sae_lib.profiles.runs import Group, plan_runs
from sae_lib.report.results import Results
from sae_lib.report.tables.ablations import (
    atm_fair_table,
    atm_table,
    collapse_table,
    factorial_table,
    sensitivity_table,
    sequence_table,
)
from sae_lib.report.tables.controls import controls_table, null_table
from sae_lib.report.tables.literature import literature_table
from sae_lib.report.tables.main import (
    as_written_table,
    context_table,
    difference_table,
    headline_table,
    letters_table,
    main_table,
    probing_table,
    quality_table,
    stability_table,
)
from sae_lib.report.tables.rows import Table
from sae_lib.report.tables.sweep import equal_ev_table, sweep_table
from sae_lib.util.files import atomic_write

# File in the figures folder, without its ending -> the function that makes it, and what it reads (`Results.inputs`).
TABLES: dict[str, tuple[Callable[..., Table], tuple[str, ...]]] = {
    "table_main": (main_table, ("evaluation",)),
    "table_headline": (headline_table, ("evaluation",)),
    "table_quality": (quality_table, ("evaluation",)),
    "table_probing": (probing_table, ("evaluation",)),
    "table_difference": (difference_table, ("evaluation",)),
    "table_as_written": (as_written_table, ("evaluation",)),
    "table_factorial": (factorial_table, ("evaluation",)),
    "table_sequence": (sequence_table, ("evaluation",)),
    "table_collapse": (collapse_table, ("evaluation",)),
    "table_atm": (atm_table, ("evaluation",)),
    "table_atm_fair": (atm_fair_table, ("evaluation",)),
    "table_sensitivity": (sensitivity_table, ("evaluation", "history")),
    "table_stability": (stability_table, ("evaluation", "seed_stability")),
    "table_contexts": (context_table, ("evaluation",)),
    "table_sweep": (sweep_table, ("evaluation", "compare_at")),
    "table_equal_ev": (equal_ev_table, ("evaluation",)),
    "table_literature": (literature_table, ("evaluation",)),
    "table_controls": (controls_table, ("evaluation", "seed_stability")),
    "table_null": (null_table, ("evaluation",)),
    "table_letters": (letters_table, ("letters", "probe")),
}


# Tables of a group that not every profile has.
OF_GROUP: dict[str, Group] = {"table_collapse": "collapse", "table_atm_fair": "atm_fair"}


def tables_of(profile: Profile) -> list[str]:
    """The names of `TABLES` that `profile` trains the SAEs for."""
    return [name for name in TABLES if name not in OF_GROUP or plan_runs(profile, None, [OF_GROUP[name]])]


def make_table(name: str, results: Results, profile: Profile) -> Table:
    """A table of `TABLES`. Raises ArtifactError where the results have no rows for it."""
    make, reads = TABLES[name]
    inputs = results.inputs(profile)
    return make(*(inputs[each] for each in reads))


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
