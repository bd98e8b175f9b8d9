"""Whether a change leaves every result as it was: two commits run a profile here, and their tables are compared.

    python -m tests.same_results --base HEAD~3      # runs both at smoke; `make same-results BASE=HEAD~3`
    python -m tests.same_results --folders one/results other/results  # compares what two runs have left

Equal means the same bits in every column but those that hold times and the names of run folders. Rows and columns may
stand in another order: what is compared is the table, not the file. Two makes of processor give different last bits, so
a comparison is of one machine. Where `--base` finds the same results, `stage_code.json` is recorded anew.
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


def differences(one: Path, other: Path) -> list[str]:
    """One line for each table of two `results` folders that is missing in one or differs."""
    files = [{file.name: file for file in folder.glob("*.parquet")} for folder in (one, other)]
    if not any(files):
        return [f"no tables in {one} and {other}"]
    lines = [f"{name}: in one of them only" for name in sorted(files[0].keys() ^ files[1].keys())]
    for name in sorted(files[0].keys() & files[1].keys()):
        if found := table_difference(*(pd.read_parquet(each[name]) for each in files)):
            lines.append(f"{name}: {found}")
    return lines


def table_difference(one: pd.DataFrame, other: pd.DataFrame) -> str | None:
    """The first difference of two tables in words, or None."""
    if odd := (set(one) ^ set(other)) - NOT_COMPARED:
        return f"columns {', '.join(sorted(odd))} are in one of them only"
    if len(one) != len(other):
        return f"{len(one)} rows and {len(other)}"
    # What names a row comes first, so that rows are told apart by it.
    columns = sorted(set(one) - NOT_COMPARED, key=lambda column: (one[column].dtype.kind == "f", column))
    # As text, which is exact: a number's shortest decimal that reads back as its own bits, and -0.0 is not 0.0.
    rows = [sorted(zip(*(map(_exact, table[column]) for column in columns), strict=True)) for table in (one, other)]
    for a, b in zip(*rows, strict=True):
        for column, mine, its in zip(columns, a, b, strict=True):
            if mine != its:
                return f"column {column}: {mine} and {its}, in the row that begins with {', '.join(a[:4])}"
    return None


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


def compare_with(base: str, profile: str) -> list[str]:
    """Run the commit `base` and the working tree, each from nothing; what differs."""
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", code, base], check=True)
        try:
            return differences(run(code, profile, Path(folder, "base")), run(ROOT, profile, Path(folder, "here")))
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
    found = differences(*given.folders) if given.folders else compare_with(given.base, given.profile)
    if given.base and not found:
        record()
    print("\n".join(found) or "the same bits in every table")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
