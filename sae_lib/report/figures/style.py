"""One look for every figure, and one way to save it: PDF, PNG and the CSV behind it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lib.util.files import atomic_write

COLUMN_WIDTH = 3.4
FULL_WIDTH = 7.0
_PALETTE = sns.color_palette("colorblind").as_hex()
GREY = _PALETTE[7]
DARK = "#404040"


class Look(NamedTuple):
    """Colour, marker and line style of a method: each of the three alone tells the main methods apart."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


LOOKS: dict[str, Look] = {
    "standard": Look(_PALETTE[0], "o", "-"),
    "gated": Look("#000000", "h", (0, (8, 1))),
    "topk": Look(_PALETTE[1], "s", "--"),
    "batchtopk": Look(_PALETTE[5], "D", (0, (4, 1, 1, 1))),
    "matryoshka_2": Look("#4b0092", "<", (0, (5, 1, 1, 1, 1, 1))),
    "matryoshka_4": Look("#882255", ">", (0, (2, 1))),
    "jumprelu": Look(_PALETTE[9], "^", ":"),
    "temporal_sae": Look(_PALETTE[2], "P", (0, (6, 2))),
    "atm": Look(_PALETTE[3], "X", "-."),
    "dropout": Look(_PALETTE[4], "v", (0, (1, 2))),
    "matryoshka": Look("#882255", ">", (0, (2, 1))),
    "temporal_strong": Look("#00441b", "*", (0, (7, 2, 2, 2))),
    "temporal_previous": Look(_PALETTE[8], "p", (0, (3, 3))),
    "variance": Look(_PALETTE[6], "d", (0, (1, 1))),
    "paper_standard": Look(_PALETTE[0], "o", "-"),
    "paper_atm": Look(_PALETTE[3], "X", "-."),
    "untrained": Look(GREY, "*", "-"),
}


def look(method: str) -> Look:
    """The look of a method; methods without one of their own are grey dots."""
    return LOOKS.get(method, Look(GREY, ".", "-"))


def set_style() -> None:
    """Seaborn's paper context, ticks, colour-blind palette; type sizes for a column of 3.4 inches."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
        rc={
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "axes.titlelocation": "left",
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.title_fontsize": 7,
            "legend.frameon": False,
            "axes.linewidth": 0.6,
            "lines.linewidth": 1.2,
            "lines.markersize": 4.5,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "figure.dpi": 120,
            "figure.constrained_layout.use": True,
            "pdf.fonttype": 42,
        },
    )


def panel(axes: Axes, letter: str, title: str) -> None:
    """Name a panel '(a) title' above its left edge."""
    axes.set_title(f"({letter}) {title}", loc="left")


def save_figure(fig: Figure, name: str, data: pd.DataFrame, folder: Path | str) -> list[Path]:
    """Write `name`.pdf, `name`.png (200 dpi) and `name`.csv into `folder`, each whole or not at all.

    The same figure gives the same bytes: the PDF carries no date. Returns the three paths.
    """
    folder = Path(folder)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png", "csv")]
    with atomic_write(paths[0], "wb") as file:
        fig.savefig(file, format="pdf", metadata={"CreationDate": None})
    with atomic_write(paths[1], "wb") as file:
        fig.savefig(file, format="png", dpi=200)
    with atomic_write(paths[2]) as file:
        data.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    return paths
