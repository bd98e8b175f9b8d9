"""Training curves that move in an open notebook while worker processes train; headless, nothing is shown."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lib.training.log import logged_rows

if TYPE_CHECKING:
    from sae_lib.report.figures.live_figure import Curve

HEADLESS_VARIABLE = "SAE_LIB_HEADLESS"
REDRAW_S = 2.0
# Drawing takes time from training, a tenth at most.
LARGEST_SHARE = 1 / 10


def somebody_looks_on() -> bool:
    """Whether this is the kernel of a notebook that a person has open; `SAE_LIB_HEADLESS=1` says that nobody has."""
    if os.environ.get(HEADLESS_VARIABLE):
        return False
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


@contextmanager
def live_curves(methods: Mapping[Path, str], steps: int) -> Iterator[None]:
    """Show the curves of the runs in these folders while the block runs; `methods` says what each is drawn as.

    A thread reads what the runs have logged and redraws every two seconds, if there is something new. When the block
    ends, however it ends, the picture is taken back, so that the cell's output is the same with and without it.
    """
    if not methods or not somebody_looks_on():
        yield
        return
    from IPython.display import display

    watched = _Watched(methods)
    first = watched.curves()
    handle = display(_picture(first, steps), display_id=True)
    ended = threading.Event()
    arguments = (handle, watched, first, steps, ended)
    thread = threading.Thread(target=_redraw, args=arguments, name="live curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        handle.update({}, raw=True)


class _Watched:
    """The runs in some folders; a finished one is read once."""

    def __init__(self, methods: Mapping[Path, str]) -> None:
        self._methods = methods
        self._finished: dict[Path, Curve] = {}

    def curves(self) -> list[Curve]:
        return [self._curve(folder, method) for folder, method in self._methods.items()]

    def _curve(self, folder: Path, method: str) -> Curve:
        from sae_lib.report.figures.live_figure import Curve

        if folder in self._finished:
            return self._finished[folder]
        curve = Curve(method, *logged_rows(folder))
        if curve.finished:
            self._finished[folder] = curve
        return curve


def _redraw(handle: Any, watched: _Watched, shown: list[Curve], steps: int, ended: threading.Event) -> None:
    pause = REDRAW_S
    while not ended.wait(pause):
        curves = watched.curves()
        if curves != shown:
            began = time.thread_time()
            handle.update(_picture(curves, steps))
            shown = curves
            pause = max(REDRAW_S, (time.thread_time() - began) / LARGEST_SHARE)


def _picture(curves: list[Curve], steps: int) -> Any:
    from IPython.display import Image

    from sae_lib.report.figures.live_figure import live_png

    return Image(live_png(curves, steps), format="png")
