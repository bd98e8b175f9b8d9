"""Figures of the ground-truth study: toy data whose features are known, one row per SAE in toy_summary.parquet. Dots
are seeds, markers their mean, bars its 95 % t interval."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.report.figures.style import DARK, GREY, TRUE, Look, Row, curve, dot_panels, legend, log_ticks, look, panels
from sae_lib.report.names import METRICS, in_order, method_name
from sae_lib.report.results import DROPPED, by_method, means, toy_rows

# What is drawn, with a title short enough for a quarter of the width.
PANELS = {
    "parent_silent_rate": "absorbed", "cos_child_parent": "entangled", "explained_variance": "reconstruction",
    "l0": "sparsity",
}  # fmt: skip
# The penalties differ in what they pair; the L0 sweep shows methods.
_CONTROLS = ("temporal_strong", "temporal_previous", "variance")
_LEAST_L0 = 0.5  # from here on the sweep is drawn
_RUN = "run notebook 03 at this profile"


def toy_matched_figure(toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Every method at the true L0, as near as it can come: absorption (a), the direction that children carry (b), what
    it costs (c) and the L0 that was reached (d). Hollow: the next whole number k, where the true L0 lies between two.
    """
    parts = [toy_rows(toy_summary, "matched", "tree", _RUN), toy_rows(toy_summary, "next_k", "tree")]
    rows = pd.concat(parts, ignore_index=True)
    methods = in_order([*rows["method"]])
    data = means(rows, ["experiment", "method"], PANELS)
    lines = [
        Row(found, methods.index(method) + shift, face)
        for part, shift, face in zip(parts, (0.0, 0.28), (None, "white"), strict=True)
        for method, found in by_method(part).items()
    ]
    fig, axes = dot_panels(lines, [*map(method_name, methods)], PANELS)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    handles = [Line2D([], [], label="true L0", **TRUE)]
    if (rows["experiment"] == "next_k").any():
        note = "next whole k, above the true L0"
        handles.append(Line2D([], [], color=DARK, marker="o", markerfacecolor="white", linestyle="", label=note))
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    return fig, data


def toy_sweep_figure(toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption (a) and what of the parent the children carry (b) against L0; dashed is the true L0."""
    rows = toy_rows(toy_summary, "sweep", "tree", _RUN)
    rows = rows[~rows["method"].isin(_CONTROLS)]
    metrics = ("parent_silent_rate", "cos_child_parent")
    data = means(rows, ["method", "label"], (*metrics, "l0"))
    wide = data.pivot(index=["method", "label"], columns="metric", values="mean").reset_index()
    fig, axes = panels((PANELS[metric] for metric in metrics), 3.0)
    for ax, metric in zip(axes, metrics, strict=True):
        for method in in_order([*wide["method"]]):
            part = wide[wide["method"] == method].sort_values("l0")
            curve(ax, part["l0"], part[metric], method, linewidth=1.0)
            own = rows[rows["method"] == method]
            ax.scatter(own["l0"], own[metric], s=4, color=look(method).color, alpha=0.35, linewidths=0)
        ax.axvline(rows["true_l0"].mean(), zorder=0, **TRUE)
        ax.set(xscale="log", xlabel="L0 (active latents per input)", ylabel=METRICS[metric].axis)
        if (wide["l0"] < _LEAST_L0).any():  # one that is all but off would push the others into a corner
            ax.set_xlim(left=_LEAST_L0)
            ax.set_xlabel(f"L0 (active latents per input; below {_LEAST_L0:g} not shown)")
        log_ticks(ax.xaxis)
    legend(fig, ncols=5, handlelength=3.0)
    return fig, data


def toy_rho_figure(toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """The temporal penalty where features persist from token to token with rho: adjacent tokens, the previous batch and
    the variance penalty, at a coefficient that matters; and, in grey, adjacent tokens at the published one."""
    rows = toy_rows(toy_summary, "rho", otherwise=_RUN)
    data = means(rows, ["method", "label", "rho"], PANELS)
    rhos = sorted(rows["rho"].unique())
    fig, axes = panels(PANELS.values(), 2.5)
    curves = [(method, "strong") for method in in_order([*rows["method"]])] + [("temporal_strong", "published")]
    for ax, metric in zip(axes, PANELS, strict=True):
        for shift, (method, label) in zip(np.linspace(-0.12, 0.12, len(curves)), curves, strict=True):
            part = data[(data["method"] == method) & (data["label"] == label) & (data["metric"] == metric)]
            at = [rhos.index(rho) + shift for rho in part["rho"]]
            style, note = (Look(GREY, "o", ":"), ", as published") if label == "published" else (look(method), "")
            # one seed gives no interval
            bars = np.nan_to_num(np.array([part["mean"] - part["low"], part["high"] - part["mean"]], dtype=float))
            line: dict[str, Any] = {"color": style.color, "marker": style.marker, "linestyle": style.line}
            line |= {"markersize": 4, "elinewidth": 0.8, "linewidth": 1.0, "label": method_name(method) + note}
            ax.errorbar(at, part["mean"], yerr=bars, **line)
        if metric == "l0":
            ax.axhline(rows["true_l0"].mean(), zorder=0, **TRUE)
        ax.set_xticks(range(len(rhos)), [f"{rho:g}" for rho in rhos])
        ax.set(xlabel="ρ", ylabel=METRICS[metric].axis)
    legend(fig, ncols=2, handlelength=3.0)
    return fig, data


def toy_importance_figure(toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """ATM with its whole importance score, with one part dropped, with the product of the parts; and uniform dropout
    that masks as often. All at the true L0, as near as they can come."""
    rows = toy_rows(toy_summary, "importance", otherwise=_RUN)
    variants = {str(name): part for name, part in rows.groupby("importance", sort=False)}
    data = means(rows, ["method", "importance"], PANELS)
    lines = [Row(part, place) for place, part in enumerate(variants.values())]
    names = DROPPED | {"nothing": "mean of all parts", "product": "product of all parts", "uniform": "uniform dropout"}
    shown = [names.get(part["dropped"].iloc[0]) or names[variant] for variant, part in variants.items()]
    return dot_panels(lines, shown, PANELS)[0], data
