"""A table as files: CSV holds the numbers, Markdown and LaTeX the table as it is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sae_lib.files import atomic_write


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
