"""Whether a change leaves every result as it was: two commits run a profile here, and their tables are compared.

    python -m tests.same_results --base HEAD~3      # runs both at smoke; `make same-results BASE=HEAD~3`
    python -m tests.same_results --folders one/results other/results  # compares what two runs have left

Equal means the same bits in every column but those that hold times and the names of run folders. Rows and columns may
stand in another order: what is compared is the table, not the file. Two makes of processor give different last bits, so
a comparison is of one machine. What a change adds, tables, columns and groups of runs, is told and is no difference.
Where `--base` finds the same results, `stage_code.json` is recorded anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from tests.stages import record

ROOT = Path(__file__).resolve().parent.parent
NOT_COMPARED = {"train_seconds", "seconds", "run"}


def differences(before: Path, after: Path) -> list[str]:
    """One line for each table of `results` folders that is lost in the second or differs."""
    was, now = _tables(before), _tables(after)
    if not was or not now:
        return [f"no tables in {after if was else before}"]
    lines = [f"{name}: lost" for name in was.keys() - now.keys()]
    lines += [
        f"{name}: {found}" for name in was.keys() & now.keys() if (found := table_difference(was[name], now[name]))
    ]
    return sorted(lines)


def additions(before: Path, after: Path) -> list[str]:
    """One line for the tables, and for columns and groups of runs of a table, that only the second folder has."""
    was, now = _tables(before), _tables(after)
    lines = [f"{name}: new" for name in now.keys() - was.keys()]
    for name in was.keys() & now.keys():
        if columns := set(now[name]) - set(was[name]) - NOT_COMPARED:
            lines.append(f"{name}: new columns {', '.join(sorted(columns))}")
        if groups := _groups(now[name]) - _groups(was[name]):
            lines.append(f"{name}: new rows of {', '.join(sorted(groups))}")
    return sorted(lines)


def table_difference(before: pd.DataFrame, after: pd.DataFrame) -> str | None:
    """The first difference of two tables in words, or None; the second may have further columns and groups of runs."""
    if lost := set(before) - set(after) - NOT_COMPARED:
        return f"lost columns {', '.join(sorted(lost))}"
    if "group" in before:
        after = after[~after["group"].isin(_groups(after) - _groups(before))]
    if len(before) != len(after):
        return f"{len(before)} rows and {len(after)}"
    # What names a row comes first, so that rows are told apart by it.
    columns = sorted(set(before) - NOT_COMPARED, key=lambda column: (before[column].dtype.kind == "f", column))
    # As text, which is exact: a number's shortest decimal that reads back as its own bits, and -0.0 is not 0.0.
    rows = [sorted(zip(*(map(_exact, table[column]) for column in columns), strict=True)) for table in (before, after)]
    for a, b in zip(*rows, strict=True):
        for column, mine, its in zip(columns, a, b, strict=True):
            if mine != its:
                return f"column {column}: {mine} and {its}, in the row that begins with {', '.join(a[:4])}"
    return None


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {file.name: pd.read_parquet(file) for file in folder.glob("*.parquet")}


def _groups(table: pd.DataFrame) -> set[str]:
    return set(table["group"]) if "group" in table else set()


def _exact(value: object) -> str:
    return "missing" if value is None or value != value else str(value)


def run(root: Path, profile: str, output: Path) -> Path:
    """Run a profile with the code in `root`; returns its `results` folder."""
    # The environment's own link leads kernels to another checkout; a path of theirs comes first.
    environment = os.environ | {"SAE_LIB_OUTPUT": str(output), "PYTHONPATH": str(root)}
    subprocess.run(
        [sys.executable, "-m", "sae_lib", "run", "--profile", profile], cwd=root, env=environment, check=True
    )
    return output / profile / "results"


def compare(before: Path, after: Path) -> int:
    """Print what was added and what differs; 1 where something differs."""
    found = differences(before, after)
    print("\n".join(additions(before, after) + (found or ["the same bits in everything that both have"])))
    return 1 if found else 0


def compare_with(base: str, profile: str) -> int:
    """Run the commit `base` and the working tree, each from nothing, and compare them."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        added = subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", code, base], check=False)
        if added.returncode:  # git has said why
            print(f"error: BASE={base}: git gives no such commit", file=sys.stderr)
            return 1
        try:
            return compare(run(code, profile, Path(folder, "base")), run(ROOT, profile, Path(folder, "here")))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", code], check=True)


def main() -> int:
    """Command line; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_results")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--base", help="the commit to compare the working tree with")
    asked.add_argument("--folders", nargs=2, type=Path, metavar="RESULTS")
    parser.add_argument("--profile", default="smoke")
    given = parser.parse_args()
    if given.folders:
        return compare(*given.folders)
    status = compare_with(given.base, given.profile)
    if status == 0:
        record()
    return status


if __name__ == "__main__":
    sys.exit(main())
