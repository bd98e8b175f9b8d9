"""What a training run says while it trains: `progress.jsonl` in its folder, and a TensorBoard event file.

Both are begun again from the whole history when an interrupted run goes on, so no step stands in them twice. Neither is
a result: the curves of a finished run are in its `history.parquet`.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from sae_lib.util.files import explain_full_disk

if TYPE_CHECKING:
    from sae_lib.training.event_file import EventFile

PROGRESS_FILE = "progress.jsonl"
HISTORY_FILE = "history.parquet"
Row = dict[str, float]


class RunLog:
    """The log of one run: a context manager around `train_sae`, which calls it with each row of its history.

    A row holds "step" and other named numbers. It becomes a line of `folder / "progress.jsonl"` at once, and a point on
    each curve of the event file in `events`; without a row nothing is written. When the block ends well,
    `progress.jsonl` is removed; that of a run that was broken off stays.

    Raises ArtifactError when the disk is full.
    """

    def __init__(self, folder: Path, events: Path) -> None:
        self._folder, self._events_folder = folder, events
        self._progress: IO[str] | None = None
        self._events: EventFile | None = None

    def __enter__(self) -> RunLog:
        return self

    def __call__(self, row: Row) -> None:
        with explain_full_disk(self._folder):
            if self._progress is None or self._events is None:
                from sae_lib.training.event_file import (
                    EventFile,  # tensorboardX imports torch, which a plan does without
                )

                self._progress = (self._folder / PROGRESS_FILE).open("w", encoding="utf-8")
                self._events = EventFile(self._events_folder)
            self._progress.write(json.dumps(row) + "\n")
            self._progress.flush()
            self._events.scalars(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with explain_full_disk(self._folder), ExitStack() as closing:
            for file in (self._progress, self._events):
                if file is not None:
                    closing.callback(file.close)
        if kind is None:
            forget_progress(self._folder)


def forget_progress(folder: Path) -> None:
    """Remove the `progress.jsonl` of a finished run, if it has one."""
    (folder / PROGRESS_FILE).unlink(missing_ok=True)


def logged_rows(folder: Path) -> tuple[list[Row], bool]:
    """The rows that a run has logged until now, none before it begins; and whether it is finished.

    A last line of `progress.jsonl` without an end, torn by a kill or being written, is left out.
    """
    try:
        lines = (folder / PROGRESS_FILE).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]], False
    except FileNotFoundError:
        if not (folder / HISTORY_FILE).is_file():
            return [], False
    import pandas as pd

    history = pd.read_parquet(folder / HISTORY_FILE)
    return [{str(name): value for name, value in row.items()} for row in history.to_dict("records")], True
