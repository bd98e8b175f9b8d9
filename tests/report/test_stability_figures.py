"""The stability figure and its table: what is drawn is what the seeds gave, with what chance gives beside it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sae_lib.report.figures.stability import stability_figure
from sae_lib.report.figures.style import save_figure
from sae_lib.report.names import MAIN_METHODS, method_name
from sae_lib.report.tables.main import CONTEXT_METRICS, contexts_table
from sae_lib.report.tables.write import write_table
from sae_lib.util.errors import ArtifactError
from tests.report import synthetic


@pytest.fixture(scope="module")
def evaluation() -> pd.DataFrame:
    table = synthetic.evaluation()
    noise = np.random.default_rng(0).normal(size=len(table))
    return table.assign(context_firing_random=0.1 + 0.01 * noise, context_probe=0.93, context_repeat=0.9)


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    trained = synthetic.seed_stability()
    floor = [
        {"group": "untrained", "method": "untrained", "seed_a": a, "seed_b": b, "matched_cosine": 0.27}
        for a, b in itertools.combinations(synthetic.SEEDS, 2)
    ]
    return pd.concat([trained, pd.DataFrame(floor)], ignore_index=True)


def row(data: pd.DataFrame, method: str, metric: str) -> pd.Series:
    (found,) = [line for _, line in data.iterrows() if line["method"] == method and line["metric"] == metric]
    return found


def test_rows_are_in_order_and_of_one_group(evaluation: pd.DataFrame, pairs: pd.DataFrame) -> None:
    fig, data = stability_figure(evaluation.sample(frac=1, random_state=0), pairs)
    pd.testing.assert_frame_equal(data, stability_figure(evaluation, pairs)[1])
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    methods = [m for m in MAIN_METHODS if m in set(evaluation.query("group == 'main'")["method"])]
    assert labels == [*map(method_name, methods), "Untrained"]
    # Another group of a method that is in the main table is not mixed in.
    own = evaluation.query("group == 'main' and method == 'temporal_sae'")["context_firing"]
    assert row(data, "temporal_sae", "context_firing")["mean"] == pytest.approx(own.mean())


def test_intervals_are_over_seeds(evaluation: pd.DataFrame, pairs: pd.DataFrame) -> None:
    _, data = stability_figure(evaluation, pairs)
    own = evaluation.query("group == 'main' and method == 'atm'")["token_change"]
    found = row(data, "atm", "token_change")
    half = stats.t.ppf(0.975, 4) * own.std(ddof=1) / 5**0.5
    assert found["n"] == 5 and found["high"] - found["mean"] == pytest.approx(half)
    # Pairs of seeds: the jackknife, written out.
    cosines = pairs.query("group == 'main' and method == 'atm'")
    without = np.array(
        [cosines.query("seed_a != @s and seed_b != @s")["matched_cosine"].mean() for s in synthetic.SEEDS]
    )
    error = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    found = row(data, "atm", "matched_cosine")
    assert found["n"] == 5 and found["mean"] == pytest.approx(cosines["matched_cosine"].mean())
    assert found["high"] - found["mean"] == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_controls_stand_beside_in_grey(evaluation: pd.DataFrame, pairs: pd.DataFrame) -> None:
    fig, data = stability_figure(evaluation, pairs)
    dashed = [line for line in fig.axes[0].lines if line.get_linestyle() == "--"]
    assert [np.asarray(line.get_xdata())[0] for line in dashed] == [pytest.approx(0.27)]
    dotted = [line for line in fig.axes[1].lines if line.get_linestyle() == ":"]
    assert [np.asarray(line.get_xdata())[0] for line in dotted] == [pytest.approx(0.93)]
    own = evaluation.query("group == 'main' and method == 'topk'")["context_firing_random"]
    assert row(data, "topk", "context_firing_random")["mean"] == pytest.approx(own.mean())
    assert row(data, "topk", "token_change_shuffled")["mean"] == pytest.approx(1.2)
    hollow = [[line for line in ax.lines if line.get_markerfacecolor() == "none"] for ax in fig.axes]
    rows = len(fig.axes[0].get_yticks())
    assert [len(lines) for lines in hollow] == [0, rows, rows]


def test_poor_results(evaluation: pd.DataFrame, pairs: pd.DataFrame, tmp_path: Path) -> None:
    """No pairs, two seeds, columns of an older evaluation: drawn as far as there is something to draw."""
    fig, data = stability_figure(evaluation, pairs.iloc[:0])
    assert (data.loc[data["metric"] == "matched_cosine", "n"] == 0).all()
    assert [text.get_text() for text in fig.axes[0].texts] == ["not run"] * len(fig.axes[0].get_yticks())
    two = synthetic.seed_stability(seeds=(42, 43))
    fig, data = stability_figure(synthetic.evaluation(seeds=(42, 43)), two)
    save_figure(fig, "two", data, tmp_path)
    found = row(data, "atm", "matched_cosine")
    assert found["mean"] == two.query("method == 'atm'")["matched_cosine"].item() and np.isnan(found["low"])
    older = evaluation.drop(columns=[name for name in evaluation if name.startswith(("context_", "token_"))])
    _, data = stability_figure(older, pairs)
    assert (data.loc[data["metric"] == "context_firing", "n"] == 0).all()
    assert set(contexts_table(older).shown["fires ↑"]) == {"–"}
    with pytest.raises(ArtifactError, match="no rows of group main"):
        stability_figure(evaluation.iloc[:0], pairs)


def test_context_table(evaluation: pd.DataFrame, tmp_path: Path) -> None:
    table = contexts_table(evaluation)
    shown = table.shown.set_index("method")
    own = evaluation.query("group == 'main' and method == 'atm'")
    assert shown.loc["ATM", "fires ↑"] == f"{own['context_firing'].mean():.3f} ± {own['context_firing'].std():.3f}"
    assert shown.loc["ATM", "words –"] == "300" and "L0 –" in shown.columns
    assert len(table.data) == len(shown) * len(CONTEXT_METRICS)
    found = table.data.set_index(["row", "metric"]).loc[("TopK", "context_firing_random")]
    assert found["low"] < found["mean"] < found["high"] and found["better"] == "none"
    markdown = write_table(table, "t", tmp_path)[1].read_text()
    assert "ceiling" in markdown and "nan" not in markdown
