"""Methods compared at common sparsity: every metric as a curve over log L0, read off at the same L0 for all of them.

A method's levels are the coefficients (or k, or target L0) of group `sweep` and its level of group `main`: the mean log
L0 and the mean metric of their seeds. At log-distance w from level a towards level b,

    value = (1 - w) mean_a + w mean_b.

Its interval assumes one standard deviation over seeds for all levels of a method, s^2 = sum (n_i - 1) s_i^2 / df with
df = sum (n_i - 1): standard error s sqrt((1 - w)^2 / n_a + w^2 / n_b), t with df degrees of freedom. Within
`MATCHED_L0` of the main level, which has more seeds, the interval is that of its own seeds, moved along the curve. What
a straight line misses is in no interval, and nothing is read off beyond the levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib.metrics.toy.methods import zero
from sae_lib.report.names import BASELINE, MAIN_METHODS, METRICS, method_name
from sae_lib.report.results import MATCHED_L0, by_method, rows_of
from sae_lib.report.statistics import CONFIDENCE, Interval, difference, holm, p_value, seeds_of, t_interval, t_quantile
from sae_lib.report.tables.rows import Lines, Table, left_out, measurable, range_cell

# Tree SAE (arXiv 2605.07922), GPT-2 small, residual stream before block 5, 24,576 latents, 5 * 10^8 tokens.
BY_L0: dict[str, dict[float, float]] = {
    "topk": {32: 0.216, 48: 0.164, 64: 0.155, 80: 0.141},
    "matryoshka_2": {32: 0.159, 48: 0.136, 64: 0.117, 80: 0.106},
    "matryoshka_4": {32: 0.125, 48: 0.104, 64: 0.078, 80: 0.076},
}
SWEEP_METRICS = ("absorption_fraction", "explained_variance", "ce_score", "probing_k1")
EQUAL_EV_METRICS = ("absorption_fraction", "absorption_full", "probing_k1")
MAIN_LEVEL = "main"
# Factors of L0: levels that close are one place on the curve, since two would put a step of noise into it; so close to
# the last level an L0 is still read off; where there is no curve yet, a level so near stands for an L0.
SAME_PLACE, END, NEAR = 1.15, 1.05, 1.1


class Level(NamedTuple):
    """The SAEs of one method at one sparsity: mean log L0, and the metric by seed."""

    label: str
    log_l0: float
    values: pd.Series

    @property
    def mean(self) -> float:
        return float(self.values.mean())


class Estimate(NamedTuple):
    """A value read off a curve: its interval, standard error and degrees of freedom, and the seeds' own values where
    the main level is near."""

    interval: Interval
    error: float
    df: float
    own: pd.Series = pd.Series(dtype=float)


NOWHERE = Estimate(t_interval([]), math.nan, math.nan)


class Curve(NamedTuple):
    """One method's metric over log L0: levels in order of L0."""

    levels: tuple[Level, ...] = ()

    @classmethod
    def of(cls, rows: pd.DataFrame, metric: str) -> Curve:
        """The curve of one method; of levels at one place the one with most seeds stays."""
        numbers = rows.assign(**{column: pd.to_numeric(rows.get(column)) for column in ("l0", metric)})
        known = numbers[(numbers["l0"] > 0) & np.isfinite(numbers[metric].astype(float))]
        label = known["label"].astype(str).where(known["group"] != "main", MAIN_LEVEL)
        found = [
            Level(str(name), float(np.log(part["l0"]).mean()), seeds_of(part, metric))
            for name, part in known.groupby(label, sort=True)
        ]
        levels: list[Level] = []
        for level in sorted(found, key=lambda level: -len(level.values)):
            if all(abs(level.log_l0 - other.log_l0) > math.log(SAME_PLACE) for other in levels):
                levels.append(level)
        return cls(tuple(sorted(levels, key=lambda level: level.log_l0)))

    @property
    def main(self) -> Level | None:
        return next((level for level in self.levels if level.label == MAIN_LEVEL), None)

    def at_level(self, level: Level) -> Interval:
        """A level's mean with its interval: of its own seeds for the main level, pooled elsewhere."""
        return t_interval(level.values) if level.label == MAIN_LEVEL else self._pooled((level, 1.0)).interval

    def at(self, l0: float) -> Estimate:
        """The value at `l0`; of no seeds beyond the levels."""
        places, x = [level.log_l0 for level in self.levels], math.log(l0)
        if not places or not places[0] - math.log(END) <= x <= places[-1] + math.log(END):
            return NOWHERE
        value = float(np.interp(x, places, [level.mean for level in self.levels]))
        if self.main and abs(x - self.main.log_l0) <= math.log(MATCHED_L0) and len(self.main.values) > 1:
            own = self.main.values + (value - self.main.mean)
            interval = t_interval(own)
            return Estimate(interval, interval.sd / math.sqrt(interval.n), interval.n - 1, own)
        right = min(int(np.searchsorted(places, x)), len(places) - 1)
        left = max(right - 1, 0)
        gap = places[right] - places[left]
        weight = min(max((x - places[left]) / gap, 0.0), 1.0) if gap else 1.0
        return self._pooled((self.levels[left], 1 - weight), (self.levels[right], weight))

    def _pooled(self, *weights: tuple[Level, float]) -> Estimate:
        """The weighted mean of levels; one standard deviation over seeds is taken for all levels of the curve."""
        df = sum(len(level.values) - 1 for level in self.levels)
        squares = sum(float(((level.values - level.mean) ** 2).sum()) for level in self.levels)
        sd = math.sqrt(squares / df) if df else math.nan
        used = [(level, weight) for level, weight in weights if weight > 0]
        mean = sum(weight * level.mean for level, weight in used)
        error = sd * math.sqrt(sum(weight**2 / len(level.values) for level, weight in used))
        n = sum(len(level.values) for level, _ in used)
        return Estimate(Interval.around(mean, t_quantile(df) * error, sd, n), error, df)


