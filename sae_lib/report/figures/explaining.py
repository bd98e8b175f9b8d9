"""Figures that explain rather than conclude: what SAEs see of a sentence, the probe of the language model, the
mechanisms at work, firing rates."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from sae_lib.report.figures.style import FULL_WIDTH, GREY, look, panels, small_panels
from sae_lib.report.names import MAIN_METHODS, in_order, method_name
from sae_lib.report.results import rows_of
from sae_lib.util.errors import ArtifactError

LATENTS_SHOWN = 24


def strongest_latents(
    f: Float[np.ndarray, "token d_sae"], count: int = LATENTS_SHOWN
) -> Float[np.ndarray, "latent token"]:
    """The `count` latents with the largest activation anywhere in the sentence, each as a share of its own largest,
    in the order of the token on which they are largest."""
    largest = f.max(axis=0)
    chosen = np.argsort(-largest, kind="stable")[:count]
    chosen = chosen[largest[chosen] > 0]
    chosen = chosen[np.argsort(f[:, chosen].argmax(axis=0), kind="stable")]
    return (f[:, chosen] / largest[chosen]).T


def sentence_figure(
    pieces: Sequence[str], latents: Mapping[str, Float[np.ndarray, "token d_sae"]]
) -> tuple[Figure, pd.DataFrame]:
    """One panel for each method: its strongest latents (rows) on the tokens of a sentence (columns, `pieces`), from its
    activations on them. Beside the figure, each method's L0 on the sentence and `kept`: of the latents that are on at
    a token, the mean share that were on at the token before."""
    methods = in_order(list(latents))
    fig, axes = small_panels(methods, 1.35, 0.7, gridspec_kw={"hspace": 0.05})
    rows = []
    for ax, method in zip(axes.flat, methods, strict=False):
        f = latents[method]
        fade = LinearSegmentedColormap.from_list(method, [(1, 1, 1), to_rgb(look(method).color)])
        ax.spines[:].set_visible(True)
        ax.imshow(strongest_latents(f), aspect="auto", cmap=fade, vmin=0, vmax=1, interpolation="nearest")
        ax.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=6)
        ax.tick_params(axis="x", length=0)
        ax.set_yticks([])
        on = f > 0
        kept = (on[1:] & on[:-1]).sum(axis=1) / np.maximum(on[1:].sum(axis=1), 1)
        rows.append({"method": method, "l0": on.sum(axis=1).mean(), "kept": kept.mean()})
    axes[0, 0].set_ylabel("latents")
    return fig, pd.DataFrame(rows)


def probe_figure(probe: pd.DataFrame, least_f1: float) -> tuple[Figure, pd.DataFrame]:
    """The ground-truth probe's F1 for each letter (`show.probe_letters`); letters above `least_f1` are evaluated."""
    fig, ax = plt.subplots(figsize=(FULL_WIDTH, 2.0))
    counted = probe["probe_f1"] > least_f1
    ax.bar(probe["letter"], probe["probe_f1"], color=np.where(counted, look("standard").color, GREY))
    ax.axhline(least_f1, color="black", linewidth=0.8, linestyle="--")
    text, place = f"evaluated\nabove {least_f1:g}", ("axes fraction", "data")
    ax.annotate(text, (1.01, least_f1), xycoords=place, va="center", fontsize=7)
    ax.set(xlabel="first letter", ylabel="probe F1 on test words\n(higher is better)", ylim=(0, 1.02))
    ax.margins(x=0.01)
    return fig, probe


def mechanism_figure(history: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """What the papers' mechanisms do during training: (a) how often alpha (Eq. 4) is saturated, (b) the share of
    latents that is masked, (c) how many latents have been resampled so far; mean over seeds.

    Raises ArtifactError when no SAE has any of them."""
    rows = rows_of(history, "main", "as_written")
    quantities = {
        "alpha_saturated": ("share of steps with α near 0 or 1", "temporal penalty"),
        "mask_rate": ("share of latents masked", "masking"),
        "resampled": ("latents resampled so far", "resampling"),
    }
    if not any(column in rows and rows[column].notna().any() for column in quantities):
        raise ArtifactError("history: none of these SAEs has a mechanism; train TemporalSAE or ATM first")
    fig, axes = panels((title for _, title in quantities.values()), 2.3, sharex=True)
    data = []
    for ax, (column, (ylabel, _)) in zip(axes, quantities.items(), strict=True):
        known = rows.dropna(subset=[column]) if column in rows else rows.iloc[:0]
        for (method, group), part in known.groupby(["method", "group"], sort=True):
            values = part.pivot_table(index="step", columns="seed", values=column)
            mean = (values.cumsum() if column == "resampled" else values).mean(axis=1)
            note, line = ("", "-") if group == "main" else (", as written", ":")
            label = f"{method_name(method.removeprefix('paper_'))}{note}"
            ax.plot(mean.index, mean, color=look(method).color, linestyle=line, label=label)
            drawn = pd.DataFrame({"quantity": column, "method": method, "group": group, "mean": mean})
            data.append(drawn.reset_index())
        ax.set(xlabel="optimiser step", ylabel=ylabel)
        if column != "resampled":
            ax.set_ylim(-0.03, 1.03)
        if ax.lines:
            ax.legend(fontsize=6)
    return fig, pd.concat(data, ignore_index=True)


def density_figure(density: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Firing rates on held-out text, latents per bin, mean over seeds; what never fires is on the left."""
    rows = rows_of(density, "main")
    data = rows.groupby(["method", "log10_rate_left"], sort=True)["count"].mean().reset_index()
    methods = [method for method in in_order([*data["method"]]) if method in MAIN_METHODS]
    fig, axes = small_panels(methods, 1.4, 0.5, sharey=True)
    for ax, method in zip(axes.flat, methods, strict=False):
        part = data[data["method"] == method]
        width = np.diff(part["log10_rate_left"]).min()
        ax.bar(part["log10_rate_left"], part["count"], width=width, align="edge", color=look(method).color)
    for ax in axes[:, 0]:
        ax.set_ylabel("latents")
    fig.supxlabel("log10 of the firing rate (share of tokens on which a latent is on)", fontsize=8)
    return fig, data
