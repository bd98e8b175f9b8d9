"""How what two runs made differs, but for the times in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd


def compare(expected: Path, found: Path) -> list[str]:
    """How two output folders differ, but for times: a line for each file."""
    names = {file.relative_to(folder) for folder in (expected, found) for file in folder.rglob("*") if file.is_file()}
    lines = []
    for name in sorted(names):
        there = [(folder / name).is_file() for folder in (expected, found)]
        if name.name == ".lock" or "tfevents" in name.name:  # empty, and named and filled by the clock
            continue
        if not all(there):
            lines.append(f"{name} is {'missing' if there[0] else 'too many'}")
        elif comparable(expected / name) != comparable(found / name):
            lines.append(f"{name} differs")
    return lines


# Fields that hold a time, or the sha256 of a file with a time in it.
TIMES = frozenset({"seconds", "changed", "results/evaluation_main.parquet", "results/03.json"})


def comparable(file: Path) -> bytes:
    """The content of a file; of JSON without the fields that are times, of the table of scores without
    `train_seconds`."""
    if file.name == "evaluation_main.parquet":
        return pd.read_parquet(file).drop(columns="train_seconds").to_csv().encode()
    if file.suffix == ".json":
        return json.dumps(_without_times(json.loads(file.read_text(encoding="utf8"))), sort_keys=True).encode()
    return file.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(each) for name, each in value.items() if name not in TIMES}
    return [_without_times(each) for each in value] if isinstance(value, list) else value
