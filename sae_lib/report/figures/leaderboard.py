"""The leaderboard as a picture: every method on a row, one panel for each measure that a choice rests on."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lib.report.figures.style import DARK, FULL_WIDTH, dot, look, name_rows
from sae_lib.report.names import method_name
from sae_lib.report.results import main_rows
from sae_lib.report.statistics import Interval
from sae_lib.report.tables.leaderboard import leaderboard_table

# Metric of the table's data -> what its panel is called.
PANELS = {
    "explained_variance": "explained\nvariance",
    "absorption_full": "absorption,\nfull",
    "probing_k1": "probing,\nk = 1",
    "synthetic_f1": "known features:\nF1",
    "loud_excess_absorption": "known features:\nexcess absorption",
}


def leaderboard_figure(evaluation: pd.DataFrame, toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Dots are means with 95 % t intervals over seeds. Hollow: controls, which do not set the range of a panel; one
    outside stands at its edge, as a number. Known features: the synthetic data, and the tree with loud children.
    """
    data = leaderboard_table(evaluation, toy_summary).data
    rows = main_rows(evaluation)
    controls = {method_name(method) for method, part in rows.items() if part["group"].iloc[0] != "main"}
    fig, axes = plt.subplots(1, len(PANELS), figsize=(FULL_WIDTH, 0.9 + 0.15 * len(rows)), sharey=True)
    for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
        ax.set_title(title, fontsize=7)
        means = data[data["metric"] == metric].set_index("row")
        if len(means):
            ax.set_xlabel("better →" if means["better"].iloc[0] == "higher" else "← better")
        shown = means.drop([*controls], errors="ignore")["mean"].dropna()
        if len(shown):
            room = 0.15 * max(shown.max() - shown.min(), 1e-3)
            ax.set_xlim(shown.min() - room, shown.max() + room)
        for place, method in enumerate(rows):
            if (name := method_name(method)) in means.index:
                interval = Interval(*means.loc[name, list(Interval._fields)])
                _draw(ax, interval, place, method, hollow=name in controls)
        ax.grid(axis="y", color="0.92", linewidth=0.6)
        ax.set_axisbelow(True)
    name_rows(axes[0], [method_name(method) for method in rows])
    return fig, data


def _draw(ax: Axes, interval: Interval, place: int, method: str, hollow: bool) -> None:
    low, high = ax.get_xlim()
    if interval.n and low <= interval.mean <= high:
        dot(ax, interval, place, look(method), "none" if hollow else None, elinewidth=0.9, capsize=0)
    elif interval.n:
        left = interval.mean < low
        text = f"{'‹ ' if left else ''}{interval.mean:.2f}{'' if left else ' ›'}"
        where, align = (0.02, "left") if left else (0.98, "right")
        ax.text(where, place, text, ha=align, va="center", fontsize=6, color=DARK, transform=ax.get_yaxis_transform())
