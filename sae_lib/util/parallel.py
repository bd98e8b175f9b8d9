"""Work on many SAEs at a time: by worker processes on one core each, or by the ranks of a distributed run."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from sae_lib.util import ranks
from sae_lib.util.errors import ArtifactError
from sae_lib.util.memory import keep_freed_memory

Job = TypeVar("Job")
Work = Callable[[Any, list[Job]], None]


def for_each(work: Work[Job], owner: Any, jobs: Sequence[list[Job]], workers: int, description: str) -> None:
    """Call `work(owner, job)` for each job, a list of things done together; the first failure ends it.

    One worker is this process, with all its cores; others get a copy of `owner`. In a distributed run the jobs of
    rank 0 are dealt out, and every rank returns when all are done.
    """
    jobs = ranks.from_first(lambda: jobs)[ranks.rank() :: ranks.world()]
    total = sum(len(job) for job in jobs)
    with tqdm(total=total, desc=description, unit="SAE", mininterval=1, disable=not jobs or ranks.rank() > 0) as bar:
        if ranks.world() > 1 or min(workers, len(jobs)) <= 1:
            for job in jobs:
                work(owner, job)
                bar.update(len(job))
        else:
            _by_processes(work, owner, jobs, workers, bar)
    ranks.barrier()


def _by_processes(work: Work[Job], owner: Any, jobs: Sequence[list[Job]], workers: int, bar: "tqdm[Any]") -> None:
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=begin_worker)
    with pool:
        futures = {pool.submit(work, owner, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                bar.update(len(futures[future]))
        except BrokenProcessPool:
            script = 'in a script, what it does belongs under `if __name__ == "__main__":`, since workers import it'
            fault = f"a worker process ended at once or was killed; {script}"
            fix = "else see whether memory was short, and set training.workers to 1"
            raise ArtifactError(f"training.workers: {fault}; {fix}") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begin_worker() -> None:
    """One core for each worker; and a worker ends when its parent is gone, killed without a chance to say so."""
    use_one_core()
    keep_freed_memory()
    end_with_parent()


def use_one_core() -> None:
    """One thread in every pool of this process, also NumPy's and scikit-learn's: workers must not wait for cores."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # for what is loaded later
    threadpool_limits(1)  # and for what is loaded already
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """End this process soon after its parent has ended."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


_KEPT: dict[str, Any] = {}


def kept(owner: object, name: str, make: Callable[[], Any]) -> Any:
    """`make()`, once in this process for one owner: its jobs share what is costly to open. Owners are compared by
    content, so that nothing of a profile outlives an edit of it."""
    if _KEPT.get("owner") != owner:
        _KEPT.clear()
        _KEPT["owner"] = owner
    if name not in _KEPT:
        _KEPT[name] = make()
    return _KEPT[name]
