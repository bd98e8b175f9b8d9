"""Figures of the ground-truth study: toy data whose features are known, one row per SAE in toy_summary.parquet.

Each returns the figure and the numbers that are drawn, for `style.save_figure`. Dots are seeds, markers their mean,
bars its 95 % t interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.report.figures.style import DARK, FULL_WIDTH, GREY, Look, curve, dot, look, name_rows, panel
from sae_lib.report.names import METRICS, in_order, method_name
from sae_lib.report.results import DROPPED, by_method, toy_rows
from sae_lib.report.statistics import by_seed, t_interval
from sae_lib.util.errors import ArtifactError

# What is drawn, with a title short enough for a quarter of the width.
PANELS = {
    "parent_silent_rate": "absorbed",
    "cos_child_parent": "entangled",
    "explained_variance": "reconstruction",
    "l0": "sparsity",
}
# The penalties differ in what they pair; the L0 sweep shows methods.
_CONTROLS = ("temporal_strong", "temporal_previous", "variance")
_STATISTICS = ["mean", "sd", "n", "low", "high"]
_LEAST_L0 = 0.5  # from here on the sweep is drawn


def toy_matched_figure(toy_summary: pd.DataFrame, toy: str = "tree") -> tuple[Figure, pd.DataFrame]:
    """Every method at the true L0, as near as it can come: absorption (a), the direction that children carry (b), what
    it costs (c) and the L0 that was reached (d). Hollow: the next whole number k, where the true L0 lies between two.
    """
    parts = [toy_rows(toy_summary, experiment, toy) for experiment in ("matched", "next_k")]
    rows = pd.concat(parts, ignore_index=True)
    _some(rows, "matched")
    methods = in_order([*rows["method"]])
    data = _means(rows, ["experiment", "method"], PANELS)
    fig, axes = plt.subplots(1, len(PANELS), figsize=(FULL_WIDTH, 1.0 + 0.24 * len(methods)), sharey=True)
    for ax, letter, (metric, title) in zip(axes, "abcd", PANELS.items(), strict=False):
        for part, shift, face in ((parts[0], 0.0, None), (parts[1], 0.28, "white")):
            for method, found in by_method(part).items():
                _dots(ax, by_seed(found, metric), methods.index(method) + shift, look(method), face)
        _metric_axis(ax, metric, rows)
        panel(ax, letter, title)
    name_rows(axes[0], [method_name(method) for method in methods])
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    handles = [Line2D([], [], color=DARK, linestyle="--", linewidth=0.8, label="true L0")]
    if (rows["experiment"] == "next_k").any():
        note = "next whole k, above the true L0"
        handles.append(Line2D([], [], color=DARK, marker="o", markerfacecolor="white", linestyle="", label=note))
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    sns.despine(fig)
    return fig, data


def toy_sweep_figure(toy_summary: pd.DataFrame, toy: str = "tree") -> tuple[Figure, pd.DataFrame]:
    """How often the parent is silent (a) and how much of it the children carry (b) against L0, one curve per method;
    the dashed line is the true L0."""
    rows = toy_rows(toy_summary, "sweep", toy)
    rows = rows[~rows["method"].isin(_CONTROLS)]
    _some(rows, "sweep")
    metrics = ("parent_silent_rate", "cos_child_parent")
    data = _means(rows, ["method", "label"], (*metrics, "l0"))
    wide = data.pivot(index=["method", "label"], columns="metric", values="mean").reset_index()
    fig, axes = plt.subplots(1, 2, figsize=(FULL_WIDTH, 3.0))
    for ax, letter, metric in zip(axes, "ab", metrics, strict=True):
        for method in in_order([*wide["method"]]):
            part = wide[wide["method"] == method].sort_values("l0")
            curve(ax, part["l0"], part[metric], method, linewidth=1.0, label=method_name(method))
            own = rows[rows["method"] == method]
            ax.scatter(own["l0"], own[metric], s=4, color=look(method).color, alpha=0.35, linewidths=0)
        ax.axvline(rows["true_l0"].mean(), color=DARK, linewidth=0.8, linestyle="--", zorder=0)
        ax.set(xscale="log", xlabel="L0 (active latents per input)", ylabel=METRICS[metric].axis)
        if (wide["l0"] < _LEAST_L0).any():  # one that is all but off would push the others into a corner
            ax.set_xlim(left=_LEAST_L0)
            ax.set_xlabel(f"L0 (active latents per input; below {_LEAST_L0:g} not shown)")
        ax.xaxis.set_major_locator(ticker.FixedLocator([1, 2, 3, 5, 10, 20]))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        panel(ax, letter, PANELS[metric])
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=3.0)
    sns.despine(fig)
    return fig, data


def toy_rho_figure(toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The temporal penalty where features persist from token to token with rho: adjacent tokens, the previous batch and
    the variance penalty, at a coefficient that matters; and, in grey, adjacent tokens at the published one."""
    rows = toy_rows(toy_summary, "rho")
    _some(rows, "rho")
    data = _means(rows, ["method", "label", "rho"], PANELS)
    rhos = sorted(rows["rho"].unique())
    fig, axes = plt.subplots(1, len(PANELS), figsize=(FULL_WIDTH, 2.5))
    curves = [(method, "strong") for method in in_order([*rows["method"]])] + [("temporal_strong", "published")]
    for ax, letter, (metric, title) in zip(axes, "abcd", PANELS.items(), strict=False):
        for shift, (method, label) in zip(np.linspace(-0.12, 0.12, len(curves)), curves, strict=True):
            part = data[(data["method"] == method) & (data["label"] == label) & (data["metric"] == metric)]
            at = [rhos.index(rho) + shift for rho in part["rho"]]
            style, note = (Look(GREY, "o", ":"), ", as published") if label == "published" else (look(method), "")
            # one seed gives no interval
            bars = np.nan_to_num(np.array([part["mean"] - part["low"], part["high"] - part["mean"]], dtype=float))
            ax.errorbar(
                at, part["mean"], yerr=bars, color=style.color, marker=style.marker, linestyle=style.line,
                markersize=4, elinewidth=0.8, linewidth=1.0, label=method_name(method) + note,
            )  # fmt: skip
        if metric == "l0":
            ax.axhline(rows["true_l0"].mean(), color=DARK, linewidth=0.8, linestyle="--", zorder=0)
        ax.set_xticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
        ax.set(xlabel="ρ", ylabel=METRICS[metric].axis)
        panel(ax, letter, title)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3.0)
    sns.despine(fig)
    return fig, data


