"""Means over seeds, with 95 % t intervals, and paired t tests with Holm's correction. The seed is the unit, and
differences are taken seed by seed, because every method sees one stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
# What another make of processor changes in the value of one SAE, as its roundings grow in training: root mean square
# over the SAEs of profile pocket, run on two. "toy" before the name: of SAEs on toy data.
ROUNDING = {
    "absorption_fraction": 0.0135, "absorption_full": 0.0035, "explained_variance": 0.0036, "ce_score": 0.0038,
    "cosine": 0.0026, "probing_k1": 0.0081, "probing_k5": 0.0044, "num_split_features": 0.113, "context_firing": 0.0124,
    "dead_fraction": 0.0004, "matched_cosine": 0.0004, "fluctuation": 0.1, "alpha_loss_correlation": 0.05,
    "toy parent_silent_rate": 0.023, "toy cos_child_parent": 0.007, "toy cos_parent_parent": 0.008,
    "toy explained_variance": 0.0002, "toy top_share": 0.004, "toy alpha_loss_correlation": 0.05,
}  # fmt: skip


class Interval(NamedTuple):
    """Mean and standard deviation (n - 1) of n values, and the t interval of their mean. NaN where n is too small."""

    mean: float
    sd: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        if self.n == 0:
            return "–"
        if self.n == 1:
            return f"{self.mean:.4g} (n = 1)"
        return f"{self.mean:.4g} ± {self.sd:.2g} (n = {self.n})"

    @classmethod
    def around(cls, mean: float, half: float, sd: float, n: int) -> Interval:
        return cls(mean, sd, n, mean - half, mean + half)

    @property
    def range(self) -> str:
        """The mean and its interval, for differences."""
        if self.n < 2:
            return f"{self.mean:+.3g} (n = {self.n}, no interval)"
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}] (n = {self.n})"


def t_interval(values: Iterable[float]) -> Interval:
    """The interval of the mean of `values`; NaN values are left out."""
    array = np.asarray(list(values), dtype=float)
    array = array[np.isfinite(array)]
    n = len(array)
    return _interval(float(array.mean()) if n else math.nan, float(array.std(ddof=1)) if n > 1 else math.nan, n)


def _interval(mean: float, sd: float, n: int) -> Interval:
    return Interval.around(mean, t_quantile(n - 1) * sd / math.sqrt(n) if n > 1 else math.nan, sd, n)


def t_quantile(df: float) -> float:
    """How many standard errors the interval reaches to either side."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) if df > 0 else math.nan


def seeds_of(rows: pd.DataFrame, metric: str) -> pd.Series:
    """`metric` averaged within each seed; empty where the column was not made. `l1_per_l0` is L1 divided by L0."""
    if metric == "l1_per_l0":
        return (seeds_of(rows, "l1") / seeds_of(rows, "l0")).dropna()
    if metric not in rows or rows.empty:
        return pd.Series(dtype=float)
    # A column in which every value is missing comes back from JSON without a type.
    return pd.to_numeric(rows[metric]).groupby(rows["seed"]).mean().astype(float).dropna()


def difference(first: pd.Series, second: pd.Series) -> Interval:
    """The interval of first - second over the seeds that both have."""
    return t_interval((first - second).dropna())


def p_value(interval: Interval, null: float = 0.0) -> float:
    """Two-sided p of the t test that the mean is `null`; of a `difference`, the paired t test. NaN below two values."""
    if interval.n < 2:
        return math.nan
    gap = abs(interval.mean - null)
    if interval.sd == 0:
        return 0.0 if gap > 0 else 1.0
    return float(2 * stats.t.sf(gap * math.sqrt(interval.n) / interval.sd, interval.n - 1))


def guarded(interval: Interval, rounding: float) -> Interval:
    """The interval that allows for another processor, which adds a standard deviation `rounding` to each value."""
    return _interval(interval.mean, math.hypot(interval.sd, rounding), interval.n)


def holm(p_values: Iterable[float]) -> list[float]:
    """Adjusted p values of Holm's step-down procedure (Scand. J. Statist. 6, 1979), in the order given. The i-th
    of m, sorted, becomes max over j <= i of min(1, (m - j + 1) p_j). NaN stays NaN and counts as no comparison.

    >>> holm([0.25, 0.01])
    [0.25, 0.02]
    """
    p = np.asarray(list(p_values), dtype=float)
    known = np.argsort(p)[: np.isfinite(p).sum()]  # NaN is last
    adjusted = np.full(len(p), math.nan)
    adjusted[known] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(known), 0, -1) * p[known]))
    return adjusted.tolist()


def pair_values(pairs: pd.DataFrame, column: str) -> pd.Series:
    """One value per seed of a quantity of pairs of seeds (`seed_a`, `seed_b`), which are not independent: jackknife
    pseudo-values n U - (n - 1) U_(-s), with U the mean over all pairs and U_(-s) that over those without seed s. Their
    t interval is the jackknife's for a U statistic (Arvesen, Ann. Math. Statist. 40, 1969). Empty below three seeds."""
    known = pairs.assign(value=pd.to_numeric(pairs[column])).dropna(subset=["value"])
    seeds = sorted({*known["seed_a"], *known["seed_b"]})
    n = len(seeds)
    if len(known) < n * (n - 1) / 2 or n < 3:
        return pd.Series(dtype=float)
    total = known["value"].mean()
    without = {s: known.loc[(known["seed_a"] != s) & (known["seed_b"] != s), "value"].mean() for s in seeds}
    return pd.Series({s: n * total - (n - 1) * value for s, value in without.items()}, dtype=float)
