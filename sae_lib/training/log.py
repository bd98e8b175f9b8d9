"""What a training run says while it trains: `progress.jsonl` in its folder, and TensorBoard events.

Both are begun again from the whole history when an interrupted run goes on, so no step stands in them twice. Neither is
a result: the curves of a finished run are in its `history.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sae_lib.util.files import explain_full_disk

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

PROGRESS_FILE = "progress.jsonl"
Row = dict[str, float]


@contextmanager
def run_log(folder: Path, events: Path) -> Iterator[Callable[[Row], None]]:
    """The log of one run, around `train_sae`, which calls it with each row of its history.

    A row holds "step" and other named numbers. It becomes a line of `folder / "progress.jsonl"` at once, and a point on
    each curve of the events in `events`; without a row nothing is written. When the block ends well,
    `progress.jsonl` is removed; that of a run that was broken off stays.

    Raises ArtifactError when the disk is full.
    """
    opened = ExitStack()

    @cache
    def files() -> tuple[IO[str], SummaryWriter]:
        from tensorboardX import SummaryWriter  # which imports torch; a plan does without

        for old in events.glob("*tfevents*"):
            old.unlink()
        progress = opened.enter_context((folder / PROGRESS_FILE).open("w", encoding="utf-8"))
        # A TensorBoard that has read a file which is gone now forgets the steps it knew.
        writer = SummaryWriter(str(events), purge_step=0)
        opened.callback(writer.close)
        return progress, writer

    def log(row: Row) -> None:
        progress, writer = files()
        progress.write(json.dumps(row) + "\n")
        progress.flush()
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))

    with explain_full_disk(folder), opened:
        yield log
    forget_progress(folder)


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
