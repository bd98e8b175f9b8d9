"""Stability across seeds, across contexts and along tokens, each beside what chance gives."""

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_lib.report.figures.style import GREY, Look, dot, look, name_rows, panels, say
from sae_lib.report.names import NOT_MEASURABLE, method_name
from sae_lib.report.results import BESIDE, main_rows, why_empty
from sae_lib.report.statistics import Interval, pair_values, seeds_of, t_interval

# Panel -> what is drawn in the method's colour, its axis, and its control in grey.
_PANELS: dict[str, tuple[str, str, str]] = {
    "across seeds": ("matched_cosine", "cosine of matched decoder rows\n(higher is better)", ""),
    "across contexts": (
        "context_firing", "contexts in which a word's letter\nlatent fires (higher is better)", "context_firing_random",
    ),
    "along tokens": ("token_change", "change per active latent\n(lower is steadier)", "token_change_shuffled"),
}  # fmt: skip
_CEILING = "context_probe"


def stability_figure(evaluation: pd.DataFrame, seed_stability: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """One row per method, with 95 % t intervals over seeds (pairs: jackknife); grey is what chance gives."""
    methods = main_rows(evaluation)
    fig, axes = panels(_PANELS, 1.3 + 0.2 * len(methods), sharey=True)
    data: list[dict[str, Any]] = []
    for ax, (title, (metric, label, control)) in zip(axes, _PANELS.items(), strict=True):
        lacking = metric in evaluation and why_empty(evaluation, metric) == NOT_MEASURABLE
        if lacking:
            say(ax, NOT_MEASURABLE)
        for place, (method, part) in enumerate(methods.items()):
            own = (metric, look(method), None)
            for name, style, face in [(control, Look(GREY, "o", ""), "none"), own] if control else [own]:
                paired = name == "matched_cosine"
                interval = _pairs(seed_stability, method, name) if paired else t_interval(seeds_of(part, name))
                if not lacking:
                    dot(ax, interval, place, style, face)
                data.append({"panel": title, "method": method, "metric": name, **interval._asdict()})
        ax.set(xlabel=label)
    floor = _pairs(seed_stability, "untrained", "matched_cosine").mean
    ceiling = t_interval(value for part in methods.values() for value in seeds_of(part, _CEILING)).mean
    for ax, value, line in ((axes[0], floor, "--"), (axes[1], ceiling, ":")):
        if math.isfinite(value):
            ax.axvline(value, color=GREY, linestyle=line, linewidth=0.8, zorder=0)
    if math.isfinite(ceiling):
        data.append({"panel": "across contexts", "method": "", "metric": _CEILING, "mean": ceiling})
    name_rows(axes[0], [method_name(method) for method in methods])
    axes[1].set_xlim(left=0)
    dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "none"}
    handles = [
        Line2D([], [], color=GREY, label="(a) untrained SAEs", linestyle="--", linewidth=0.8),
        Line2D([], [], color=GREY, label="(b) latents of equal density, (c) shuffled tokens", **dots),
        Line2D([], [], color=GREY, label="(b) ground-truth probe", linestyle=":", linewidth=0.8),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig, pd.DataFrame(data)


def _pairs(seed_stability: pd.DataFrame, method: str, column: str) -> Interval:
    if column not in seed_stability:
        return t_interval([])
    rows = seed_stability[seed_stability["group"].isin(BESIDE) & (seed_stability["method"] == method)]
    interval = t_interval(pair_values(rows, column))
    return interval if interval.n else t_interval([rows[column].mean()])
