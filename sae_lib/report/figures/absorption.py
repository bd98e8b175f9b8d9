"""Figures of absorption: per letter, where it was planted, what goes through a letter's latents, and on data whose
features are known."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sae_lib.report.figures.style import COLUMN_WIDTH, DARK, FULL_WIDTH, GREY, curve, log_ticks, say
from sae_lib.report.names import METRICS, NOT_MEASURABLE, in_order, method_name
from sae_lib.report.results import BESIDE, by_method, rows_of, toy_rows
from sae_lib.report.statistics import seeds_of, t_interval
from sae_lib.util.errors import ArtifactError

RARE_LETTERS = ("j", "q", "x", "z")  # with few words in any text
STATED = ("parent_silent_rate", "explained_variance")  # of toys, above the panels


def letters_figure(letters: pd.DataFrame, probe: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Absorption (fraction) of each method and letter, mean over seeds, with the evaluated words of each letter. Rare
    letters (darker) are shown whether they are scored or not, crosses where they are not, with the test words that
    `probe` (`show.probe_letters`) has. Without any scored letter, it says so."""
    groups = letters[letters["group"] == "main"].groupby(["method", "letter"], as_index=False)
    data = groups.agg(
        absorption_fraction=("absorption_fraction", "mean"),
        sd=("absorption_fraction", "std"),
        seeds=("seed", "nunique"),
        words=("true_positives", "mean"),
    )
    if data.empty:
        fig, ax = plt.subplots(figsize=(COLUMN_WIDTH, 1.0))
        say(ax, f"{NOT_MEASURABLE}: no letter passed the probe's gate")
        ax.set_axis_off()
        return fig, data
    methods = in_order([*data["method"]])
    words = data.groupby("letter")["words"].mean()
    shown = sorted({*words.index, *RARE_LETTERS})
    table = data.pivot(index="method", columns="letter", values="absorption_fraction").reindex(methods, columns=shown)
    tested = dict(zip(probe["letter"], probe["test_words"], strict=True))
    counts = [float(words.get(letter, tested.get(letter, 0))) for letter in shown]
    places, levels = ([place + 0.5 for place in range(len(each))] for each in (shown, methods))
    size, ratios = (FULL_WIDTH, 1.6 + 0.2 * len(methods)), [1, 0.28 * len(methods)]
    fig, axes = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=ratios)
    bars = axes[0].bar(places, counts, color=[DARK if a in RARE_LETTERS else GREY for a in shown], width=0.8)
    axes[0].bar_label(bars, labels=[f"{n:.0f}" for n in counts], fontsize=6, padding=1)
    axes[0].set(ylabel="words")
    axes[0].margins(y=0.25)
    axes[0].tick_params(axis="x", length=0)
    sns.heatmap(table, ax=axes[1], cmap="cividis", vmin=0, linewidths=0.4, cbar=False)
    for place, letter in zip(places, shown, strict=True):
        if letter not in words:
            axes[1].plot([place] * len(levels), levels, "x", color=GREY, ms=3)
    fig.colorbar(axes[1].collections[0], ax=axes, label=METRICS["absorption_fraction"].axis, aspect=16, pad=0.01)
    axes[1].set(xlabel="first letter", ylabel="")
    axes[1].set_xticks(places, shown, rotation=0)
    axes[1].set_yticks(levels, [method_name(m) for m in methods], rotation=0)
    return fig, data


