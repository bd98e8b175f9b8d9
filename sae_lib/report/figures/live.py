"""Training curves that move in an open notebook while worker processes train; headless, nothing is shown."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lib.training.log import Row, logged_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLESS_VARIABLE = "SAE_LIB_HEADLESS"
REDRAW_S = 5.0


def somebody_looks_on() -> bool:
    """Whether this is the kernel of a notebook that a person has open; `SAE_LIB_HEADLESS=1` says that nobody has."""
    if os.environ.get(HEADLESS_VARIABLE):
        return False
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


@contextmanager
def live_curves(methods: Mapping[Path, str], steps: int) -> Iterator[None]:
    """Show the curves of the SAEs that train in these folders while the block runs; `methods` says what each is.

    A thread reads what they have logged and redraws every five seconds, if there is something new. When the block
    ends, however it ends, the picture is taken back, so that the cell's output is the same with and without it.
    """
    if not methods or not somebody_looks_on():
        yield
        return
    from IPython.display import display

    handle, ended = display(_picture([], steps), display_id=True), threading.Event()
    thread = threading.Thread(target=_redraw, args=(handle, methods, steps, ended), name="live curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        handle.update({}, raw=True)


def _redraw(handle: Any, methods: Mapping[Path, str], steps: int, ended: threading.Event) -> None:
    shown: list[tuple[str, list[Row]]] = []
    while not ended.wait(REDRAW_S):
        curves = [(method, rows) for folder, method in methods.items() if (rows := logged_rows(folder))]
        if curves != shown:
            handle.update(_picture(curves, steps))
            shown = curves


def _picture(curves: list[tuple[str, list[Row]]], steps: int) -> Any:
    from IPython.display import Image

    picture = BytesIO()
    live_figure(curves, steps).savefig(picture, format="png")
    return Image(picture.getvalue(), format="png")


def live_figure(curves: list[tuple[str, list[Row]]], steps: int) -> Figure:
    """Unexplained variance (a) and L0 (b) of each SAE against its step, in its method's look; all end at `steps`.

    Drawn through a figure and its canvas alone: pyplot's state belongs to the main thread.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sae_lib.report.figures.style import FULL_WIDTH, look
    from sae_lib.report.names import method_name

    fig = Figure(figsize=(FULL_WIDTH, 2.6), dpi=120, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, 2)
    named = {}
    for method, rows in curves:
        step, style = [row["step"] for row in rows], look(method)
        for ax, values in zip(
            axes, ([1 - row["explained_variance"] for row in rows], [row["l0"] for row in rows]), strict=True
        ):
            (named[method_name(method)],) = ax.plot(step, values, color=style.color, linestyle=style.line)
    axes[0].set_ylabel("1 − explained variance\n(lower is better)")
    axes[1].set_ylabel("L0, active latents per token\n(fewer is sparser)")
    for ax in axes:
        ax.set(yscale="log", xlim=(0, steps), xlabel="optimiser step")
    fig.legend([*named.values()], [*named], loc="outside right center", frameon=False)
    return fig
