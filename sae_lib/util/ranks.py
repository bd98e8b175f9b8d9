"""The processes of one distributed run; alone, a process is rank 0 of 1 and nothing here does anything.

Collectives go through gloo, also on GPUs: what is sent is small, and a rank that waits must not keep its GPU busy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from sae_lib.util.errors import ArtifactError

Value = TypeVar("Value")

PATIENCE = timedelta(days=2)  # for ranks that compute; one that has ended is noticed at once


class LostRank(ArtifactError):
    """Another process of the run has ended before its time. Why, that one says."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes; 1 outside a distributed run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started. Raises LostRank when another ends while this one waits."""
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # gloo's errors have no kind of their own
            raise LostRank("another rank has ended") from error
        raise
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        dist.barrier()


def from_first(make: Callable[[], Value]) -> Value:
    """`make()`, called on rank 0 alone; the others wait and get its (picklable) result."""
    if world() == 1:
        return make()
    sent: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]
