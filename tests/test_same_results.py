"""The comparison of two runs: the same bits in another order are the same, one other bit is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.same_results import additions, compare_with, differences

TABLE = pd.DataFrame({"method": ["atm", "topk"], "l0": [0.1 + 0.2, np.nan], "seed": [1, 2], "run": ["a", "b"]})


def test_a_base_that_is_no_commit(capfd: pytest.CaptureFixture[str]) -> None:
    assert compare_with("nosuchcommit", "smoke") == 1
    assert "error: BASE=nosuchcommit: git gives no such commit" in capfd.readouterr().err


def left(folder: Path, **tables: pd.DataFrame) -> Path:
    folder.mkdir()
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder


def test_order_and_run_folders_are_no_difference(tmp_path: Path) -> None:
    turned = TABLE.iloc[::-1][["seed", "l0", "method"]].assign(seconds=3.0)
    assert differences(left(tmp_path / "one", t=TABLE), left(tmp_path / "other", t=turned)) == []


@pytest.mark.parametrize(
    "change, told",
    [
        (TABLE.assign(l0=[0.3, np.nan]), "t.parquet: column l0: 0.30000000000000004 and 0.3, in the row that begins"),
        (TABLE.assign(l0=[0.1 + 0.2, 0.0]), "t.parquet: column l0: missing and 0.0"),
        (TABLE.drop(columns="l0"), "t.parquet: lost columns l0"),
        (TABLE.iloc[:1], "t.parquet: 2 rows and 1"),
    ],
)
def test_a_difference_is_told(tmp_path: Path, change: pd.DataFrame, told: str) -> None:
    [line] = differences(left(tmp_path / "one", t=TABLE), left(tmp_path / "other", t=change))
    assert line.startswith(told)


def test_a_lost_table_is_told(tmp_path: Path) -> None:
    one, other = left(tmp_path / "one", t=TABLE), left(tmp_path / "other", t=TABLE, u=TABLE)
    assert differences(other, one) == ["u.parquet: lost"]
    assert differences(one, left(tmp_path / "none")) == [f"no tables in {tmp_path / 'none'}"]


def test_what_is_added_is_told_and_is_no_difference(tmp_path: Path) -> None:
    old = TABLE.assign(group="main")
    new = pd.concat([old, TABLE.assign(group="control")]).assign(more=1)
    one, other = left(tmp_path / "one", t=old), left(tmp_path / "other", t=new, u=TABLE)
    assert differences(one, other) == []
    assert additions(one, other) == ["t.parquet: new columns more", "t.parquet: new rows of control", "u.parquet: new"]
    changed = left(tmp_path / "changed", t=pd.concat([new, old.assign(more=1)]))
    assert differences(one, changed) == ["t.parquet: 2 rows and 4"]