def gap_between(first: Estimate, second: Estimate) -> tuple[Interval, float]:
    """first - second at one L0 with its interval, and the two-sided p. Paired by seed where both have their own seeds
    there; elsewhere Welch's t, as if they were independent, which is the wider one, since seeds see the same data."""
    paired = difference(first.own, second.own)
    if paired.n > 1:
        return paired, p_value(paired)
    mean, n = first.interval.mean - second.interval.mean, min(first.interval.n, second.interval.n)
    error = math.hypot(first.error, second.error)
    if not math.isfinite(error) or error == 0:
        return Interval.around(mean, math.nan, math.nan, n), math.nan
    df = error**4 / sum(each.error**4 / each.df for each in (first, second) if each.df)
    p = float(2 * stats.t.sf(abs(mean) / error, df))
    return Interval.around(mean, t_quantile(df) * error, math.nan, n), p


def curves(evaluation: pd.DataFrame, metric: str) -> dict[str, Curve]:
    """Method -> its curve, in the order of tables; methods without a level are left out."""
    rows = by_method(rows_of(evaluation, "main", "sweep"))
    found = {method: Curve.of(part, metric) for method, part in rows.items() if method in MAIN_METHODS}
    return {method: curve for method, curve in found.items() if curve.levels}


def sweep_table(evaluation: pd.DataFrame, compare_at: Sequence[float]) -> Table:
    """Every method at each L0 of `compare_at`: one block of rows per L0, within which rows may be ranked. A star is a
    difference from Standard that holds after Holm's correction over its column."""
    counts = rows_of(evaluation, "main", "sweep")
    shown = {(l0, m): {"L0": f"{l0:g}", "method": method_name(m)} for l0 in compare_at for m in MAIN_METHODS}
    data: list[dict[str, Any]] = []
    for metric in (metric for metric in SWEEP_METRICS if metric in evaluation):
        of_method, column = curves(evaluation, metric), METRICS[metric]
        places = [(l0, method) for l0 in compare_at for method in of_method]
        values = {(l0, method): of_method[method].at(l0) for l0, method in places}
        plain = {l0: values.get((l0, BASELINE), NOWHERE) for l0 in compare_at}
        gaps = [gap_between(values[l0, m], plain[l0] if m != BASELINE else NOWHERE) for l0, m in places]
        for (l0, method), (gap, p), p_holm in zip(places, gaps, holm(p for _, p in gaps), strict=True):
            interval = values[l0, method].interval
            star = " *" if p_holm < 1 - CONFIDENCE else ""
            shown[l0, method][column.header] = range_cell(interval, column.decimals) + star
            row = {"row": method_name(method), "l0": l0, "metric": metric, "better": column.direction}
            row |= {name: getattr(interval, name) for name in ("n", "mean", "sd", "low", "high")}
            row |= {"difference": gap.mean, "difference_low": gap.low, "difference_high": gap.high}
            data.append(row | {"p": p, "p_holm": p_holm})
    lines = [line for line in shown.values() if len(line) > 2]
    letters, words = (t_interval(pd.to_numeric(counts.get(c, []))).mean for c in ("letters", "words"))
    caption = (
        "Methods at common L0: mean [95 % t interval over seeds], read off each method's curve, piecewise linear in "
        "log L0 between its levels; between levels the interval takes the spread over seeds to be the same at all of "
        f"a method's levels. * differs from {method_name(BASELINE)} at p < 0.05 after Holm's correction over the "
        "column; – the method has no level on one of the two sides. ↑ higher is better, ↓ lower is better."
    )
    if math.isfinite(words):
        caption += f" Absorption rests on {letters:.0f} letters and {words:.0f} words."
    seeds = {group: ", ".join(map(str, sorted({*part["seed"]}))) for group, part in counts.groupby("group")}
    levels = {"main": "of the main level", "sweep": "of the others"}
    caption += f" Seeds: {'; '.join(f'{seeds[group]} {what}' for group, what in levels.items() if group in seeds)}."
    caption += left_out(evaluation, SWEEP_METRICS)
    return Table(pd.DataFrame(lines).fillna("–"), pd.DataFrame(data), caption)


