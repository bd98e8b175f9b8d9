"""How long the notebooks still take."""

from collections.abc import Mapping, Sequence

from sae_lib.study.notebooks import duration
from sae_lib.study.up_to_date import Stage


class TimeLeft:
    """Estimated time of the notebooks still to run, corrected by how those that ran compare with theirs."""

    def __init__(self, stages: Sequence[Stage], seconds: Mapping[str, float]) -> None:
        self._waiting = {stage.name: seconds.get(stage.name.partition("_")[0], 0.0) for stage in stages}
        self._estimated = self._measured = 0.0

    def skip(self, stage: Stage) -> None:
        self._waiting.pop(stage.name)

    def done(self, stage: Stage, seconds: float) -> None:
        self._estimated += self._waiting.pop(stage.name)
        self._measured += seconds

    def expected(self, stage: Stage) -> str:
        return f"; about {duration(self._waiting[stage.name])}" if self._waiting[stage.name] else ""

    def left(self) -> str:
        # Within a factor of three: a notebook that found its work half done says little about the next one.
        ratio = self._measured / self._estimated if self._estimated else 1.0
        seconds = sum(self._waiting.values()) * min(3.0, max(1 / 3, ratio))
        return f"; about {duration(seconds)} left" if seconds else ""
