"""Figures of training and of the ablations: training curves (the paper's Figure 1), key metrics (Figure 2), effects.

Each function takes tidy results and returns the figure with the numbers that are drawn, for `style.save_figure`. Call
`style.set_style()` once before. Intervals are 95 % t intervals over seeds unless an axis says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sae_lib.report.figures.style import (
    FULL_WIDTH,
    GREY,
    Row,
    curve,
    dot,
    dot_panels,
    legend,
    log_ticks,
    look,
    name_rows,
    panels,
    say,
)
from sae_lib.report.names import MECHANISMS, METRICS, NOT_MEASURABLE, method_name
from sae_lib.report.results import DROPPED, by_method, drop_effect, main_rows, rows_of, why_empty
from sae_lib.report.statistics import Interval, main_effects, seeds_of, t_interval
from sae_lib.util.errors import ArtifactError

_EFFECT_METRICS = ("absorption_fraction", "explained_variance", "ce_score", "l0")


def training_curves(history: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Training loss (a) and unexplained variance (b) over steps at matched L0; the bands run from the lowest
    to the highest seed. The losses of different methods count different things, so only (b) compares them."""
    rows = rows_of(history, "main")
    rows = rows.assign(unexplained=1 - rows["explained_variance"])
    quantities = {"loss": "training loss, each method's own", "unexplained": "1 − explained variance"}
    titles = ("loss: scales differ between methods", "reconstruction: one scale for all")
    fig, axes = panels(titles, 2.6, sharex=True)
    data = []
    for ax, (column, label) in zip(axes, quantities.items(), strict=True):
        for method, part in by_method(rows[rows[column] > 0]).items():
            over = part.groupby("step")[column].agg(["mean", "min", "max", "count"]).reset_index()
            ax.fill_between(over["step"], over["min"], over["max"], color=look(method).color, alpha=0.2, linewidth=0)
            mark = {"markevery": (0.1, 0.2), "markersize": 3.5}
            curve(ax, over["step"], over["mean"], method, label=method_name(method), **mark)
            data.append(over.assign(quantity=column, method=method))
        ax.set(yscale="log", xlabel="optimiser step", ylabel=f"{label}\n(lower is better)")
        log_ticks(ax.yaxis)
    legend(fig, loc="outside right center", handlelength=3.2)
    return fig, pd.concat(data, ignore_index=True)[["quantity", "method", "step", "mean", "min", "max", "count"]]