def planted_figure(planted: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """How much of planted absorption the score finds: fraction (filled) and full (hollow) against the share that was
    planted, by method, mean over seeds. A score that finds all of it and nothing else lies on the line."""
    missing = "planted: no rows; plant absorption in the SAEs of the main table first"
    rows = rows_of(planted, "main", otherwise=missing)
    scores = ("absorption_fraction", "absorption_full")
    named = [f"{score}_known" for score in scores]  # with the silenced latents named, in the data alone
    data = rows.groupby(["method", "planted"])[[*scores, *named]].mean().reset_index()
    fig, ax = plt.subplots(figsize=(COLUMN_WIDTH, 2.8))
    ax.axline((0, 0), slope=1, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
    for method, part in by_method(data).items():
        filled, hollow = scores
        curve(ax, part["planted"], part[filled], method)
        curve(ax, part["planted"], part[hollow], method, markerfacecolor="none", label=None)
    if data[[*scores]].isna().all(axis=None):
        say(ax, NOT_MEASURABLE)
    ax.set(xlabel="share of words planted", ylabel="absorption found\n(fraction filled, full hollow)")
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    ax.legend()
    return fig, data


def circuits_figure(circuits: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """How much of a letter's logit goes through its n strongest latents alone, and through all but those."""
    rows = rows_of(circuits, *BESIDE, otherwise="circuits: no rows; make study finds the circuits of letters")
    panels = {"faithful": "the circuit alone (better ↑)", "outside": "all but the circuit (better ↓)"}
    logits = {f"{name}_logit": rows[name] * rows["whole"] for name in panels}
    stated = rows.assign(**logits).groupby(["method", "n"])[[*panels, *logits, "all_latents", "error", "whole"]]
    stated = stated.agg(["mean", "std"])
    data = stated.set_axis([f"{name}_{of}" for name, of in stated.columns], axis=1).reset_index()
    fig, axes = plt.subplots(1, 2, figsize=(FULL_WIDTH, 2.6), sharex=True, sharey=True)
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
        for level in (0.0, data["whole_mean"].mean()):
            ax.axhline(level, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
        for method, part in by_method(data).items():
            curve(ax, part["n"], part[f"{name}_logit_mean"], method)
        ax.set(xscale="log", xlabel="latents of a letter's circuit", title=title)
        log_ticks(ax.xaxis)
    axes[0].set(ylabel="the letter's logit that is left\n(dotted: none, all)")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig, data


def absorption_picture(toy: pd.DataFrame, toy_summary: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """ATM's Figure 1 from trained SAEs: (top) which latents fire on which inputs, (bottom) which true
    directions their decoder rows point along; mean over seeds. Absorption is a parent's latent that is dark
    where parent and child are on, and a child's latent that points along the parent.

    A row of `toy` has a `value` of `kind` 'activation', of the latent that is matched to feature `latent` on inputs of
    kind `row`; or 'cosine', of its decoder row with the direction of feature `row`.
    """
    methods = in_order([*toy["method"]])
    if not methods:
        raise ArtifactError("toy: no rows; run the toy SAEs of notebook 03 first")
    data = toy.groupby(["kind", "method", "row", "latent"], sort=False)["value"].agg(["mean", "std", "count"])
    data = data.reset_index()
    top = data.loc[data["kind"] == "activation", "mean"].max()
    size = (min(FULL_WIDTH, 1.5 + 1.8 * len(methods)), 3.9)
    fig, axes = plt.subplots(2, len(methods), figsize=size, squeeze=False, sharex=True, sharey="row")
    kinds = {
        "activation": ("input", "mean activation", {"cmap": "cividis", "vmin": 0.0, "vmax": top}),
        "cosine": ("true direction", "decoder cosine", {"cmap": "vlag", "vmin": -1.0, "vmax": 1.0}),
    }
    numbers = {"annot": True, "fmt": ".1f", "annot_kws": {"size": 6}}
    for line, (kind, (side, label, scale)) in enumerate(kinds.items()):
        of_kind = data[data["kind"] == kind]
        for at, method in enumerate(methods):
            ax = axes[line, at]
            table = of_kind[of_kind["method"] == method].pivot(index="row", columns="latent", values="mean")
            table = table.reindex(index=of_kind["row"].unique(), columns=data["latent"].unique()).round(1) + 0.0
            sns.heatmap(table, ax=ax, cbar=False, linewidths=0.4, **numbers, **scale)
            ax.set(xlabel="latent of" if line else "", ylabel="" if at else side)
            ax.tick_params(axis="y", rotation=0, left=at == 0)
            ax.tick_params(axis="x", rotation=90, bottom=line == 1)
        fig.colorbar(axes[line, -1].collections[0], ax=axes[line, :], label=label, aspect=12, pad=0.01)
    matched = by_method(toy_rows(toy_summary, "matched", "tree"))
    for ax, method in zip(axes[0], methods, strict=True):
        title = f"{method_name(method)}\n"
        if method in matched:
            silent, variance = (t_interval(seeds_of(matched[method], c)) for c in STATED)
            sd = f" ± {silent.sd:.2f}" if silent.n > 1 else ""
            title += f"parent silent {silent.mean:.2f}{sd}\nexpl. variance {variance.mean:.3f}"
        ax.set_title(title, loc="center", fontsize=6.5)
    return fig, data
