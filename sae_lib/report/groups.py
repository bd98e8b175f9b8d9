"""Which rows of the results belong to which comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from sae_lib.errors import ArtifactError
from sae_lib.report.intervals import Interval, by_seed, difference
from sae_lib.report.names import IMPORTANCE_PARTS

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
