"""What a training run says while it trains: `progress.jsonl` in its folder, and TensorBoard events.

Both are begun again from the whole history when an interrupted run goes on, so no step stands in them twice. Neither is
a result: the curves of a finished run are in its `history.parquet`.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from sae_lib.util.files import explain_full_disk

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

PROGRESS_FILE = "progress.jsonl"
Row = dict[str, float]


class RunLog:
    """The log of one run: a context manager around `train_sae`, which calls it with each row of its history.

    A row holds "step" and other named numbers. It becomes a line of `folder / "progress.jsonl"` at once, and a point on
    each curve of the events in `events`; without a row nothing is written. When the block ends well,
    `progress.jsonl` is removed; that of a run that was broken off stays.

    Raises ArtifactError when the disk is full.
    """

    def __init__(self, folder: Path, events: Path) -> None:
        self._folder, self._events_folder = folder, events
        self._progress: IO[str] | None = None
        self._events: SummaryWriter | None = None

    def __enter__(self) -> RunLog:
        return self

    def __call__(self, row: Row) -> None:
        with explain_full_disk(self._folder):
            if self._progress is None or self._events is None:
                from tensorboardX import SummaryWriter  # which imports torch; a plan does without

                for old in self._events_folder.glob("*tfevents*"):
                    old.unlink()
                self._progress = (self._folder / PROGRESS_FILE).open("w", encoding="utf-8")
                # A TensorBoard that has read a file which is gone now forgets the steps it knew.
                self._events = SummaryWriter(str(self._events_folder), purge_step=0)
            self._progress.write(json.dumps(row) + "\n")
            self._progress.flush()
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(row["step"]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with explain_full_disk(self._folder):
            try:
                if self._events is not None:
                    self._events.close()
            finally:
                if self._progress is not None:
                    self._progress.close()
        if kind is None:
            forget_progress(self._folder)


def forget_progress(folder: Path) -> None:
    """Remove the `progress.jsonl` of a finished run, if it has one."""
    (folder / PROGRESS_FILE).unlink(missing_ok=True)


def logged_rows(folder: Path) -> list[Row]:
    """The rows that a run under way has logged until now; none before it begins and once it is finished.

    A last line without an end, torn by a kill or being written, is left out.
    """
    try:
        lines = (folder / PROGRESS_FILE).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines[:-1]]
