"""The figure of `step_time`: milliseconds per step of each method, ours and the peers', above the floor."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib import ticker
from matplotlib.figure import Figure

from sae_lib.report.figures.style import COLUMN_WIDTH, DARK, FULL_WIDTH, GREY, set_style
from sae_lib.report.names import method_name

MARKS = {
    ("sae_lib", "float32"): ("ours, fp32", "#0173b2", "o"),
    ("sae_lib", "bfloat16"): ("ours, bf16", "#56b4e9", "o"),
    ("dictionary_learning", "float32"): ("dictionary_learning, fp32", "#de8f05", "s"),
    ("dictionary_learning", "bfloat16"): ("dictionary_learning, bf16", "#ece133", "s"),
    ("sae_lens", "float32"): ("SAELens, fp32", "#cc78bc", "^"),
    ("sae_lens", "bfloat16"): ("SAELens, bf16", "#fbafe4", "^"),
}


def figure(result: dict[str, Any]) -> Figure:
    """One panel for each shape: warm steps, median and quartiles; dashed lines are the floors."""
    set_style()
    shapes = result["shapes"]
    width = COLUMN_WIDTH if len(shapes) == 1 else FULL_WIDTH
    methods = list(dict.fromkeys(row["method"] for row in shapes[0]["rows"]))
    size = (width, 1.3 + 0.24 * len(methods))
    fig, panels = plt.subplots(1, len(shapes), figsize=size, sharey=True, squeeze=False)
    for ax, shape in zip(panels[0], shapes, strict=True):
        _panel(ax, shape, methods)
    handles, labels = panels[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2 if len(shapes) == 1 else 4)
    sns.despine(fig)
    return fig


def _panel(ax: Any, shape: dict[str, Any], methods: list[str]) -> None:
    rows = [row for row in shape["rows"] if row["phase"] == "warm"]
    for (library, precision), (label, color, marker) in MARKS.items():
        mine = [row for row in rows if (row["library"], row["precision"]) == (library, precision)]
        if not mine:
            continue
        median, low, high = (np.array([row["seconds"][key] for row in mine]) * 1e3 for key in ("median", "low", "high"))
        places = [methods.index(row["method"]) for row in mine]
        ax.errorbar(median, places, xerr=[median - low, high - median], fmt=marker, color=color, label=label, ms=4)
    for precision, color, line in (("float32", GREY, ":"), ("bfloat16", DARK, "--")):
        floors = [f["seconds"]["median"] for f in shape["floor"] if f["precision"] == precision]
        if not floors:
            continue
        short = {"float32": "fp32", "bfloat16": "bf16"}[precision]
        ax.axvline(float(np.median(floors)) * 1e3, color=color, linestyle=line, linewidth=0.8, label=f"floor, {short}")
    ax.set(xscale="log", xlabel="ms per step (lower is better)", ylim=(len(methods) - 0.5, -0.5))
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.set_yticks(range(len(methods)), [method_name(method) for method in methods])
    ax.set_title(f"{shape['d_in']} × {shape['d_sae']}, batch {shape['batch']}")