def equal_ev_table(evaluation: pd.DataFrame) -> Table:
    """Every method where it explains equally much, the median of the methods at the main level: its L0 there, and its
    metrics at that L0, read off their curves. A method that absorbs little at matched L0 because it explains little has
    nowhere to hide here."""
    explained = curves(evaluation, "explained_variance")
    mains = [curve.main.mean for curve in explained.values() if curve.main]
    target = float(np.median(mains)) if mains else math.nan
    of_metric = {m: curves(evaluation, m) for m in measurable(evaluation, EQUAL_EV_METRICS) if m in evaluation}
    lines = Lines()
    for method, curve in explained.items():
        log_l0 = zero(*np.array([(level.log_l0, level.mean - target) for level in curve.levels]).T)
        l0, name = math.nan if log_l0 is None else math.exp(log_l0), method_name(method)
        found = {metric: of_method.get(method, Curve()).at(l0).interval for metric, of_method in of_metric.items()}
        keys = {"method": name, METRICS["l0"].header: "–" if log_l0 is None else f"{l0:.1f}"}
        lines.add(keys, name, found, range_cell, explained_variance=target, l0=l0)
    caption = (
        f"Methods at equal explained variance, {target:.3f}, the median of the methods of the main table: the L0 that "
        "each needs for it, and its metrics there, mean [95 % t interval over seeds]. – it does not reach it within "
        "its levels. ↑ higher is better, ↓ lower is better."
    )
    data = pd.DataFrame(lines.data, columns=["row", "explained_variance", "l0", "metric", *Interval._fields])
    return Table(pd.DataFrame(lines.shown), data, caption + left_out(evaluation, EQUAL_EV_METRICS))


def literature_table(evaluation: pd.DataFrame) -> Table:
    """Full absorption by method and L0, published and ours, and how many of the published orderings come out: of two
    methods at one L0, and of one method at two L0. Other models, widths and numbers of tokens: the order of methods and
    the trend over L0 can agree, digits that agree are luck."""
    metric, lines, data = "absorption_full", [], []
    of_method, column = curves(evaluation, metric), METRICS[metric]
    theirs = {(method, l0): value for method, of_l0 in BY_L0.items() for l0, value in of_l0.items()}
    ours: dict[tuple[str, float], float] = {}
    for (method, l0), value in theirs.items():
        curve = of_method.get(method, Curve())
        levels = [level for level in curve.levels if abs(level.log_l0 - math.log(l0)) <= math.log(NEAR)]
        found = curve.at(l0).interval
        found = curve.at_level(levels[0]) if levels and not found.n else found
        if found.n:
            ours[method, l0] = found.mean
        line = {"method": method_name(method), "L0": f"{l0:g}", "GPT-2 small (Tree SAE's table)": f"{value:.3f}"}
        lines.append(line | {"here": range_cell(found, column.decimals)})
        data.append({"row": method, "l0": l0, "metric": metric, "published": value, **found._asdict()})
    counts = []
    for same in (1, 0):  # L0, or the method
        pairs = [(a, b) for a, b in combinations(ours, 2) if a[same] == b[same]]
        alike = sum((theirs[a] - theirs[b]) * (ours[a] - ours[b]) > 0 for a, b in pairs)
        counts.append(f"{alike} of {len(pairs)}")
    caption = (
        f"{column.label.capitalize()} at the same L0, published and here: mean [95 % t interval over seeds], "
        f"read off each method's curve, or a level within a tenth. Published orderings that come out here: {counts[0]} "
        f"of two methods at one L0, {counts[1]} of one method at two L0. Another model, width and number of tokens: "
        "the order can agree, digits that agree are luck. – no level there. ↓ lower is better."
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption + left_out(evaluation, [metric]))
