"""What a training run says while it trains: TensorBoard events.

They are begun again from the whole history when an interrupted run goes on, so no step stands in them twice, and are no
result: the curves of a finished run are in its `history.parquet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lib.util.files import explain_full_disk

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


@contextmanager
def run_log(folder: Path) -> Iterator[Callable[[dict[str, float]], None]]:
    """The log of one run, around `train_sae`, which calls it with each row of its history.

    A row holds "step" and other named numbers, each of which becomes a point on its curve of the events in `folder`;
    without a row nothing is written. Raises ArtifactError when the disk is full.
    """
    opened = ExitStack()

    @cache
    def events() -> SummaryWriter:
        from tensorboardX import SummaryWriter  # which imports torch; a plan does without

        for old in folder.glob("*tfevents*"):
            old.unlink()
        # A TensorBoard that has read a file which is gone now forgets the steps it knew.
        writer = SummaryWriter(str(folder), purge_step=0)
        opened.callback(writer.close)
        return writer

    def log(row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                events().add_scalar(name, value, int(row["step"]))

    with explain_full_disk(folder), opened:
        yield log
