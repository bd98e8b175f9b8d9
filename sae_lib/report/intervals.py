"""Means over seeds, with 95 % t intervals; differences are taken seed by seed, because every method sees one stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95


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

    @property
    def range(self) -> str:
        """The mean and its interval, for differences."""
        if self.n < 2:
            return f"{self.mean:+.3g} (n = {self.n}, no interval)"
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}] (n = {self.n})"


def t_interval(values: Iterable[float]) -> Interval:
    """The interval of the mean of `values`; NaN values are left out.

    >>> t_interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    array = np.asarray(list(values), dtype=float)
    array = array[np.isfinite(array)]
    n = len(array)
    if n == 0:
        return Interval(math.nan, math.nan, 0, math.nan, math.nan)
    mean = float(array.mean())
    if n == 1:
        return Interval(mean, math.nan, 1, math.nan, math.nan)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, sd, n, mean - half, mean + half)


def by_seed(frame: pd.DataFrame, column: str) -> pd.Series:
    """`column` averaged within each seed, indexed by seed."""
    # A column in which every value is missing comes back from JSON without a type.
    return pd.to_numeric(frame[column]).groupby(frame["seed"]).mean().astype(float)


def difference(first: pd.Series, second: pd.Series) -> Interval:
    """The interval of first - second over the seeds that both have."""
    return t_interval((first - second).dropna())


def main_effects(frame: pd.DataFrame, column: str, factors: Iterable[str]) -> dict[str, Interval]:
    """Main effect of each two-level factor of a full factorial, over seeds.

    For one seed: the mean of `column` over the cells with the factor minus the mean over the cells without
    it. A seed with a missing cell is left out, since its effects would mix.
    """
    factors = list(factors)
    numbers = frame.assign(**{column: pd.to_numeric(frame[column])})
    cells = numbers.groupby(["seed", *factors])[column].mean().unstack(factors)
    cells = cells.dropna() if cells.shape[1] == 2 ** len(factors) else cells.iloc[:0]
    effects = {}
    for level, factor in enumerate(factors):
        on = np.array([bool(key[level]) if isinstance(key, tuple) else bool(key) for key in cells.columns], dtype=bool)
        effects[factor] = t_interval(cells.loc[:, on].mean(axis=1) - cells.loc[:, ~on].mean(axis=1))
    return effects
