"""Stability across seeds, across contexts and along tokens, each beside what chance gives.

The seed is the unit. A quantity of two SAEs, such as the cosine of their matched decoder rows, is turned into one value
per seed first (`intervals.pair_values`): pairs that share a seed are not independent.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.report.figures.style import FULL_WIDTH, GREY, look, panel
from sae_lib.report.names import MAIN_METHODS, METRICS, Metric, in_order, method_name
from sae_lib.report.results import rows_of
from sae_lib.report.statistics import Interval, by_seed, pair_values, t_interval
from sae_lib.report.tables.write import ARROW_NOTE, Table, cell, seeds_note

# Column of the results -> how it is shown here. `_random`: latents of equal density that are no letter's; `_probe`: the
# ground-truth probe, the ceiling; `_text`: in running text instead of prompts.
CONTEXT_METRICS: dict[str, Metric] = {
    "l0": METRICS["l0"],
    "context_words": Metric("words", "none", 0),
    "context_firing": Metric("fires", "higher", 3),
    "context_firing_any": Metric("any main latent", "higher", 3),
    "context_firing_random": Metric("equal density", "none", 3),
    "context_probe": Metric("probe", "none", 3),
    "context_repeat": Metric("again", "higher", 3),
    "context_repeat_random": Metric("again, equal density", "none", 3),
    "context_words_text": Metric("text: words", "none", 0),
    "context_firing_text": Metric("text: fires", "higher", 3),
    "context_firing_random_text": Metric("text: equal density", "none", 3),
    "context_probe_text": Metric("text: probe", "none", 3),
}
# Panel -> what is drawn in the method's colour, its axis, and its control in grey.
_PANELS: dict[str, tuple[str, str, str | None]] = {
    "across seeds": ("matched_cosine", "cosine of matched decoder rows\n(higher is better)", None),
    "across contexts": (
        "context_firing",
        "contexts in which a word's letter\nlatent fires (higher is better)",
        "context_firing_random",
    ),
    "along tokens": (
        "token_change",
        "change per active latent\n(lower is steadier)",
        "token_change_shuffled",
    ),
}
_CEILING = "context_probe"


def stability_figure(evaluation: pd.DataFrame, seed_stability: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """One row per method: across seeds (a), across contexts (b), along tokens (c); mean with its 95 % t interval
    over seeds, in (a) that of the jackknife.

    Grey is what chance gives: in (a) untrained SAEs, the dashed line; in (b) latents that fire as often and are no
    letter's; in (c) the same tokens shuffled. The dotted line in (b) is the ground-truth probe.

    Args:
        evaluation: results/evaluation.parquet.
        seed_stability: results/seed_stability.parquet; where it is empty, (a) says so.
    """
    methods = _methods(evaluation)
    fig, axes = plt.subplots(1, 3, figsize=(FULL_WIDTH, 1.3 + 0.2 * len(methods)), sharey=True)
    data: list[dict[str, Any]] = []
    for ax, letter, (title, (metric, label, control)) in zip(axes, "abc", _PANELS.items(), strict=True):
        for place, (method, part) in enumerate(methods.items()):
            style = look(method)
            if control is not None:
                chance = _interval(part, control)
                _dot(ax, chance, place, GREY, "o", hollow=True)
                data.append(_record(title, method, control, chance))
            found = _pairs(seed_stability, method, metric) if metric == "matched_cosine" else _interval(part, metric)
            _dot(ax, found, place, style.color, style.marker)
            if found.n == 0:
                ax.text(0.5, place, "not run", ha="center", va="center", fontsize=6, transform=ax.get_yaxis_transform())
            data.append(_record(title, method, metric, found))
        ax.set(ylim=(len(methods) - 0.5, -0.5), xlabel=label)
        panel(ax, letter, title)
    floor = _pairs(seed_stability, "untrained", "matched_cosine").mean
    ceiling = t_interval(value for part in methods.values() for value in _seeds(part, _CEILING)).mean
    for ax, value, line in ((axes[0], floor, "--"), (axes[1], ceiling, ":")):
        if math.isfinite(value):
            ax.axvline(value, color=GREY, linestyle=line, linewidth=0.8, zorder=0)
    if math.isfinite(ceiling):
        data.append({"panel": "across contexts", "method": "", "metric": _CEILING, "mean": ceiling})
    axes[0].set_yticks(range(len(methods)), [method_name(method) for method in methods])
    axes[1].set_xlim(left=0)
    _legend(fig)
    sns.despine(fig)
    return fig, pd.DataFrame(data)


def context_table(evaluation: pd.DataFrame) -> Table:
    """Stability across contexts in full: in prompts and in running text, with controls and ceilings."""
    shown, data = [], []
    methods = _methods(evaluation)
    for method, part in methods.items():
        line = {"method": method_name(method), "seeds": str(part["seed"].nunique())}
        for column, metric in CONTEXT_METRICS.items():
            interval = _interval(part, column)
            line[metric.header] = cell(interval, metric.decimals)
            values = interval._asdict()
            data.append({"row": method_name(method), "metric": column, "better": metric.direction, **values})
        shown.append(line)
    caption = (
        "Stability across contexts. fires: share of a word's contexts in which its letter's first main latent fires, "
        "mean over words; any main latent: the same for any of the letter's; again: probability that it fires in "
        "another context of a word when it fires in one; equal density: latents that fire as often and are no "
        "letter's; probe: the ground-truth probe, the ceiling. Contexts are prompts with different examples, then the "
        f"words' occurrences in held-out text. Mean ± sd over seeds. {ARROW_NOTE}. {seeds_note(methods.values())}"
    )
    return Table(pd.DataFrame(shown), pd.DataFrame(data), caption)


def _methods(evaluation: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The SAEs of each main method, then the untrained ones."""
    rows = rows_of(evaluation, "main", "untrained")
    kept = rows[rows["method"].isin(MAIN_METHODS) | (rows["group"] == "untrained")]
    return {method: kept[kept["method"] == method] for method in in_order([*kept["method"]])}


