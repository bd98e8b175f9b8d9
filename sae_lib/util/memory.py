"""How much memory is free, and whether something fits into it."""

import ctypes
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sae_lib.util.errors import ArtifactError

# (limit, usage) of a container, control groups version 2 and version 1.
CONTAINER_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
ADDRESSES = 2 * 2**30  # what a process that has imported everything has mapped
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, in glibc's malloc.h


def keep_freed_memory() -> None:
    """From now on this process keeps up to 2 GiB of what it frees for what it asks for next. glibc gives larger blocks
    back at once, and touching new pages is a quarter to a third of a training step whose latents are dense."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def readable_bytes(count: float) -> str:
    """A number of bytes as people read it, such as 5.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def portions(sizes: Iterable[int], most: int) -> Iterator[slice]:
    """Consecutive things whose sizes are at most `most` together; at least one thing each.

    >>> [*portions([3, 1, 2, 9], 5)]
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    first, end, total = 0, 0, 0
    for end, size in enumerate(sizes, 1):
        if end - 1 > first and total + size > most:
            yield slice(first, end - 1)
            first, total = end - 1, 0
        total += size
    if end:
        yield slice(first, end)


def free_memory(device: str) -> int:
    """Bytes free on `device` ("cpu", "cuda"): on CPU what the machine and its container both allow."""
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, usage in CONTAINER_LIMITS:
        try:
            free = min(free, int(limit.read_text()) - int(usage.read_text()))
        except (OSError, ValueError):  # no such container, or its limit is the word "max"
            continue
    return max(free, 0)


def require_address_space() -> None:
    """Raises ArtifactError for a limit (`ulimit -v`) below which libraries end without a word while they load."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY and allowed < ADDRESSES:
        has = f"this shell allows a process {readable_bytes(allowed)} of addresses (ulimit -v)"
        fix = "raise it, or take it off with ulimit -v unlimited"
        raise ArtifactError(f"memory: {has}, and {readable_bytes(ADDRESSES)} are needed to begin; {fix}")
