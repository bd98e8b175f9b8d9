"""Values at common L0: interpolation, intervals and differences by hand and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sae_lib.report.results import l0_is_matched
from sae_lib.report.statistics import holm, p_value, pair_values, t_interval
from sae_lib.report.tables.sweep import (
    BY_L0,
    NOWHERE,
    Curve,
    equal_ev_table,
    gap_between,
    literature_table,
    sweep_table,
)
from tests.report import synthetic


def rows(method: str, *levels: tuple[str, float, list[float]]) -> pd.DataFrame:
    """One row per seed of each (label, L0, metric by seed); label 'main' is group main, seeds 42 and up."""
    return pd.DataFrame(
        [
            {
                "group": "main" if label == "main" else "sweep", "method": method,
                "label": "" if label == "main" else label, "seed": (42 if label == "main" else 7) + n, "l0": l0,
                "y": value,
            }
            for label, l0, values in levels
            for n, value in enumerate(values)
        ]
    )  # fmt: skip


# Levels at L0 10 and 100: means 1 and 3, sums of squares 0.02 and 0.08 with one degree of freedom each.
TWO = rows("topk", ("k=10", 10.0, [0.9, 1.1]), ("k=100", 100.0, [2.8, 3.2]))


def test_between_two_levels_by_hand() -> None:
    """At L0 10^1.25, a quarter of the way in log L0."""
    estimate = Curve.of(TWO, "y").at(10**1.25)
    sd = math.sqrt((0.02 + 0.08) / 2)
    error = sd * math.sqrt(0.75**2 / 2 + 0.25**2 / 2)
    half = stats.t.ppf(0.975, 2) * error
    assert estimate.interval.mean == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert estimate.error == pytest.approx(error) and estimate.df == 2
    assert estimate.interval.high - estimate.interval.mean == pytest.approx(half)


def test_nothing_is_read_off_beyond_the_levels() -> None:
    curve = Curve.of(TWO, "y")
    assert curve.at(9.0) is curve.at(110.0) is Curve.of(TWO.iloc[:0], "y").at(10.0) is NOWHERE
    at_the_end = curve.at(101.0)
    assert at_the_end.interval.mean == pytest.approx(3.0)


def test_near_the_main_level_its_seeds_speak() -> None:
    """The five seeds' own interval, moved along the curve: slope 2 per decade to the left of L0 100."""
    own = [2.9, 3.0, 3.1, 3.05, 2.95]
    curve = Curve.of(rows("topk", ("k=10", 10.0, [0.9, 1.1]), ("main", 100.0, own)), "y")
    estimate = curve.at(90.0)
    moved = [value + 2 * math.log10(0.9) for value in own]
    assert estimate.interval == pytest.approx(t_interval(moved))
    far = curve.at(70.0)
    assert far.own.empty and far.df == 1 + 4


def test_levels_at_one_place_are_one() -> None:
    """A sweep level a tenth from the main level would put a step of noise into the curve."""
    close = rows("topk", ("k=40", 40.0, [5.0, 5.0]), ("main", 44.0, [1.0, 1.1, 0.9]), ("k=80", 80.0, [2.0, 2.0]))
    assert [level.label for level in Curve.of(close, "y").levels] == ["main", "k=80"]
    unusable = rows("topk", ("k=0", 0.0, [1.0]), ("k=5", 5.0, [math.nan]))
    assert Curve.of(unusable, "y").levels == ()


def test_differences_are_paired_where_both_have_seeds_and_welchs_elsewhere() -> None:
    first, second = [1.0, 1.2, 0.9], [0.5, 0.9, 0.6]
    curves = [Curve.of(rows("m", ("main", 40.0, values)), "y") for values in (first, second)]
    a, b = (curve.at(40.0) for curve in curves)
    test = stats.ttest_rel(first, second)
    gap, p = gap_between(a, b)
    assert [gap.mean, p] == pytest.approx([1.1 / 3, test.pvalue])
    assert (gap.low, gap.high) == pytest.approx(tuple(test.confidence_interval(0.95)))

    # One sweep level each: no other level to pool with, so SciPy's Welch test of the same numbers.
    sweeps = [Curve.of(rows("m", ("k=40", 40.0, values)), "y") for values in ([1.0, 1.2, 0.9], [0.5, 0.9])]
    a, b = (curve.at(40.0) for curve in sweeps)
    welch = stats.ttest_ind([1.0, 1.2, 0.9], [0.5, 0.9], equal_var=False)
    gap, p = gap_between(a, b)
    assert p == pytest.approx(welch.pvalue)
    assert gap.low == pytest.approx(welch.confidence_interval(0.95).low)


