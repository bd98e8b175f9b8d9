"""How each SAE sees the same sentence: which latents fire on which token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from sae_lib.report.names import in_order, method_name
from sae_lib.report.style import FULL_WIDTH, look

LATENTS_SHOWN = 24


def strongest_latents(
    f: Float[np.ndarray, "token d_sae"], count: int = LATENTS_SHOWN
) -> Float[np.ndarray, "latent token"]:
    """The `count` latents with the largest activation anywhere in the sentence, each as a share of its own largest,
    in the order of the token on which they are largest.
    """
    largest = f.max(axis=0)
    chosen = np.argsort(-largest, kind="stable")[:count]
    chosen = chosen[largest[chosen] > 0]
    chosen = chosen[np.argsort(f[:, chosen].argmax(axis=0), kind="stable")]
    return (f[:, chosen] / largest[chosen]).T


def sentence_figure(
    pieces: Sequence[str], latents: Mapping[str, Float[np.ndarray, "token d_sae"]]
) -> tuple[Figure, pd.DataFrame]:
    """One panel for each method: its strongest latents (rows) on the tokens of a sentence (columns).

    Args:
        pieces: the sentence's tokens as text.
        latents: each method's activations on these tokens.

    Returns:
        The figure and, for each method, its L0 on the sentence and `kept`: of the latents that are on at a token, the
        mean share that were on at the token before.
    """
    methods = in_order(list(latents))
    columns = min(5, len(methods))
    lines = -(-len(methods) // columns)
    fig, axes = plt.subplots(
        lines,
        columns,
        figsize=(FULL_WIDTH, 0.7 + 1.35 * lines),
        sharex=True,
        squeeze=False,
        gridspec_kw={"hspace": 0.05},
    )
    rows = []
    for ax, method in zip(axes.flat, methods, strict=False):
        f = latents[method]
        shown = strongest_latents(f)
        fade = LinearSegmentedColormap.from_list(method, [(1, 1, 1), to_rgb(look(method).color)])
        ax.imshow(shown, aspect="auto", cmap=fade, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(method_name(method), loc="center", fontsize=7)
        ax.set_yticks([])
        on = f > 0
        kept = (on[1:] & on[:-1]).sum(axis=1) / np.maximum(on[1:].sum(axis=1), 1)
        rows.append({"method": method, "l0": on.sum(axis=1).mean(), "kept": kept.mean()})
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    for ax in axes.flat[max(len(methods) - columns, 0) : len(methods)]:
        ax.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=6)
        ax.tick_params(labelbottom=True, length=0)
    for ax in axes.flat[: max(len(methods) - columns, 0)]:
        ax.tick_params(labelbottom=False, length=0)
    axes[0, 0].set_ylabel("latents")
    return fig, pd.DataFrame(rows)
