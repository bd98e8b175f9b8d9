"""What a training run says while it trains: TensorBoard events. They are begun again from the whole history when an
interrupted run goes on, so that no step stands in them twice, and are no result: curves are in `history.parquet`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tensorboardX import SummaryWriter

from sae_lib.training.trainer import Trainer
from sae_lib.util.files import explain_writing


@contextmanager
def run_log(folder: Path) -> Iterator[Callable[[Trainer], None]]:
    """The log of one run, around `train_sae`, which it watches: each number of a row of the history becomes a point of
    the events in `folder`. Raises ArtifactError when the disk is full."""
    opened: list[SummaryWriter] = []
    logged = 0

    def watch(trainer: Trainer) -> None:
        nonlocal logged
        if not opened:
            for old in folder.glob("*tfevents*"):
                old.unlink()
            # A TensorBoard that has read a file which is gone now forgets the steps it knew.
            opened.append(SummaryWriter(str(folder), purge_step=0))
        for row in trainer.history[logged:]:
            for name, value in row.items():
                if name != "step":
                    opened[0].add_scalar(name, value, int(row["step"]))
        logged = len(trainer.history)

    with explain_writing(folder):
        try:
            yield watch
        finally:
            for writer in opened:
                writer.close()
