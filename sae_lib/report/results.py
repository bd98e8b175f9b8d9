"""The tidy tables of one profile, as the evaluation notebooks leave them.

Which rows of the results belong to which comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lib.report.names import IMPORTANCE_PARTS
from sae_lib.report.statistics import Interval, by_seed, difference, pair_values
from sae_lib.util.errors import ArtifactError

# SAEs within this factor of a common L0 stand at matched L0.
MATCHED_L0 = 1.25


def l0_is_matched(values: Iterable[float]) -> bool:
    """Whether there is an L0 from which none of `values` is off by more than `MATCHED_L0`."""
    known = [float(value) for value in values if value > 0]
    return bool(known) and max(known) <= MATCHED_L0**2 * min(known)


def rows_of(evaluation: pd.DataFrame, *groups: str) -> pd.DataFrame:
    """The rows of `groups`. Raises ArtifactError when there are none."""
    rows = evaluation[evaluation["group"].isin(groups)]
    if rows.empty:
        raise ArtifactError(
            f"evaluation: no rows of group {' or '.join(groups)}; run notebooks 02 to 04 at this profile"
        )
    return rows


def toy_rows(
    toy_summary: pd.DataFrame, experiment: str, toy: str | None = None, method: str | None = None
) -> pd.DataFrame:
    """The rows of one experiment on toy data, of one toy and one method where they are named."""
    rows = toy_summary[toy_summary["experiment"] == experiment]
    rows = rows if toy is None else rows[rows["toy"] == toy]
    return rows if method is None else rows[rows["method"] == method]


def sequence_numbers(rows: pd.DataFrame) -> pd.Series:
    """The number of each row of group `sequence`, whose label is 'run 1' to 'run 4'."""
    return rows["label"].astype(str).str.extract(r"run ([1-4])$", expand=False).astype(float)


# What is dropped from ATM's importance -> the name of the row. "" is nothing.
DROPPED: dict[str, str] = {"": "all parts"} | {part: f"without {part}" for part in IMPORTANCE_PARTS}


def dropped_part(importance: Any) -> str | None:
    """The part missing from an `importance` such as 'magnitude+frequency'; '' for none, None for anything else.

    >>> dropped_part("magnitude+frequency")
    'contribution'
    """
    named = set(re.findall(r"[a-z_]+", str(importance)))
    missing = [part for part in IMPORTANCE_PARTS if part not in named]
    if not named <= set(IMPORTANCE_PARTS) or len(missing) > 1:
        return None
    return missing[0] if missing else ""


def drop_effect(parts: pd.DataFrame, column: str, part: str) -> Interval:
    """`column` without `part` of the importance, minus with all parts, seed by seed (rows of group
    `atm_importance`)."""
    dropped = parts["importance"].map(dropped_part)
    return difference(by_seed(parts[dropped == part], column), by_seed(parts[dropped == ""], column))


# What every check may rely on; a table that was not made is empty, a column that was not made is NaN.
KEYS: dict[str, tuple[str, ...]] = {
    "evaluation": ("run", "group", "method", "label", "seed"),
    "letters": ("run", "group", "method", "label", "seed", "letter", "test_words"),
    "density": ("run", "method", "seed", "log10_rate_left", "count"),
    "history": ("run", "group", "method", "seed", "step"),
    "probing_tasks": ("run", "group", "method", "label", "seed", "dataset", "task", "k1"),
    "seed_stability": ("group", "method", "seed_a", "seed_b"),
    "toy": ("method", "seed", "kind", "row", "latent", "value"),
    "toy_summary": ("experiment", "toy", "method", "label", "seed"),
}
# Columns of seed_stability.
PAIR_METRICS = ("matched_cosine", "max_cosine", "share_matched")
# A table is one file, or one file of each notebook that trains SAEs.
PARTS = ("", "_main", "_ablations")


def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame(columns=list(KEYS[name]))


@dataclass
class Results:
    """`evaluation`: one row per SAE; `letters`: per SAE and letter; `density`: firing-rate histograms; `history`:
    training logs; `probing_tasks`: per SAE and sparse-probing task; `seed_stability`: per method and pair of seeds;
    `toy` and `toy_summary`: SAEs on data with known features (columns in `absorption_figures` and `toy_checks`)."""

    evaluation: pd.DataFrame = field(default_factory=lambda: _empty("evaluation"))
    letters: pd.DataFrame = field(default_factory=lambda: _empty("letters"))
    density: pd.DataFrame = field(default_factory=lambda: _empty("density"))
    history: pd.DataFrame = field(default_factory=lambda: _empty("history"))
    probing_tasks: pd.DataFrame = field(default_factory=lambda: _empty("probing_tasks"))
    seed_stability: pd.DataFrame = field(default_factory=lambda: _empty("seed_stability"))
    toy: pd.DataFrame = field(default_factory=lambda: _empty("toy"))
    toy_summary: pd.DataFrame = field(default_factory=lambda: _empty("toy_summary"))

    @classmethod
    def load(cls, folder: Path | str) -> Results:
        """Read each table that is in `folder`: `<table>.parquet`, or its parts `<table>_main.parquet` and
        `<table>_ablations.parquet`, one below the other.

        Raises ArtifactError: no such folder, a file that is no parquet table, a table without its key columns.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError(f"results: there is no folder {folder}; run `make paper` at this profile first")
        tables = {}
        for name in (each.name for each in fields(cls)):
            paths = [folder / f"{name}{part}.parquet" for part in PARTS]
            parts = [_read(path, KEYS[name]) for path in paths if path.is_file()]
            if parts:
                tables[name] = pd.concat(parts, ignore_index=True)
        return cls(**tables)

    def rows(self, group: str, method: str) -> pd.DataFrame:
        """The evaluation rows of one method in one group; in group `sequence`, method is 'run_1' to 'run_4'."""
        return select(self.evaluation, group, method)

    def seeds(self, group: str, method: str, metric: str) -> pd.Series:
        """`metric` of one method by seed: from `evaluation`, or `seed_stability` if it belongs to pairs of seeds."""
        if metric in PAIR_METRICS:
            pairs = select(self.seed_stability, group, method)
            return pair_values(pairs, metric) if metric in pairs else pd.Series(dtype=float)
        return seeds_of(self.rows(group, method), metric)


def _read(path: Path, keys: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"results: {path} is no readable parquet table ({error}); remove it and run `make paper` again"
        ) from None
    missing = [column for column in keys if column not in table]
    if missing:
        raise ArtifactError(f"results: {path} has no column {', '.join(missing)}; run `make paper` again")
    return table


def select(frame: pd.DataFrame, group: str, method: str) -> pd.DataFrame:
    """The rows of `method` in `group` of any table with the columns group, method and label."""
    rows = frame[frame["group"] == group]
    if group == "sequence":
        return rows[sequence_numbers(rows) == float(method.removeprefix("run_"))]
    return rows[rows["method"] == method]


def seeds_of(rows: pd.DataFrame, metric: str) -> pd.Series:
    """`metric` by seed; empty where the column was not made. `l1_per_l0` is L1 divided by L0."""
    if metric == "l1_per_l0":
        return (seeds_of(rows, "l1") / seeds_of(rows, "l0")).dropna()
    if metric not in rows or rows.empty:
        return pd.Series(dtype=float)
    return by_seed(rows, metric).dropna()
