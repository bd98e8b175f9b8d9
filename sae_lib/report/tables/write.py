"""Every table that `make paper` writes: which function makes it, from which results, and how it becomes files. README's
tables are copied from these, never typed: one stands between `<!-- figures/table_main.md -->` and `<!-- end -->`."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lib.profiles.profile import Profile
from sae_lib.report.results import Results
from sae_lib.report.tables import ablations, controls, leaderboard, main, sweep
from sae_lib.report.tables.rows import Table
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write
from sae_lib.util.paths import ROOT

BUILDERS: tuple[Callable[..., Table], ...] = (
    main.main_table, main.headline_table, main.quality_table, main.probing_table, main.difference_table,
    main.as_written_table, ablations.factorial_table, ablations.sequence_table, ablations.collapse_table,
    ablations.atm_table, ablations.atm_fair_table, ablations.sensitivity_table, main.stability_table,
    main.contexts_table, sweep.sweep_table, sweep.equal_ev_table, sweep.literature_table,
    leaderboard.ground_truth_table, leaderboard.ideas_table, leaderboard.leaderboard_table, controls.controls_table,
    controls.null_table, controls.carriers_table, controls.endings_table, controls.perturbation_table,
    controls.interpretation_table, leaderboard.layer_groups_table, leaderboard.bar_table, leaderboard.masked_table,
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
    texts = {
        "csv": table.data.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "md": f"{to_markdown(table.shown)}\n\n{f'{table.caption} {note}'.strip()}\n",
    }
    paths = [Path(folder) / f"{name}.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic_write(path) as file:
            file.write(text)
    return paths


def to_markdown(frame: pd.DataFrame) -> str:
    """A pipe table; the first column to the left, the others to the right."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|:--|" + "--:|" * (frame.shape[1] - 1)
    return "\n".join([line(frame.columns), rule, *(line(row) for row in frame.itertuples(index=False))])


def with_tables(text: str, root: Path) -> str:
    """`text` with every marked block filled from its file, a path relative to `root`; ArtifactError without it."""

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
