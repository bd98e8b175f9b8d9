"""The processes of one distributed run, and how they share work out.

Alone, which is how notebooks run, a process is rank 0 of 1 and nothing here does anything. `study.distributed` starts
several with torchrun; each of them calls `joined`. Collectives go through gloo, also on GPUs: what is sent here is
small, and a rank that waits must not keep its GPU busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sae_lib.util.errors import ArtifactError

if TYPE_CHECKING:
    from torch.distributed import Store

Value = TypeVar("Value")

# A rank waits this long for the others: rank 0 may compute references alone for hours, and one rank's SAE may take much
# longer than another's. A rank that has ended is noticed at once, by its closed connection.
PATIENCE = timedelta(days=2)


class LostRank(ArtifactError):
    """Another process of the run has ended before its time. Why, that one says."""


class _Run:
    """What this process knows of the run it has joined."""

    rank = 0
    world = 1
    store: Store | None = None
    counters = 0


def rank() -> int:
    """The number of this process, from 0."""
    return _Run.rank


def world() -> int:
    """The number of processes; 1 outside a distributed run."""
    return _Run.world


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started; outside the block, a process is alone again.

    Raises LostRank when another of them ends while this one waits for it.
    """
    import torch.distributed as dist

    _Run.store, _Run.rank, _Run.world = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group("gloo", store=_Run.store, rank=_Run.rank, world_size=_Run.world, timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # gloo's errors have no kind of their own
            raise LostRank("another rank has ended") from error
        raise
    finally:
        _Run.store, _Run.rank, _Run.world, _Run.counters = None, 0, 1, 0
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if _Run.world > 1:
        import torch.distributed as dist

        dist.barrier()


def from_first(make: Callable[[], Value]) -> Value:
    """`make()`, called on rank 0 alone; the others wait and get its (picklable) result."""
    if _Run.world == 1:
        return make()
    import torch.distributed as dist

    sent: list[Any] = [make() if _Run.rank == 0 else None]
    dist.broadcast_object_list(sent, src=0)
    value: Value = sent[0]
    return value


class Counter:
    """A count that all ranks share. Every rank makes its counters in the same order."""

    def __init__(self) -> None:
        self._name, self._count = f"sae_lib/counter/{_Run.counters}", 0
        _Run.counters += 1

    def add(self, amount: int) -> int:
        """The count after `amount` was added."""
        if _Run.store is None:
            self._count += amount
            return self._count
        return int(_Run.store.add(self._name, amount))
