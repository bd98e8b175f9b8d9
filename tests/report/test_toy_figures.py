from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_lib.report.figures.toy import toy_importance_figure, toy_matched_figure, toy_rho_figure, toy_sweep_figure
from sae_lib.util.errors import ArtifactError

SEEDS = (42, 43, 44)


def rows(experiment: str, seeds: tuple[int, ...] = SEEDS, **columns: Any) -> list[dict[str, Any]]:
    """One row per seed; parent_silent_rate is 0.5 + 0.01 (seed - 43)."""
    return [
        {
            "experiment": experiment, "toy": "tree", "label": "", "seed": seed, "rho": 0.0, "cos_child_parent": 0.3,
            "parent_silent_rate": 0.5 + 0.01 * (seed - 43), "explained_variance": 0.99, "l0": 1.1, "true_l0": 1.12,
        }
        | columns
        for seed in seeds
    ]  # fmt: skip


@pytest.fixture
def summary() -> pd.DataFrame:
    made = [row for method in ("standard", "topk", "atm") for row in rows("matched", method=method)]
    made += rows("matched", method="standard", toy="pair", parent_silent_rate=0.0)
    made += rows("next_k", method="topk", l0=2.0)
    for method, level in itertools.product(("standard", "atm", "variance"), (1.0, 2.0, 4.0)):
        made += rows("sweep", (7, 8), method=method, label=f"l1={1 / level:g}", l0=level)
    for method, rho in itertools.product(("temporal_strong", "temporal_previous", "variance"), (0.0, 0.9)):
        made += rows("rho", method=method, label="strong", rho=rho, toy="chain")
    made += rows("rho", method="temporal_strong", label="published", toy="chain")
    for importance, dropped in (("all", "nothing"), ("magnitude+frequency", "contribution"), ("product", None)):
        made += rows("importance", method="atm", importance=importance, dropped=dropped)
    made += rows("importance", method="dropout", importance="uniform")
    return pd.DataFrame(made)


def test_matched(summary: pd.DataFrame):
    fig, data = toy_matched_figure(summary)
    standard = data[(data["method"] == "standard") & (data["metric"] == "parent_silent_rate")].iloc[0]
    assert (standard["mean"], standard["sd"], standard["n"]) == (pytest.approx(0.5), pytest.approx(0.01), 3)
    # t quantile of two degrees of freedom: 4.3027
    assert standard["high"] - standard["mean"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["Standard", "TopK", "ATM"]
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["true L0", "next whole k, above the true L0"]
    without = summary[summary["experiment"] != "next_k"]
    assert [text.get_text() for text in toy_matched_figure(without)[0].legends[0].get_texts()] == ["true L0"]


def test_sweep_leaves_out_the_penalties(summary: pd.DataFrame):
    fig, data = toy_sweep_figure(summary)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["Standard", "ATM"]
    assert "variance" not in set(data["method"])
    curve = fig.axes[0].get_lines()[0]
    assert np.asarray(curve.get_xdata()).tolist() == [1.0, 2.0, 4.0], "from sparse to dense"


def test_rho(summary: pd.DataFrame):
    fig, data = toy_rho_figure(summary)
    assert len(fig.axes) == 4 and set(data["label"]) == {"strong", "published"}
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["0", "0.9"]
    assert fig.legends[0].get_texts()[-1].get_text().endswith("as published")


def test_importance(summary: pd.DataFrame):
    fig, data = toy_importance_figure(summary)
    names = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert names == ["mean of all parts", "without contribution", "product of all parts", "uniform dropout"]
    assert np.isclose(data.loc[data["metric"] == "l0", "mean"], 1.1).all()


def test_one_seed_has_no_interval(summary: pd.DataFrame, tmp_path):
    one = summary[summary["seed"].isin((42, 7))]
    for draw in (toy_matched_figure, toy_sweep_figure, toy_rho_figure, toy_importance_figure):
        fig, data = draw(one)
        fig.savefig(tmp_path / "figure.png")
        assert data["sd"].isna().all() and (data["n"] == 1).all()


@pytest.mark.parametrize("draw", [toy_matched_figure, toy_sweep_figure, toy_rho_figure, toy_importance_figure])
def test_nothing_to_draw(draw, summary: pd.DataFrame):
    with pytest.raises(ArtifactError, match="run notebook 03"):
        draw(summary.iloc[:0])
