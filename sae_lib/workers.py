"""Work on many SAEs, several at a time, each worker process on one core."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

Job = TypeVar("Job")


def for_each(
    work: Callable[[str, list[Job]], None],
    source: str,
    jobs: Sequence[list[Job]],
    workers: int,
    description: str,
) -> None:
    """Call `work(source, job)` for each job, a list of things done together; the first failure ends it.

    With one worker everything happens in this process, and on all its cores.
    """
    total = sum(len(job) for job in jobs)
    with tqdm(total=total, desc=description, unit="SAE", mininterval=1, disable=not jobs) as bar:
        if min(workers, len(jobs)) <= 1:
            for job in jobs:
                work(source, job)
                bar.update(len(job))
            return
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=begin_worker)
        with pool:
            futures = {pool.submit(work, source, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update(len(futures[future]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def begin_worker() -> None:
    """One core for each worker; and a worker ends when its parent is gone, killed without a chance to say so.

    NumPy, SciPy and scikit-learn bring thread pools of their own: two workers that each use all cores wait for each
    other most of the time.
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # for what is loaded later
    threadpool_limits(1)  # and for what is loaded already
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


_KEPT: dict[str, Any] = {}


def kept(source: str, name: str, make: Callable[[], Any]) -> Any:
    """`make()`, once in this process for one source: a worker's jobs share what is costly to open."""
    if _KEPT.get("source") != source:
        _KEPT.clear()
        _KEPT["source"] = source
    if name not in _KEPT:
        _KEPT[name] = make()
    return _KEPT[name]