def collapse_figure(history: pd.DataFrame, trajectory: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The paper's two SAEs with its coefficients, one seed, over training steps: (a) L0, (b) the share of variance that
    is not explained, (c) latents started again until then, (d) *full* absorption, where it was measured.

    Raises ArtifactError when absorption was followed along none of them.
    """
    columns = {
        "l0": ("L0", "active latents\nper token"),
        "unexplained": ("reconstruction", "1 − explained variance\n(lower is better)"),
        "restarted": ("restarts", "latents started again,\nin all"),
        "absorption_full": ("absorption", METRICS["absorption_full"].axis),
    }
    return _followed(history, trajectory, "as_written", columns)


def tokens_figure(history: pd.DataFrame, trajectory: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Is training long enough? Methods of the main table, one seed, over training steps: (a) the share of variance that
    is not explained, (b) *full* absorption, (c) its fraction, (d) how well a letter's best latent finds its words.

    Raises ArtifactError when absorption was followed along none of them.
    """
    columns = {
        "unexplained": ("reconstruction", "1 − explained variance\n(lower is better)"),
        "absorption_full": ("absorption, full", METRICS["absorption_full"].axis),
        "absorption_fraction": ("absorption, fraction", METRICS["absorption_fraction"].axis),
        "main_latent_f1": ("main latents", METRICS["main_latent_f1"].axis),
    }
    return _followed(history, trajectory, "main", columns)


def _followed(
    history: pd.DataFrame, trajectory: pd.DataFrame, group: str, columns: Mapping[str, tuple[str, str]]
) -> tuple[Figure, pd.DataFrame]:
    """One panel (title and label) for each column, of what was logged in training or measured along it."""
    rows = trajectory[trajectory["group"] == group]
    if rows.empty:
        raise ArtifactError(f"trajectory: no SAE of group {group} was followed along its run at this profile")
    logged = history[history["run"].isin(rows["run"])]
    logged = logged.assign(
        unexplained=1 - logged["explained_variance"],
        restarted=logged.sort_values("step").groupby("run")["resampled"].cumsum() if "resampled" in logged else np.nan,
    )
    fig, axes = panels((title for title, _ in columns.values()), 2.2, sharex=True)
    data = []
    for ax, (column, (_, label)) in zip(axes, columns.items(), strict=True):
        source = rows if column in rows else logged
        if source[column].isna().all():
            say(ax, NOT_MEASURABLE)
        for method, part in by_method(source[source[column].notna()]).items():
            part = part.sort_values("step")
            curve(ax, part["step"], part[column], method, label=method_name(method), markevery=0.2, markersize=3)
            data.append(part[["method", "seed", "step"]].assign(quantity=column, value=part[column]))
        if column == "unexplained":
            ax.set_yscale("log")
            log_ticks(ax.yaxis)
        ax.set(xlabel="optimiser step", ylabel=label)
    legend(fig, ncols=3, handlelength=3.2)
    return fig, pd.concat(data, ignore_index=True)


def key_metrics(evaluation: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption (a), explained variance (b) and L0 (c) of each method at matched L0: seeds as small dots, mean with
    its interval."""
    methods = main_rows(rows_of(evaluation, "main"))
    metrics = {"absorption_fraction": "absorption", "explained_variance": "reconstruction", "l0": "sparsity"}
    rows = [Row(part, place) for place, part in enumerate(methods.values())]
    empty = why_empty(evaluation, "absorption_fraction")
    fig, _ = dot_panels(rows, [*map(method_name, methods)], metrics, absorption_fraction=empty)
    return fig, pd.DataFrame(
        {"method": method, "metric": metric, **t_interval(seeds_of(part, metric))._asdict()}
        for method, part in methods.items()
        for metric in metrics
    )


def ablation_effects(evaluation: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """(a) main effects of TemporalSAE's mechanisms; (b) what dropping a part of ATM's importance changes;
    (c) ATM over c and r. Absorption stands beside explained variance, CE score and L0 everywhere."""
    rows = rows_of(evaluation, "factorial", "atm_importance", "atm_grid")
    factorial, parts, atm_grid = (rows[rows["group"] == group] for group in ("factorial", "atm_importance", "atm_grid"))
    names = {part: name for part, name in DROPPED.items() if part != "nothing" and part in set(parts["dropped"])}
    effects = {metric: main_effects(factorial, metric, MECHANISMS) for metric in _EFFECT_METRICS}
    drops = {metric: {part: drop_effect(parts, metric, part) for part in names} for metric in _EFFECT_METRICS}

    fig = plt.figure(figsize=(FULL_WIDTH, 5.4))
    rows_of_panels = fig.add_gridspec(3, 1, height_ratios=[1, 1, 1.3])
    upper, middle, lower = (fig.add_subfigure(rows_of_panels[at]) for at in range(3))
    _effect_panels(upper, effects, MECHANISMS, factorial)
    upper.suptitle("(a) TemporalSAE: main effect of each mechanism, 2×2×2 factorial", x=0.01, ha="left", fontsize=8)
    _effect_panels(middle, drops, names, parts)
    middle.suptitle("(b) ATM: one part of the importance dropped, against all three", x=0.01, ha="left", fontsize=8)
    for ax, metric in zip(lower.subplots(1, 3), ("absorption_fraction", "explained_variance", "l0"), strict=True):
        _heatmap(ax, atm_grid, metric)
    seeds = atm_grid["seed"].nunique()
    lower.suptitle(f"(c) ATM over c and r, mean of {seeds} seed{'s' * (seeds != 1)}", x=0.01, ha="left", fontsize=8)

    data = [
        {"part": part, "name": name, "metric": metric, **interval._asdict()}
        for part, of_metric in (("mechanism", effects), ("importance", drops))
        for metric, intervals in of_metric.items()
        for name, interval in intervals.items()
    ]
    data += [
        {"part": "grid", "name": f"c={c:g}, r={r:g}", "metric": metric, **t_interval(part[metric])._asdict()}
        for (c, r), part in atm_grid.groupby(["c", "r"], sort=True)
        for metric in ("absorption_fraction", "explained_variance", "l0")
        if metric in part
    ]
    return fig, pd.DataFrame(data)


def _effect_panels(
    fig: SubFigure, effects: dict[str, dict[str, Interval]], names: Mapping[str, str], rows: pd.DataFrame
) -> None:
    """One panel for each metric, one row for each name: mean difference and its interval."""
    axes = fig.subplots(1, len(effects), sharey=True)
    for ax, (metric, intervals) in zip(axes, effects.items(), strict=True):
        lacking = why_empty(rows, metric) == NOT_MEASURABLE
        if lacking:
            say(ax, NOT_MEASURABLE)
        for place, name in enumerate(() if lacking else names):
            dot(ax, intervals[name], place, look("standard"))
        ax.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        name_rows(ax, list(names.values()))
        ax.set_xlabel(_change_label(metric))
        ax.locator_params(axis="x", nbins=3)
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−")))


def _change_label(metric: str) -> str:
    better = METRICS[metric].direction
    label = {"absorption_fraction": "absorption", "explained_variance": "expl. variance"}.get(metric)
    name = f"Δ {label or METRICS[metric].label}"
    return name + {"lower": "\n(← better)", "higher": "\n(better →)", "none": "\n"}[better]


def _heatmap(ax: Axes, grid: pd.DataFrame, metric: str) -> None:
    """Means over c and r. Cells far off the others (Tukey's fences) get the colour of the limit, so that one of them
    does not paint all others alike."""
    if empty := why_empty(grid, metric):
        say(ax, empty)
        ax.set_axis_off()
        return
    table = grid.pivot_table(index="c", columns="r", values=metric, aggfunc="mean")
    digits = min(METRICS[metric].decimals, 3)
    numbers = {"annot": True, "fmt": f".{digits}f", "annot_kws": {"size": 7}}
    low, high = np.nanpercentile(table, (25, 75))
    fences = {"vmin": low - 1.5 * (high - low), "vmax": high + 1.5 * (high - low)}
    limits = {"vmin": max(fences["vmin"], np.nanmin(table)), "vmax": min(fences["vmax"], np.nanmax(table))}
    sns.heatmap(table, ax=ax, cmap="cividis", cbar=False, linewidths=0.5, **limits, **numbers)
    ax.set_title(METRICS[metric].axis, fontsize=7)
    ax.set(xlabel="r", ylabel="c")
    ax.set_yticklabels([f"{value:g}" for value in table.index], rotation=0)
    ax.set_xticklabels([f"{value:g}" for value in table.columns])
