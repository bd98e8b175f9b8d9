"""Figures of training and of the ablations: training curves (the paper's Figure 1), key metrics (Figure 2), effects."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sae_lib.profiles.runs import FOLLOWED
from sae_lib.report.figures import style
from sae_lib.report.figures.style import FULL_WIDTH, GREY, Row, curve, look, panels, say
from sae_lib.report.names import MECHANISMS, METRICS, NOT_MEASURABLE, method_name
from sae_lib.report.results import DROPPED, by_method, drop_effect, main_effect, main_rows, means, rows_of, why_empty
from sae_lib.report.statistics import Interval, t_interval

_EFFECT_METRICS = ("absorption_fraction", "explained_variance", "ce_score", "l0")
Effect = Callable[[pd.DataFrame, str, str], Interval]  # of rows, a metric and what is changed
# What is drawn over training steps and is no metric of a table.
_LABELS = {
    "l0": "active latents\nper token", "unexplained": "1 − explained variance\n(lower is better)",
    "restarted": "latents started again,\nin all",
}  # fmt: skip


def training_curves(history: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Training loss (a) and unexplained variance (b) over steps at matched L0; the bands run from the lowest
    to the highest seed. The losses of different methods count different things, so only (b) compares them."""
    rows = rows_of(history, "main").assign(unexplained=lambda rows: 1 - rows["explained_variance"])
    quantities = {"loss": "training loss, each method's own", "unexplained": "1 − explained variance"}
    fig, axes = panels(("loss: scales differ between methods", "reconstruction: one scale for all"), 2.6, sharex=True)
    data = []
    for ax, (column, label) in zip(axes, quantities.items(), strict=True):
        for method, part in by_method(rows[rows[column] > 0]).items():
            over = part.groupby("step")[column].agg(["mean", "min", "max", "count"]).reset_index()
            ax.fill_between(over["step"], over["min"], over["max"], color=look(method).color, alpha=0.2, linewidth=0)
            curve(ax, over["step"], over["mean"], method, markevery=(0.1, 0.2), markersize=3.5)
            data.append(over.assign(quantity=column, method=method))
        ax.set(yscale="log", xlabel="optimiser step", ylabel=f"{label}\n(lower is better)")
        style.log_ticks(ax.yaxis)
    style.legend(fig, loc="outside right center", handlelength=3.2)
    return fig, pd.concat(data, ignore_index=True)[["quantity", "method", "step", "mean", "min", "max", "count"]]


