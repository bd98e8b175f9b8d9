"""Many toy SAEs, on several cores, each trained once and then remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from sae_lib.metrics.toy.training import ToyRun, train_and_score
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json, write_json
from sae_lib.util.parallel import begin_worker

Numbers = dict[str, float]
Work = Callable[[ToyRun], Numbers]


class ToyPool:
    """Trains toy SAEs in `workers` processes and keeps what is measured in `folder`, one JSON file per content key.

    An interrupted study goes on where it stopped, and a finished one is instant.

    >>> with ToyPool(folder, workers=2) as pool:      # doctest: +SKIP
    ...     metrics = pool.run(runs)
    """

    def __init__(self, folder: Path | str, workers: int = 1) -> None:
        self.folder, self.workers = Path(folder), workers
        self._known: dict[tuple[Work, ToyRun], Numbers] = {}
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> ToyPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=kind is None, cancel_futures=True)
            self._executor = None

    def run(self, runs: Iterable[ToyRun], description: str = "toy", work: Work = train_and_score) -> list[Numbers]:
        """`work` of each run (its metrics by default), in order; the same run is trained once."""
        runs = list(runs)
        waiting = [run for run in dict.fromkeys(runs) if not self._recall(work, run)]
        with tqdm(total=len(waiting), desc=description, unit="SAE", mininterval=1, disable=not waiting) as bar:
            if self.workers <= 1:
                for run in waiting:
                    self._remember(work, run, work(run))
                    bar.update()
            else:
                futures = {self._submit(work, run): run for run in waiting}
                for future in as_completed(futures):
                    self._remember(work, futures[future], future.result())
                    bar.update()
        return [self._known[work, run] for run in runs]

    def _submit(self, work: Work, run: ToyRun) -> Future[Numbers]:
        if self._executor is None:
            spawn = get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=spawn, initializer=begin_worker)
        return self._executor.submit(work, run)

    def _file(self, work: Work, run: ToyRun) -> Path:
        return self.folder / f"{run.key(work.__name__)[:32]}.json"

    def _remember(self, work: Work, run: ToyRun, numbers: Numbers) -> None:
        self._known[work, run] = numbers
        # Pairs, since names of an object would be sorted: rows and columns stand in one order, fresh or read. JSON has
        # no NaN: a value that is not there is null.
        values = [[name, None if math.isnan(value) else value] for name, value in numbers.items()]
        write_json(self._file(work, run), values)

    def _recall(self, work: Work, run: ToyRun) -> bool:
        """Whether the run was finished before; a damaged file counts as not finished."""
        if (work, run) in self._known:
            return True
        try:
            found = read_json(self._file(work, run))
        except (FileNotFoundError, ArtifactError):
            return False
        self._known[work, run] = {name: math.nan if value is None else value for name, value in found}
        return True
