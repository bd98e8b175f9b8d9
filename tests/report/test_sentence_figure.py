from __future__ import annotations

import numpy as np
import pytest

from sae_lib.report.figures.explaining import sentence_figure, strongest_latents

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
