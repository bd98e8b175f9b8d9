"""Every method in one line."""

from __future__ import annotations

import pytest

from sae_lib.report.tables.leaderboard import bar_table, leaderboard_table
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
    shown = table.shown.set_index("method")
    best, idea = shown.loc["best of the four"], shown.loc["Consistent encoder"]
    assert best["tree: excess ↓"] == "0.343 (Matryoshka)" and idea["tree: excess ↓"] == "-0.200 [-0.200, -0.200]"
    assert best["absorption, full ↓"].endswith("(Matryoshka (4 levels))") and idea["absorption, full ↓"] == "–"
    assert (
        idea["tree: explained variance ↑"].startswith("+0.000")
        and best["loud children: excess ↓"] == "0.010 (Matryoshka)"
    )
    with pytest.raises(ArtifactError, match="no idea among the methods"):
        bar_table(RESULTS.evaluation, RESULTS.toy_summary[RESULTS.toy_summary["method"] != "consistent"])
