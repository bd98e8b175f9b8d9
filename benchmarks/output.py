"""What a benchmark leaves: `results/<name>.json`, `figures/<name>.png`, and a table on the terminal."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.measure import hardware, hardware_line
from sae_lib.util.files import atomic_write, write_json
from sae_lib.util.paths import ROOT, shown

FOLDER = ROOT / "benchmarks"


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of results/ and figures/")
    parser.add_argument("--threads", type=int, help="default: OMP_NUM_THREADS, or all cores")
    return parser


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, which would break up the tables."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def results_file(folder: Path, name: str) -> Path:
    return folder / "results" / f"{name}.json"


def save(folder: Path, name: str, result: Mapping[str, Any], figure: Figure, text: str) -> None:
    """Write the result with the hardware it was measured on, and its figure; print `text` below that hardware."""
    machine = hardware()
    write_json(results_file(folder, name), {"hardware": machine, **result})
    # Without the version of matplotlib in it, the same numbers give the same file.
    with atomic_write(folder / "figures" / f"{name}.png", "wb") as file:
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    print(f"{hardware_line(machine)}\n\n{text}\n\n{shown(results_file(folder, name))}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its columns padded so that it can be read as it is; numbers stand right.

    >>> print(table(["method", "ms"], [["topk", "8.1"]]))
    | method |  ms |
    |:-------|----:|
    | topk   | 8.1 |
    """
    cells = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(_is_number(row[i]) for row in cells[1:]) and len(cells) > 1 for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in cells
    ]
    rule = "|".join("-" * (w + 1) + ":" if r else ":" + "-" * (w + 1) for w, r in zip(widths, right, strict=True))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def interval(found: Mapping[str, Any], scale: float = 1.0, digits: int = 1) -> str:
    """`median [low, high]` of a `measure.spread`, times `scale`."""
    median, low, high = (f"{found[key] * scale:.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def _is_number(text: str) -> bool:
    return text.lstrip("-")[:1].isdigit() or text in ("", "-")