def _seeds(part: pd.DataFrame, column: str) -> pd.Series:
    return by_seed(part, column) if column in part else pd.Series(dtype=float)


def _interval(part: pd.DataFrame, column: str) -> Interval:
    return t_interval(_seeds(part, column))


def _pairs(seed_stability: pd.DataFrame, method: str, column: str) -> Interval:
    """The interval over seeds; the mean alone where there are too few seeds for a jackknife."""
    if column not in seed_stability:
        return t_interval([])
    rows = seed_stability[seed_stability["group"].isin(["main", "untrained"]) & (seed_stability["method"] == method)]
    interval = t_interval(pair_values(rows, column))
    return interval if interval.n else t_interval([rows[column].mean()] if len(rows) else [])


def _record(title: str, method: str, metric: str, interval: Interval) -> dict[str, Any]:
    return {"panel": title, "method": method, "metric": metric, **interval._asdict()}


def _dot(ax: Axes, interval: Interval, place: float, color: str, marker: str, *, hollow: bool = False) -> None:
    if interval.n == 0:
        return
    error = None
    if math.isfinite(interval.low):
        error = [[interval.mean - interval.low], [interval.high - interval.mean]]
    ax.errorbar(
        interval.mean, place, xerr=error, fmt=marker, color=color, markerfacecolor="none" if hollow else color,
        elinewidth=1.0, capsize=0 if hollow else 2,
    )  # fmt: skip


def _legend(fig: Figure) -> None:
    def grey(label: str, **style: Any) -> Line2D:
        return Line2D([], [], color=GREY, label=label, **style)

    handles = [
        grey("(a) untrained SAEs", linestyle="--", linewidth=0.8),
        grey("(b) latents of equal density, (c) shuffled tokens", linestyle="", marker="o", markerfacecolor="none"),
        grey("(b) ground-truth probe", linestyle=":", linewidth=0.8),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
