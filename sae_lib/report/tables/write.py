"""Every table that `make paper` writes: which function makes it, from which results, and how it becomes files.

CSV holds the numbers, Markdown the table as it is read. README's tables are copied from these files, never typed: one
stands between `<!-- figures/table_main.md -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lib.profiles.profile import Profile
from sae_lib.report.results import Results
from sae_lib.report.tables.ablations import (
    atm_fair_table,
    atm_table,
    collapse_table,
    factorial_table,
    sensitivity_table,
    sequence_table,
)
from sae_lib.report.tables.carriers import carriers_table
from sae_lib.report.tables.controls import controls_table, interpretation_table, null_table
from sae_lib.report.tables.endings import endings_table
from sae_lib.report.tables.layers import layer_groups_table
from sae_lib.report.tables.leaderboard import bar_table, leaderboard_table, masked_table
from sae_lib.report.tables.main import (
    as_written_table,
    contexts_table,
    difference_table,
    headline_table,
    main_table,
    probing_table,
    quality_table,
    stability_table,
)
from sae_lib.report.tables.perturbation import perturbation_table
from sae_lib.report.tables.published import ground_truth_table, ideas_table, literature_table
from sae_lib.report.tables.rows import Table
from sae_lib.report.tables.sweep import equal_ev_table, sweep_table
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write
from sae_lib.util.paths import ROOT

BUILDERS: tuple[Callable[..., Table], ...] = (
    main_table, headline_table, quality_table, probing_table, difference_table, as_written_table, factorial_table,
    sequence_table, collapse_table, atm_table, atm_fair_table, sensitivity_table, stability_table, contexts_table,
    sweep_table, equal_ev_table, literature_table, ground_truth_table, ideas_table, leaderboard_table, controls_table,
    null_table, carriers_table, endings_table, perturbation_table, interpretation_table, layer_groups_table, bar_table,
    masked_table,
)  # fmt: skip
# File in the figures folder, without its ending -> the function that makes it; its parameters name what it reads.
TABLES = {f"table_{make.__name__.removesuffix('_table')}": make for make in BUILDERS}

BLOCK = re.compile(r"(<!-- (?P<file>[\w./-]+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def make_tables(results: Results, profile: Profile, names: Iterable[str] = TABLES) -> dict[str, Table]:
    """Those of `TABLES` that the results have rows for."""
    made = {}
    for name in names:
        with suppress(ArtifactError):
            made[name] = results.into(TABLES[name], profile)
    return made


def write_table(table: Table, name: str, folder: Path | str, note: str = "") -> list[Path]:
    """Write `name`.csv (numbers) and `name`.md (as read, with caption and `note`) into `folder`; returns the paths."""
    folder = Path(folder)
    texts = {
        "csv": table.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "md": f"{to_markdown(table.shown)}\n\n{f'{table.caption} {note}'.strip()}\n",
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


def with_tables(text: str, root: Path) -> str:
    """`text` with every marked block replaced by the content of its file, a path relative to `root`.

    Raises ArtifactError when a named file is not there.
    """

    def fill(match: re.Match[str]) -> str:
        file = root / match["file"]
        if not file.is_file():
            raise ArtifactError(f"README.md: {match['file']} is not there; run `make paper` first")
        return f"{match[1]}{file.read_text(encoding='utf8').strip()}\n{match[3]}"

    return BLOCK.sub(fill, text)


def fill_readme(root: Path = ROOT) -> None:
    """Fill the tables of README.md in `root`."""
    readme = root / "README.md"
    with atomic_write(readme) as file:
        file.write(with_tables(readme.read_text(encoding="utf8"), root))