def toy_importance_figure(toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """ATM with its whole importance score, with one part dropped, with the product of the parts; and uniform dropout
    that masks as often. All at the true L0, as near as they can come."""
    rows = toy_rows(toy_summary, "importance")
    _some(rows, "importance")
    variants = {str(name): part for name, part in rows.groupby("importance", sort=False)}
    data = _means(rows, ["method", "importance"], PANELS)
    fig, axes = plt.subplots(1, len(PANELS), figsize=(FULL_WIDTH, 1.0 + 0.24 * len(variants)), sharey=True)
    for ax, letter, (metric, title) in zip(axes, "abcd", PANELS.items(), strict=False):
        for place, found in enumerate(variants.values()):
            _dots(ax, by_seed(found, metric), place, look(found["method"].iloc[0]))
        _metric_axis(ax, metric, rows)
        panel(ax, letter, title)
    names = DROPPED | {"nothing": "mean of all parts", "product": "product of all parts", "uniform": "uniform dropout"}
    name_rows(axes[0], [names.get(part["dropped"].iloc[0]) or names[variant] for variant, part in variants.items()])
    sns.despine(fig)
    return fig, data


def _some(rows: pd.DataFrame, experiment: str) -> None:
    if rows.empty:
        raise ArtifactError(f"toy_summary: no rows of experiment '{experiment}'; run notebook 03 at this profile")


def _means(rows: pd.DataFrame, keys: list[str], metrics: Sequence[str] | dict[str, str]) -> pd.DataFrame:
    """One row per group and metric: `keys`, metric, and the interval over seeds."""
    records = []
    for group, part in rows.groupby(keys, sort=False):
        for metric in metrics:
            interval = t_interval(by_seed(part, metric))._asdict()
            records.append((*group, metric, *(interval[name] for name in _STATISTICS)))
    return pd.DataFrame(records, columns=[*keys, "metric", *_STATISTICS])


def _dots(ax: Axes, values: pd.Series, place: float, style: Look, face: str | None = None) -> None:
    """One method's line of a panel: seeds, mean and interval."""
    ax.scatter(values, [place] * len(values), s=5, color=style.color, alpha=0.4, linewidths=0)
    dot(ax, t_interval(values), place, style, face, markersize=5, elinewidth=0.9, capsize=0)


def _metric_axis(ax: Axes, metric: str, rows: pd.DataFrame) -> None:
    """Label and range of a metric; intervals that leave the range of the seeds by far are cut."""
    low, high = float(rows[metric].min()), float(rows[metric].max())
    margin = 0.06 * max(high - low, 1e-3)
    ax.set_xlim(low - margin, high + margin)
    ax.set_xlabel(METRICS[metric].axis)
    ax.grid(axis="y", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    if metric == "l0":
        ax.axvline(rows["true_l0"].mean(), color=DARK, linewidth=0.8, linestyle="--", zorder=0)
