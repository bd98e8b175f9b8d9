"""One look for every figure, and one way to save it: PDF, PNG and the CSV behind it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.autoencoders.method import GREY, Look
from sae_lib.mechanisms import METHODS
from sae_lib.report.names import METRICS, method_name
from sae_lib.report.statistics import Interval, seeds_of, t_interval
from sae_lib.util.files import atomic_write

COLUMN_WIDTH = 3.4
FULL_WIDTH = 7.0
DARK = "#404040"
TRUE: dict[str, Any] = {"color": DARK, "linewidth": 0.8, "linestyle": "--"}  # the line at a true L0


def look(method: str) -> Look:
    return METHODS[method].look if method in METHODS else Look(GREY, ".", "-")


def set_style() -> None:
    """Seaborn's paper context, ticks; type sizes for a column of 3.4 inches."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
        rc=dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 8)
        | dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize"), 7)
        | dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6)
        | dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False)
        | {"axes.titlelocation": "left", "lines.linewidth": 1.2, "lines.markersize": 4.5}
        | {"figure.dpi": 120, "figure.constrained_layout.use": True, "pdf.fonttype": 42},
    )


def panels(titles: Iterable[str], height: float, lines: int = 1, **more: Any) -> tuple[Figure, np.ndarray]:
    """Panels over the full width, each named '(a) title' above its left edge; `more` goes to `subplots`."""
    named = [f"({letter}) {title}" for letter, title in zip("abcd", titles, strict=False)]
    fig, axes = plt.subplots(lines, len(named) // lines, figsize=(FULL_WIDTH, height), **more)
    for ax, title in zip(axes.flat, named, strict=True):
        ax.set_title(title, loc="left")
    return fig, axes


def legend(fig: Figure, **more: Any) -> None:
    """One legend for all panels, each label once; none without labels."""
    lines = {label: line for ax in fig.axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if lines:
        fig.legend([*lines.values()], [*lines], **({"loc": "outside lower center"} | more))


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), names)


def dot(ax: Axes, interval: Interval, place: float, style: Look, face: str | None = None, **more: Any) -> None:
    """A mean with its interval on a row; a `face` of another colour marks what is no result of a method."""
    if interval.n == 0:
        if face is None:
            ax.text(0.5, place, "not run", ha="center", va="center", fontsize=6, transform=ax.get_yaxis_transform())
        return
    look_of_bar = {"elinewidth": 1.0, "capsize": 0 if face else 2, "markerfacecolor": face or style.color} | more
    arms = [[interval.mean - interval.low], [interval.high - interval.mean]] if math.isfinite(interval.low) else None
    ax.errorbar(interval.mean, place, xerr=arms, fmt=style.marker, color=style.color, **look_of_bar)


class Row(NamedTuple):
    """SAEs that differ in their seed alone, and where they stand; a `face` marks what is no first choice."""

    saes: pd.DataFrame
    place: float
    face: str | None = None


def dot_panels(
    rows: Sequence[Row], names: Sequence[str], metrics: Mapping[str, str], **empty: str
) -> tuple[Figure, np.ndarray]:
    """A panel for each metric (and its title), a row for each name: seeds as small dots, their mean with its interval.
    Intervals that leave the range of all seeds by more than its width are cut; the true L0 is dashed, where it is
    known. `empty` is what a panel says that has nothing to show."""
    fig, axes = panels(metrics.values(), 1.0 + 0.24 * len(names), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        of_rows = [seeds_of(row.saes, metric) for row in rows]
        for row, values in zip(rows, of_rows, strict=True):
            style = look(row.saes["method"].iloc[0])
            ax.scatter(values, [row.place] * len(values), s=5, color=style.color, alpha=0.4, linewidths=0)
            if not empty.get(metric):
                dot(ax, t_interval(values), row.place, style, row.face, markersize=5, elinewidth=0.9, capsize=0)
        if empty.get(metric):
            say(ax, empty[metric])
        known = pd.concat(of_rows)
        if len(known):
            lowest, highest = known.min(), known.max()
            width = max(highest - lowest, 1e-3)
            shown = [i for i in map(t_interval, of_rows) if i.n > 1]
            low = max(min([lowest, *(i.low for i in shown)]), lowest - width)
            high = min(max([highest, *(i.high for i in shown)]), highest + width)
            ax.set_xlim(low - 0.06 * width, high + 0.06 * width)
        ax.set_xlabel(METRICS[metric].axis)
        ax.grid(axis="y", color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
        true = pd.concat([row.saes for row in rows]).get("true_l0")
        if metric == "l0" and true is not None:
            ax.axvline(true.mean(), zorder=0, **TRUE)
    name_rows(axes[0], names)
    return fig, axes


def say(ax: Axes, what: str) -> None:
    words = what.replace(" on this", "\non this")
    ax.text(0.5, 0.5, words, ha="center", va="center", fontsize=7, transform=ax.transAxes)


def curve(ax: Axes, x: Any, y: Any, method: str, **more: Any) -> list[Line2D]:
    """A line in a method's look, which `legend` calls by its name."""
    style = {"color": look(method).color, "marker": look(method).marker, "linestyle": look(method).line}
    return ax.plot(x, y, **({"label": method_name(method)} | style | more))


def log_ticks(axis: Axis) -> None:
    """Plain numbers on a log axis: 1, 2 and 5 of each power of ten; over more than three of them, the powers alone."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def small_panels(methods: Sequence[str], height: float, room: float, **more: Any) -> tuple[Figure, np.ndarray]:
    """A panel for each method, named, at most five side by side; each line of them is `height` inches high, and `room`
    is around them. `more` goes to `subplots`. Tick labels of x stand below the lowest panel of each column."""
    columns = min(5, len(methods))
    lines = -(-len(methods) // columns)
    size = (FULL_WIDTH, room + height * lines)
    fig, axes = plt.subplots(lines, columns, figsize=size, sharex=True, squeeze=False, **more)
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    for place, (ax, method) in enumerate(zip(axes.flat, methods, strict=False)):
        ax.set_title(method_name(method), loc="center", fontsize=7)
        ax.tick_params(labelbottom=place >= len(methods) - columns)
    return fig, axes


def save_figure(fig: Figure, name: str, data: pd.DataFrame, folder: Path | str) -> list[Path]:
    """Write `name`.pdf, `name`.png (200 dpi) and `name`.csv into `folder`, each whole or not at all; returns the paths.
    The same figure gives the same bytes: the PDF carries no date."""
    pdf, png, csv = paths = [Path(folder) / f"{name}.{ending}" for ending in ("pdf", "png", "csv")]
    with atomic_write(pdf, "wb") as file:
        fig.savefig(file, format="pdf", metadata={"CreationDate": None})
    with atomic_write(png, "wb") as file:
        fig.savefig(file, format="png", dpi=200)
    with atomic_write(csv) as file:
        data.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    return paths
