"""Figures of absorption: per letter, against L0 and explained variance, and on data whose features are known.

The last one reads two tables of SAEs trained on toy data, latents matched to true features:

- toy.parquet, one row per number: `method`, `seed`, `kind` ('activation' or 'cosine'), `row`, `latent`, `value`. kind
  'activation': the mean activation of the latent matched to feature `latent` on inputs of kind `row`, such as 'parent
  only' or 'parent + child 1'. kind 'cosine': the cosine of the decoder row of the latent matched to feature `latent`
  with the true direction of feature `row`. Rows and latents are drawn in the order in which they first appear.
- toy_summary.parquet, one row per SAE: `method`, `seed`, `parent_silent_rate` (how often the parent's latent
  is silent while parent and child are on), `miss_rate`, `cos_child_parent`, `cos_parent_parent`,
  `explained_variance`, `l0`, `true_l0`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.errors import ArtifactError
from sae_lib.report.groups import rows_of
from sae_lib.report.intervals import by_seed, t_interval
from sae_lib.report.names import METRICS, in_order, method_name
from sae_lib.report.style import COLUMN_WIDTH, FULL_WIDTH, GREY, look, panel

# Group of evaluation.parquet -> what the legend says, and whether its markers are filled.
_GROUPS = {
    "main": ("matched L0", "full"),
    "calibration": ("other L1 coefficients", "small"),
    "as_written": ("papers' coefficients", "none"),
    "untrained": ("untrained", "full"),
}

# Explained variance below this is drawn here: a collapsed SAE would push all others into a corner.
_LEAST = -0.2


def letters_figure(letters: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption (fraction) of each method and letter, mean over seeds, with the evaluated words of each letter.

    Only letters that the ground-truth probe finds in the language model are there; without any, the figure says so.
    """
    rows = letters[letters["group"] == "main"]
    data = (
        rows.groupby(["method", "letter"], sort=True)
        .agg(
            absorption_fraction=("absorption_fraction", "mean"),
            sd=("absorption_fraction", "std"),
            seeds=("seed", "nunique"),
            words=("true_positives", "mean"),
        )
        .reset_index()
    )
    if data.empty:
        fig, ax = plt.subplots(figsize=(COLUMN_WIDTH, 1.0))
        ax.text(0.5, 0.5, "no letter passed the probe's gate", ha="center", va="center")
        ax.set_axis_off()
        return fig, data
    methods = in_order([*data["method"]])
    table = data.pivot(index="method", columns="letter", values="absorption_fraction").loc[methods]
    words = data.groupby("letter")["words"].mean()
    fig, axes = plt.subplots(
        2, 1, figsize=(FULL_WIDTH, 1.5 + 0.22 * len(methods)), sharex=True,
        gridspec_kw={"height_ratios": [1, 0.35 * len(methods)]},
    )  # fmt: skip
    axes[0].bar([place + 0.5 for place in range(len(words))], words, color=GREY, width=0.8)
    axes[0].set(ylabel="words")
    sns.despine(ax=axes[0])
    axes[0].tick_params(axis="x", length=0)
    sns.heatmap(table, ax=axes[1], cmap="cividis", vmin=0, linewidths=0.4, cbar=False)
    label = METRICS["absorption_fraction"].axis
    fig.colorbar(axes[1].collections[0], ax=axes, label=label, aspect=16, pad=0.01)
    axes[1].set(xlabel="first letter", ylabel="")
    axes[1].set_xticks([place + 0.5 for place in range(len(words))], list(words.index), rotation=0)
    axes[1].set_yticks([place + 0.5 for place in range(len(methods))], [method_name(m) for m in methods], rotation=0)
    return fig, data


