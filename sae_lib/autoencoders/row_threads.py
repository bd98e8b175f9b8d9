"""NumPy's passes over a matrix on as many threads as PyTorch has, each over rows of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def of_rows(function: Callable[[slice], Result], count: int) -> list[Result]:
    """`function` of consecutive slices that cover `count` rows, in order. NumPy's loops do not hold Python's lock."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [function(slice(0, count))]
    bounds = [i * count // threads for i in range(threads + 1)]
    return list(_pool(threads).map(function, map(slice, bounds[:-1], bounds[1:])))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