def collapse_figure(history: pd.DataFrame, trajectory: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The paper's two SAEs with its coefficients, one seed, over training steps: (a) L0, (b) the share of variance that
    is not explained, (c) latents started again until then, (d) *full* absorption, where it was measured."""
    titles = {"l0": "L0", "unexplained": "reconstruction", "restarted": "restarts", "absorption_full": "absorption"}
    return _followed(history, trajectory, "as_written", titles)


def tokens_figure(history: pd.DataFrame, trajectory: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Is training long enough? Methods of the main table, one seed, over training steps: (a) the share of variance that
    is not explained, (b) *full* absorption, (c) its fraction, (d) how well a letter's best latent finds its words."""
    titles = {
        "unexplained": "reconstruction", "absorption_full": "absorption, full",
        "absorption_fraction": "absorption, fraction", "main_latent_f1": "main latents",
    }  # fmt: skip
    return _followed(history, trajectory, "main", titles)


def _followed(
    history: pd.DataFrame, trajectory: pd.DataFrame, group: str, titles: Mapping[str, str]
) -> tuple[Figure, pd.DataFrame]:
    """One panel for each column and its title: of what was logged in training, for all methods that are to be
    followed, or measured along it, for those that were. Raises ArtifactError when none was."""
    missing = f"trajectory: no SAE of group {group} was followed along its run at this profile"
    rows = rows_of(trajectory, group, otherwise=missing)
    logged = history[(history["group"] == group) & history["method"].isin(FOLLOWED[group])]
    logged = logged[logged["seed"].isin(rows["seed"])]
    restarts = logged.sort_values("step").groupby("run")["resampled"].cumsum() if "resampled" in logged else np.nan
    logged = logged.assign(unexplained=1 - logged["explained_variance"], restarted=restarts)
    fig, axes = panels(titles.values(), 2.2, sharex=True)
    data = []
    for ax, column in zip(axes, titles, strict=True):
        source = rows if column in rows else logged
        if source[column].isna().all():
            say(ax, NOT_MEASURABLE)
        for method, part in by_method(source[source[column].notna()]).items():
            part = part.sort_values("step")
            curve(ax, part["step"], part[column], method, markevery=0.2, markersize=3)
            data.append(part[["method", "seed", "step"]].assign(quantity=column, value=part[column]))
        if column == "unexplained":
            ax.set_yscale("log")
            style.log_ticks(ax.yaxis)
        ax.set(xlabel="optimiser step", ylabel=_LABELS.get(column) or METRICS[column].axis)
    style.legend(fig, ncols=3, handlelength=3.2)
    return fig, pd.concat(data, ignore_index=True)


def key_metrics(evaluation: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption (a), explained variance (b) and L0 (c) of each method at matched L0, seeds as small dots."""
    methods = main_rows(rows_of(evaluation, "main"))
    metrics = {"absorption_fraction": "absorption", "explained_variance": "reconstruction", "l0": "sparsity"}
    rows = [Row(part, place) for place, part in enumerate(methods.values())]
    empty = why_empty(evaluation, "absorption_fraction")
    fig, _ = style.dot_panels(rows, [*map(method_name, methods)], metrics, absorption_fraction=empty)
    return fig, means(pd.concat(methods.values()), ["method"], metrics)


def ablation_effects(evaluation: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """(a) main effects of TemporalSAE's mechanisms; (b) what dropping a part of ATM's importance changes;
    (c) ATM over c and r. Absorption stands beside explained variance, CE score and L0 everywhere."""
    groups = ("factorial", "atm_importance", "atm_grid")
    rows = rows_of(evaluation, *groups)
    factorial, parts, grid = (rows[rows["group"] == group] for group in groups)
    dropped = {part: name for part, name in DROPPED.items() if part != "nothing" and part in set(parts["dropped"])}
    seeds = grid["seed"].nunique()
    titles = (
        "(a) TemporalSAE: main effect of each mechanism, 2×2×2 factorial",
        "(b) ATM: one part of the importance dropped, against all three",
        f"(c) ATM over c and r, mean of {seeds} seed{'s' * (seeds != 1)}",
    )
    fig = plt.figure(figsize=(FULL_WIDTH, 5.4))
    grid_of = fig.add_gridspec(3, 1, height_ratios=[1, 1, 1.3])
    upper, middle, lower = (fig.add_subfigure(grid_of[at]) for at in range(3))
    for part, title in zip((upper, middle, lower), titles, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=8)
    data = _effect_panels(upper, "mechanism", factorial, MECHANISMS, main_effect)
    data += _effect_panels(middle, "importance", parts, dropped, drop_effect)
    metrics = ("absorption_fraction", "explained_variance", "l0")
    for ax, metric in zip(lower.subplots(1, 3), metrics, strict=True):
        _heatmap(ax, grid, metric)
    data += [
        {"part": "grid", "name": f"c={c:g}, r={r:g}", "metric": metric, **t_interval(cell[metric])._asdict()}
        for (c, r), cell in grid.groupby(["c", "r"], sort=True)
        for metric in metrics
        if metric in cell
    ]
    return fig, pd.DataFrame(data)


def _effect_panels(
    fig: SubFigure, part: str, rows: pd.DataFrame, names: Mapping[str, str], effect: Effect
) -> list[dict[str, Any]]:
    data = []
    short = {"absorption_fraction": "absorption", "explained_variance": "expl. variance"}
    arrow = {"lower": "\n(← better)", "higher": "\n(better →)", "none": "\n"}
    for ax, metric in zip(fig.subplots(1, len(_EFFECT_METRICS), sharey=True), _EFFECT_METRICS, strict=True):
        lacking = why_empty(rows, metric) == NOT_MEASURABLE
        if lacking:
            say(ax, NOT_MEASURABLE)
        for place, name in enumerate(names):
            interval = effect(rows, metric, name)
            data.append({"part": part, "name": name, "metric": metric, **interval._asdict()})
            if not lacking:
                style.dot(ax, interval, place, look("standard"))
        ax.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        style.name_rows(ax, list(names.values()))
        ax.set_xlabel(f"Δ {short.get(metric, METRICS[metric].label)}{arrow[METRICS[metric].direction]}")
        ax.locator_params(axis="x", nbins=3)
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.3g}".replace("-", "−")))
    return data


def _heatmap(ax: Axes, grid: pd.DataFrame, metric: str) -> None:
    """Means over c and r. Cells far off the others (Tukey's fences) get the colour of the limit, so that one of them
    does not paint all others alike."""
    if empty := why_empty(grid, metric):
        say(ax, empty)
        ax.set_axis_off()
        return
    table = grid.pivot_table(index="c", columns="r", values=metric, aggfunc="mean")
    low, high = np.nanpercentile(table, (25, 75))
    reach = 1.5 * (high - low)
    limits = {"vmin": max(low - reach, np.nanmin(table)), "vmax": min(high + reach, np.nanmax(table))}
    numbers = {"annot": True, "fmt": f".{min(METRICS[metric].decimals, 3)}f", "annot_kws": {"size": 7}}
    sns.heatmap(table, ax=ax, cmap="cividis", cbar=False, linewidths=0.5, **limits, **numbers)
    ax.set_title(METRICS[metric].axis, fontsize=7)
    ax.set(xlabel="r", ylabel="c")
    ax.set_yticklabels([f"{value:g}" for value in table.index], rotation=0)
    ax.set_xticklabels([f"{value:g}" for value in table.columns])