def absorption_against_l0(evaluation: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption (fraction) of every SAE against its L0 (a) and its explained variance (b).

    One marker per SAE: colour and shape for the method, filling for how its sparsity was chosen. A method's
    SAEs with other L1 coefficients are joined by a line.
    """
    rows = rows_of(evaluation, *_GROUPS)
    columns = ["group", "method", "seed", "l0", "explained_variance", "ce_score", "absorption_fraction"]
    numbers = columns[3:]
    data = (
        rows[columns]
        .astype(dict.fromkeys(numbers, float))
        .dropna(subset=["l0", "explained_variance", "absorption_fraction"])
    )
    data = data.sort_values(["group", "method", "l0", "seed"], kind="stable").reset_index(drop=True)
    fig, axes = plt.subplots(1, 2, figsize=(FULL_WIDTH, 3.0), sharey=True)
    for ax, x in zip(axes, ("l0", "explained_variance"), strict=True):
        for (group, method), part in data.groupby(["group", "method"], sort=True):
            _markers(ax, part.assign(explained_variance=part["explained_variance"].clip(_LEAST)), x, group, method)
        ax.set_xlabel(METRICS[x].axis)
    if (data["explained_variance"] < _LEAST).any():
        axes[1].set_xlabel(f"{METRICS['explained_variance'].axis}\n(what is below {_LEAST:g} stands at {_LEAST:g})")
    axes[0].set(xscale="log", xlabel="L0 (active latents per token)", ylabel=METRICS["absorption_fraction"].axis)
    axes[0].set_ylim(bottom=min(0.0, axes[0].get_ylim()[0]))
    panel(axes[0], "a", "against sparsity")
    panel(axes[1], "b", "against reconstruction")
    _log_ticks(axes[0])
    # A paper's own recipe has the look of its method; the filling tells them apart.
    handles = [
        Line2D([], [], color=look(m).color, marker=look(m).marker, linestyle="", label=method_name(m))
        for m in in_order([method.removeprefix("paper_") for method in data["method"]])
    ]
    handles.append(Line2D([], [], linestyle="", label=""))
    present = [group for group in _GROUPS if (data["group"] == group).any() and group != "untrained"]
    handles += [
        Line2D(
            [], [], color="black", marker="o", linestyle="-" if _GROUPS[group][1] == "small" else "",
            linewidth=0.5, markersize=2.5 if _GROUPS[group][1] == "small" else 4.5,
            markerfacecolor="none" if _GROUPS[group][1] == "none" else "black", label=_GROUPS[group][0],
        )
        for group in present
    ]  # fmt: skip
    fig.legend(handles=handles, loc="outside right center")
    sns.despine(fig)
    return fig, data


def _log_ticks(ax: Axes) -> None:
    """Ticks at 1, 2 and 5 of each power of ten, as plain numbers."""
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _markers(ax: Axes, part: pd.DataFrame, x: str, group: str, method: str) -> None:
    style, kind = look(method), _GROUPS[group][1]
    part = part.sort_values(x, kind="stable")
    ax.plot(
        part[x], part["absorption_fraction"], color=style.color, marker=style.marker,
        linestyle="-" if kind == "small" else "", linewidth=0.5,
        markersize=2.5 if kind == "small" else 4.5, markerfacecolor="none" if kind == "none" else style.color,
        alpha=0.6 if kind == "small" else 0.9,
    )  # fmt: skip


def absorption_picture(toy: pd.DataFrame, toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """ATM's Figure 1 from trained SAEs: (top) which latents fire on which inputs, (bottom) which true
    directions their decoder rows point along; mean over seeds. Absorption is a parent's latent that is dark
    where parent and child are on, and a child's latent that points along the parent.
    """
    methods = in_order([*toy["method"]])
    if not methods:
        raise ArtifactError("toy: no rows; run the toy SAEs of notebook 04 first")
    data = toy.groupby(["kind", "method", "row", "latent"], sort=False)["value"].agg(["mean", "std", "count"])
    data = data.reset_index()
    top = data.loc[data["kind"] == "activation", "mean"].max()
    fig, axes = plt.subplots(
        2, len(methods), figsize=(min(FULL_WIDTH, 1.5 + 1.8 * len(methods)), 3.9), squeeze=False,
        sharex=True, sharey="row",
    )  # fmt: skip
    looks = {
        "activation": {"cmap": "cividis", "vmin": 0.0, "vmax": top},
        "cosine": {"cmap": "vlag", "vmin": -1.0, "vmax": 1.0},
    }
    for line, (kind, scale) in enumerate(looks.items()):
        of_kind = data[data["kind"] == kind]
        for at, method in enumerate(methods):
            ax = axes[line, at]
            table = of_kind[of_kind["method"] == method].pivot(index="row", columns="latent", values="mean")
            table = table.reindex(index=of_kind["row"].unique(), columns=data["latent"].unique()).round(1) + 0.0
            sns.heatmap(
                table,
                ax=ax,
                annot=True,
                fmt=".1f",
                annot_kws={"size": 6},
                cbar=False,
                linewidths=0.4,
                **scale,
            )
            ax.set(xlabel="", ylabel="")
            ax.tick_params(axis="y", rotation=0, left=at == 0)
            ax.tick_params(axis="x", rotation=90, bottom=line == 1)
        label = {"activation": "mean activation", "cosine": "decoder cosine"}[kind]
        fig.colorbar(axes[line, -1].collections[0], ax=axes[line, :], label=label, aspect=12, pad=0.01)
    axes[0, 0].set_ylabel("input")
    axes[1, 0].set_ylabel("true direction")
    for at, method in enumerate(methods):
        axes[0, at].set_title(f"{method_name(method)}\n{_toy_note(toy_summary, method)}", loc="center", fontsize=6.5)
        axes[1, at].set_xlabel("latent of")
    return fig, data


def _toy_note(toy_summary: pd.DataFrame, method: str) -> str:
    rows = toy_summary[toy_summary["method"] == method]
    silent, variance = (t_interval(by_seed(rows, column)) for column in ("parent_silent_rate", "explained_variance"))
    sd = f" ± {silent.sd:.2f}" if silent.n > 1 else ""
    return f"parent silent {silent.mean:.2f}{sd}\nexpl. variance {variance.mean:.3f}"
