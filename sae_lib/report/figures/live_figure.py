"""The curves of SAEs while they train.

A thread draws them, so through a figure and its canvas alone: pyplot's state belongs to the main thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.report.figures.style import FULL_WIDTH, log_ticks, look
from sae_lib.report.names import in_order, method_name


class Curve(NamedTuple):
    """One SAE and what it has logged until now: rows with "step", "explained_variance" and "l0"."""

    method: str
    rows: list[dict[str, float]]
    finished: bool


def live_figure(curves: Sequence[Curve], steps: int) -> Figure:
    """Unexplained variance (a) and L0 (b) of each SAE against its step; all end at `steps`.

    One line for each SAE in its method's look; a dot leads those that are not finished, and the others are paler.
    What a log axis has no place for, such as an L0 of 0, is left out.
    """
    fig = Figure(figsize=(FULL_WIDTH, 2.6), dpi=120, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, 2)
    handles: dict[str, Line2D] = {}
    for curve in curves:
        step, explained, l0 = (
            np.array([row[name] for row in curve.rows]) for name in ("step", "explained_variance", "l0")
        )
        for ax, values in zip(axes, (1 - explained, l0), strict=True):
            _draw(ax, step[values > 0], values[values > 0], curve)
        handles[curve.method] = Line2D([], [], **_line(curve), label=method_name(curve.method))
    done = sum(curve.finished for curve in curves)
    _label(axes[0], steps, "(a) reconstruction", "1 − explained variance\n(lower is better)")
    title = f"(b) sparsity · {done} of {len(curves)} SAEs trained"
    _label(axes[1], steps, title, "L0, active latents per token\n(fewer is sparser)")
    fig.legend(
        handles=[handles[method] for method in in_order([*handles])],
        loc="outside right center", handlelength=3.2, fontsize=7, frameon=False,
    )  # fmt: skip
    sns.despine(fig)
    return fig


def live_png(curves: Sequence[Curve], steps: int) -> bytes:
    """`live_figure` as a PNG."""
    picture = BytesIO()
    live_figure(curves, steps).savefig(picture, format="png")
    return picture.getvalue()


def _draw(ax: Axes, step: np.ndarray, values: np.ndarray, curve: Curve) -> None:
    ax.plot(step, values, **_line(curve), alpha=0.35 if curve.finished else 1.0)
    if len(step) and not curve.finished:
        ax.plot(step[-1], values[-1], "o", color=look(curve.method).color, markersize=3.5)


def _line(curve: Curve) -> dict[str, Any]:
    style = look(curve.method)
    return {"color": style.color, "linestyle": style.line, "linewidth": 1.2}


def _label(ax: Axes, steps: int, title: str, quantity: str) -> None:
    # Sizes are said here: the reader's notebook may not have called `style.set_style`.
    ax.set(yscale="log", xlim=(0, steps))
    ax.set_title(title, loc="left", fontsize=8)
    ax.set_xlabel("optimiser step", fontsize=8)
    ax.set_ylabel(quantity, fontsize=8)
    log_ticks(ax.yaxis)
    ax.tick_params(labelsize=7)
