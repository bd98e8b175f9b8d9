"""Explaining figures draw what they return, from full results and from results without mechanisms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sae_lib.report.figures.explaining import (
    density_figure,
    mechanism_figure,
    probe_figure,
    sentence_figure,
    strongest_latents,
)
from tests.report import synthetic


def heights(fig: Figure) -> list[float]:
    """Heights of the bars of the first panel."""
    return [bar.get_height() for bar in fig.axes[0].patches if isinstance(bar, Rectangle)]


def test_probe_bars_are_the_table_and_the_gate_is_drawn() -> None:
    table = pd.DataFrame({"letter": list("abc"), "probe_f1": [0.9, 0.5, 0.7]})
    fig, data = probe_figure(table, least_f1=0.6)
    bars = fig.axes[0].patches
    assert heights(fig) == data["probe_f1"].tolist()
    assert bars[0].get_facecolor() == bars[2].get_facecolor() != bars[1].get_facecolor()
    assert np.asarray(fig.axes[0].lines[0].get_ydata())[0] == 0.6


def test_mechanisms_count_restarts_up_and_skip_what_was_not_used() -> None:
    history = synthetic.history(seeds=(1, 2), steps=100)
    history["resampled"] = history["method"].eq("temporal_sae").map({True: 3.0, False: float("nan")})
    fig, data = mechanism_figure(history)
    counted = data[(data["quantity"] == "resampled") & (data["group"] == "main")]
    assert counted["mean"].tolist() == [3.0 * (i + 1) for i in range(len(counted))]
    assert set(counted["method"]) == {"temporal_sae"}
    assert not len(fig.axes[1].lines)  # no method of these results masks


def test_firing_rates_are_means_over_seeds() -> None:
    rows = [("main", "topk", seed, left, count) for seed, counts in ((1, (4, 6)), (2, (8, 2)))
            for left, count in zip((-2.0, -1.0), counts, strict=True)]  # fmt: skip
    density = pd.DataFrame(rows, columns=["group", "method", "seed", "log10_rate_left", "count"])
    fig, data = density_figure(density)
    assert data["count"].tolist() == [6.0, 4.0]
    assert heights(fig) == [6.0, 4.0]


# Tokens by latents: 0 fires on tokens 0 and 1, 1 on token 2 alone, 2 never, 3 on all.
F = np.array([[4.0, 0.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0], [0.0, 8.0, 0.0, 2.0]], dtype=np.float32)


def test_strongest_latents_in_the_order_of_their_tokens():
    shown = strongest_latents(F)
    # Latent 0 peaks on token 0; latents 1 and 3 on token 2, the stronger first. Shares of each one's own peak.
    np.testing.assert_allclose(shown, np.array([[1, 0.5, 0], [0, 0, 1], [0.5, 0.5, 1]]))
    np.testing.assert_allclose(strongest_latents(F, count=1), np.array([[0, 0, 1]]))


def test_figure_and_its_numbers():
    fig, data = sentence_figure(["a", " b", "c"], {"topk": F, "standard": np.eye(3, 4, dtype=np.float32)})
    assert data["method"].tolist() == ["standard", "topk"], "in the order of every table"
    assert data["l0"].tolist() == pytest.approx([1.0, 2.0])
    # topk: both latents of token 1 were on at token 0; of token 2's two, one was.
    assert data["kept"].tolist() == pytest.approx([0.0, 0.75])
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == ["Standard", "TopK"]
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["a", " b", "c"]