def test_one_seed_a_level_gives_values_without_intervals() -> None:
    single = Curve.of(rows("m", ("k=10", 10.0, [1.0]), ("k=40", 40.0, [2.0])), "y")
    estimate = single.at(20.0)
    assert estimate.interval.mean == pytest.approx(1.5)
    assert math.isnan(estimate.interval.low) and math.isnan(gap_between(estimate, estimate)[1])


def test_holm_is_over_a_column() -> None:
    table = sweep_table(synthetic.evaluation(), (16, 40))
    for metric, part in table.data.groupby("metric"):
        assert part["p_holm"].tolist() == pytest.approx(holm(part["p"]), nan_ok=True)
        assert part["p"].notna().sum() == 9 * 2, metric
    stars = table.shown.set_index(["L0", "method"])["absorption, fraction ↓"].str.contains("*", regex=False)
    assert not stars["40", "Standard"] and stars["40", "TopK"]


def test_holm_by_hand() -> None:
    """Sorted .01 .02 .03 .04: times 4, 3, 2, 1 gives .04 .06 .06 .04, made monotone; capped at 1; NaN left out."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02, math.nan, 0.01]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert holm([]) == []


def test_p_value_is_scipys() -> None:
    values = [0.2, 0.5, -0.1, 0.4]
    assert p_value(t_interval(values)) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    assert p_value(t_interval(values), 0.3) == pytest.approx(stats.ttest_1samp(values, 0.3).pvalue)
    assert math.isnan(p_value(t_interval([1.0])))
    assert (p_value(t_interval([2.0, 2.0])), p_value(t_interval([0.0, 0.0]))) == (0.0, 1.0)


def test_pairs_of_seeds_by_the_jackknife() -> None:
    """Three seeds, pairs .5 (1, 2), .6 (1, 3), .9 (2, 3): U = 2/3; without seed 1, .9; without 2, .6; without 3, .5."""
    pairs = pd.DataFrame({"seed_a": [1, 1, 2], "seed_b": [2, 3, 3], "cosine": [0.5, 0.6, 0.9]})
    values = pair_values(pairs, "cosine")
    assert values.to_dict() == pytest.approx({1: 2 - 1.8, 2: 2 - 1.2, 3: 2 - 1.0})
    assert values.mean() == pytest.approx(2 / 3)
    assert pair_values(pairs.iloc[:1], "cosine").empty and pair_values(pairs.iloc[:2], "cosine").empty

    # Where a pair's value is the mean of its seeds' own values, the jackknife gives back those.
    own = {1: 0.1, 2: 0.4, 3: 0.8, 4: 0.3}
    every = [(a, b, (own[a] + own[b]) / 2) for a in own for b in own if a < b]
    assert pair_values(pd.DataFrame(every, columns=["seed_a", "seed_b", "y"]), "y").to_dict() == pytest.approx(own)


def test_matched_l0() -> None:
    assert l0_is_matched([32.1, 40, 50]) and not l0_is_matched([32, 40, 50.1]) and not l0_is_matched([math.nan])
    assert l0_is_matched(np.array([40.0]))


def test_equal_explained_variance_by_hand() -> None:
    """TopK explains .7 at L0 10 and .9 at 1000: .8, the main level's, at 100. ATM stays below."""
    told = rows("topk", ("k=10", 10.0, [0.7]), ("main", 100.0, [0.8, 0.8]), ("k=1000", 1000.0, [0.9]))
    atm = rows("atm", ("a", 10.0, [0.2]), ("b", 100.0, [0.3]))
    table = pd.concat([told, atm]).rename(columns={"y": "explained_variance"})
    table["absorption_full"] = np.where(table["l0"] < 50, 0.5, 0.3)
    shown = equal_ev_table(table).shown.set_index("method")
    assert shown.loc["TopK", "L0 –"] == "100.0" and shown.loc["ATM", "L0 –"] == "–"
    assert shown.loc["TopK", "absorption, full ↓"].startswith("0.300") and shown.iloc[1, 1] == "–"


def test_the_literatures_order_is_counted() -> None:
    """The published values agree with themselves in all pairs; upside down, in none."""
    for sign, counts in ((1, ("12 of 12", "18 of 18")), (-1, ("0 of 12", "0 of 18"))):
        parts = [
            rows(method, *((f"k={l0:g}", l0, [sign * value]) for l0, value in of_l0.items()))
            for method, of_l0 in BY_L0.items()
        ]
        caption = literature_table(pd.concat(parts).rename(columns={"y": "absorption_full"})).caption
        assert all(f"{count} of " in caption for count in counts)
