"""Pareto figure: what each method gives at each L0."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.report.figures.style import curve, log_ticks, look, panels, say
from sae_lib.report.names import METRICS, in_order
from sae_lib.report.results import by_method, why_empty
from sae_lib.report.statistics import Interval, seeds_of, t_interval
from sae_lib.report.tables.sweep import MAIN_LEVEL, SWEEP_METRICS, curves

AS_WRITTEN = "as written"
# A curve's values below these, and the papers' own SAEs below the curves, stand at the edge of the axis with the value
# beside: one collapsed SAE would push all others into a corner.
FLOORS = {"explained_variance": 0.0, "ce_score": 0.0}


def pareto_figure(evaluation: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption, explained variance, CE score and sparse probing against L0, one curve per method. A marker is the
    mean of a level's SAEs, large at the level of the main table, with its 95 % t interval (the seeds' own there, from
    the pooled spread elsewhere); hollow, without a line, the papers' own coefficients."""
    data = _points(evaluation)
    fig, grid = panels(("absorption", "reconstruction", "behaviour", "sparse probing"), 5.6, lines=2, sharex=True)
    for ax, metric in zip(grid.flat, SWEEP_METRICS, strict=True):
        of_metric = data[data["metric"] == metric]
        edge = _axis(ax, of_metric, metric, why_empty(evaluation, metric))
        for method, part in by_method(of_metric).items():
            _draw(ax, part, method, edge)
    for ax in grid[1]:
        ax.set_xlabel("L0 (active latents per token)")
    log_ticks(grid[0, 0].xaxis)
    trained = in_order([*data.loc[data["level"] != AS_WRITTEN, "method"]])
    handles = [curve(grid[0, 0], [], [], m, linewidth=0.9)[0] for m in trained]
    if (data["level"] == AS_WRITTEN).any():
        note = "papers' own coefficients"
        handles.append(Line2D([], [], color="black", marker="o", markerfacecolor="none", linestyle="", label=note))
    fig.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=3.4)
    return fig, data


def _points(evaluation: pd.DataFrame) -> pd.DataFrame:
    points: list[tuple[str, str, str, float, Interval]] = []
    written = by_method(evaluation[evaluation["group"] == "as_written"])
    for metric in (metric for metric in SWEEP_METRICS if metric in evaluation):
        points += [
            (method, level.label, metric, math.exp(level.log_l0), of_method.at_level(level))
            for method, of_method in curves(evaluation, metric).items()
            for level in of_method.levels
        ]
        points += [
            (method, AS_WRITTEN, metric, t_interval(seeds_of(part, "l0")).mean, t_interval(seeds_of(part, metric)))
            for method, part in written.items()
        ]
    known = [(*where, l0, *interval) for *where, l0, interval in points if interval.n and l0 > 0]
    return pd.DataFrame(known, columns=["method", "level", "metric", "l0", *Interval._fields])


def _draw(ax: Axes, part: pd.DataFrame, method: str, edge: float) -> None:
    style = look(method)
    written = part["level"] == AS_WRITTEN
    for points, line, hollow in ((part[~written], style.line, False), (part[written], "", True)):
        if points.empty:
            continue
        mean = points["mean"].clip(edge)
        main = np.flatnonzero(points["level"] == MAIN_LEVEL).tolist()
        small = [i for i in range(len(points)) if i not in main]
        ax.plot(points["l0"], mean, color=style.color, linestyle=line, linewidth=0.9)
        dots: dict[str, Any] = {"color": style.color, "marker": style.marker, "linestyle": ""}
        dots["markerfacecolor"] = "none" if hollow else style.color
        for places, size in ((small, 4.5 if hollow else 3.0), (main, 5.5)):
            ax.plot(points["l0"].iloc[places], mean.iloc[places], markersize=size, **dots)
        text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6, "color": style.color}
        for l0, value in points.loc[points["mean"] < edge, ["l0", "mean"]].itertuples(index=False):
            ax.annotate(f"↓ {value:.2f}", (l0, edge), (5, -2), **text)
        low, high = points["low"].clip(edge), points["high"].clip(edge)
        ax.vlines(points["l0"], low, high, color=style.color, linewidth=0.7, alpha=0.6)


def _axis(ax: Axes, points: pd.DataFrame, metric: str, empty: str) -> float:
    """Label and limits; returns the place of what is below the axis. `empty` stands where there are no points. The
    limits follow the means of the curves, since an interval over two seeds may be far wider."""
    label, higher = METRICS[metric].axis, METRICS[metric].direction == "higher"
    edge = -math.inf
    if points.empty:
        say(ax, empty or "not run")
        ax.set_yticks([])
    else:
        means = points["mean"].where(points["level"] != AS_WRITTEN).fillna(points["mean"].max())
        shown = means.clip(FLOORS.get(metric, -math.inf))
        room = 0.12 * max(float(shown.max() - shown.min()), 1e-3)
        low = float(shown.min()) - room if higher else min(0.0, float(shown.min()))
        ax.set_ylim(low, max(float(shown.max()), float(points["mean"].max())) + room)
        edge = low + room / 3 if higher else low
    ax.set(xscale="log", ylabel=label)
    return edge
