"""Which rows of the results belong to which comparison."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from sae_lib.errors import ArtifactError
from sae_lib.report.intervals import Interval, by_seed, difference
from sae_lib.report.names import IMPORTANCE_PARTS


def rows_of(evaluation: pd.DataFrame, *groups: str) -> pd.DataFrame:
    """The rows of `groups`. Raises ArtifactError when there are none."""
    rows = evaluation[evaluation["group"].isin(groups)]
    if rows.empty:
        raise ArtifactError(
            f"evaluation: no rows of group {' or '.join(groups)}; run notebooks 02 to 04 at this profile"
        )
    return rows


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
