"""Every method in one line."""

from __future__ import annotations

from typing import Literal

import pytest

from sae_lib.metrics.registry import Column
from sae_lib.report.statistics import Interval
from sae_lib.report.tables.leaderboard import _met, bar_table, leaderboard_table
from sae_lib.util.errors import ArtifactError
from tests.report import synthetic

RESULTS = synthetic.results((42, 43, 44))


def test_cost_is_a_multiple_of_topks_and_toys_stand_beside_the_language_model() -> None:
    rows = RESULTS.evaluation.copy()
    rows.loc[rows["method"] == "topk", "train_seconds"] = 20.0
    rows.loc[rows["method"] == "jumprelu", "train_seconds"] = 30.0
    rows.loc[rows["seed"] == 43, "train_seconds"] *= 7.0  # the machine had other work
    table = leaderboard_table(rows, RESULTS.toy_summary)
    numbers = table.data.set_index(["row", "metric"])
    assert numbers.loc[("JumpReLU", "seconds_of_topk"), "mean"] == pytest.approx(1.5)
    toys = RESULTS.toy_summary.query("experiment == 'field' and toy == 'synthetic' and method == 'topk'")
    assert numbers.loc[("TopK", "synthetic_f1"), "mean"] == pytest.approx(toys["f1"].mean())
    assert table.shown.set_index("method").loc["JumpReLU", "seconds, of TopK's ↓"] == "1.50"
    untrained = table.shown.set_index("method").loc["Untrained"]
    assert untrained["seconds, of TopK's ↓"] == "–" and untrained["synthetic: F1 ↑"] == "–"


def test_without_the_fields_toys_there_is_no_leaderboard() -> None:
    toys = RESULTS.toy_summary
    with pytest.raises(
        ArtifactError, match=r"no rows of experiment 'field'; set ablations.toy.field and run `make field`"
    ):
        leaderboard_table(RESULTS.evaluation, toys[toys["experiment"] != "field"])


def test_an_idea_is_held_against_the_best_by_each_measure() -> None:
    table = bar_table(RESULTS.evaluation, RESULTS.toy_summary)
    shown = table.shown.set_index("measure")
    idea = shown["Consistent encoder"]
    assert shown.loc["tree: excess ↓", "best of the four"] == "0.343 (Matryoshka)"
    assert idea["tree: excess ↓"] == "-0.200 [-0.200, -0.200]" and idea["tree: explained variance ↑"].startswith(
        "+0.000"
    )
    assert shown.loc["absorption, full ↓", "best of the four"].endswith("(Matryoshka (4 levels))")
    assert idea["absorption, full ↓"] == "–" and idea["met"] == "2 of 11", "what was not measured is not met"
    with pytest.raises(ArtifactError, match="no idea among the methods"):
        bar_table(RESULTS.evaluation, RESULTS.toy_summary[RESULTS.toy_summary["method"] != "consistent"])


@pytest.mark.parametrize(
    ("direction", "low", "high", "best", "met"),
    [
        ("higher", -0.2, -0.1, 0.9, False), ("higher", -0.2, 0.0, 0.9, True), ("higher", 0.1, 0.2, 0.9, True),
        ("lower", -0.2, -0.1, 0.3, True), ("lower", -0.2, 0.1, 0.3, False), ("lower", 0.1, 0.2, 0.3, False),
        ("lower", -0.1, 0.1, 0.0, True), ("lower", 0.01, 0.1, 0.0, False),
    ],
)  # fmt: skip
def test_what_is_asked_of_a_better_method(
    direction: Literal["higher", "lower"], low: float, high: float, best: float, met: bool
) -> None:
    gap = Interval((low + high) / 2, 0.1, 5, low, high)
    assert _met(Column("x", direction, 3), gap, best) is met
    assert not _met(Column("x", direction, 3), gap._replace(n=1), best)
