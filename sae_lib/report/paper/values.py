"""What the paper's sentences may say about the results: quantities by name, and differences that know their sign.

In the template, `main.atm.absorption_fraction` is the mean over seeds with its standard deviation, and
`main.atm.absorption_fraction - main.dropout.absorption_fraction` the paired difference with its 95 % t interval, which
`falls`, `rises` or is `flat` (the interval holds zero). So no sentence compares without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pandas as pd

from sae_lib.report.names import IMPORTANCE_PARTS, MAIN_METHODS, MECHANISMS, METHODS, METRICS, TOY_METHODS, method_name
from sae_lib.report.results import PAIR_METRICS, Results, drop_effect, seeds_of, toy_rows
from sae_lib.report.statistics import Interval, difference, main_effects, t_interval
from sae_lib.report.tables.write import cell, effect_cell
from sae_lib.util.errors import ArtifactError

RUNS = tuple(f"run_{number}" for number in (1, 2, 3, 4))
NOTHING = "(not run)"
Item = TypeVar("Item")


class Change:
    """A difference or an effect, with its interval over seeds: '−0.158 [−0.210, −0.107]'."""

    def __init__(self, interval: Interval, metric: str) -> None:
        self.interval, self.metric = interval, metric

    def __str__(self) -> str:
        if self.interval.n == 0:
            return NOTHING
        return effect_cell(self.interval, METRICS[self.metric].decimals).replace("-", "−")

    @property
    def known(self) -> bool:
        return self.interval.n > 1

    @property
    def falls(self) -> bool:
        return self.known and self.interval.high < 0

    @property
    def rises(self) -> bool:
        return self.known and self.interval.low > 0

    @property
    def flat(self) -> bool:
        return self.known and not (self.falls or self.rises)


class Quantity:
    """A metric of one set of SAEs by seed: '0.123 ± 0.004'."""

    def __init__(self, values: pd.Series, metric: str) -> None:
        self.values, self.metric = values, metric

    def __str__(self) -> str:
        return self._told(t_interval(self.values))

    def __sub__(self, other: Quantity) -> Change:
        return Change(difference(self.values, other.values), self.metric)

    @property
    def known(self) -> bool:
        return len(self.values) > 0

    @property
    def mean(self) -> str:
        interval = t_interval(self.values)
        return self._told(interval._replace(n=min(interval.n, 1)))

    @property
    def sd(self) -> str:
        interval = t_interval(self.values)
        return self._told(interval._replace(mean=interval.sd, n=min(interval.n - 1, 1)))

    def _told(self, interval: Interval) -> str:
        return cell(interval, METRICS[self.metric].decimals).replace("-", "−") if interval.n > 0 else NOTHING


class Names(Generic[Item]):
    """Items by name, made when asked for; an unknown name is refused with the known ones."""

    def __init__(self, what: str, known: tuple[str, ...], make: Callable[[str], Item]) -> None:
        self._what, self._known, self._make = what, known, make
        self._made: dict[str, Item] = {}

    def __getitem__(self, name: str) -> Item:
        if name not in self._known:
            raise ArtifactError(f"paper: {self._what} has no '{name}'; it has {', '.join(self._known)}")
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]


def _metrics(what: str, make: Callable[[str], Item]) -> Names[Item]:
    return Names(what, tuple(METRICS), make)


def quantities(results: Results) -> dict[str, Any]:
    """The names that the template knows:

    - `main`, `as_written`, `untrained`, `sequence`: group, method (or run), metric;
    - `effect`: mechanism of the factorial, metric; `without`: part of ATM's importance, metric;
    - `truth`: method on the toy tree, metric; `truth_effect`, `truth_without`: as above, on the tree;
    - `order`: for each persistence of the chain, the temporal penalty minus the variance penalty in absorption;
    - `below`, `above`: the methods of the main table whose metric is below or above that of another one;
    - `best`: the method of the main table with the best mean;
    - `mechanisms`: those of the factorial whose effect on a metric `falls`, `rises` or is `flat`.
    """
    groups = {
        group: Names(group, methods, lambda method, group=group: _evaluated(results, group, method))  # type: ignore[misc]
        for group, methods in {
            "main": MAIN_METHODS,
            "as_written": tuple(METHODS),
            "untrained": ("untrained",),
            "sequence": RUNS,
        }.items()
    }
    evaluation, toys = results.evaluation, results.toy_summary
    factorial = evaluation[evaluation["group"] == "factorial"]
    effects = _effects("effect", factorial)
    parts = evaluation[evaluation["group"] == "atm_importance"]
    tree = toy_rows(toys, "matched", "tree")

    def on_tree(method: str) -> Names[Quantity]:
        rows = tree[tree["method"] == method]
        return _metrics(f"truth.{method}", lambda metric: Quantity(seeds_of(rows, metric), metric))

    def compared(metric: str, method: str, sign: str) -> list[str]:
        other = groups["main"][method][metric]
        return [method_name(m) for m in MAIN_METHODS if getattr(groups["main"][m][metric] - other, sign)]

    def best(metric: str) -> str:
        sign = 1 if METRICS[metric].direction == "lower" else -1
        means = {m: groups["main"][m][metric].values.mean() * sign for m in MAIN_METHODS}
        known = {method: mean for method, mean in means.items() if math.isfinite(mean)}
        return method_name(min(known, key=known.__getitem__)) if known else "–"

    return groups | {
        "best": best,
        "mechanisms": lambda metric, sign: [MECHANISMS[m] for m in MECHANISMS if getattr(effects[m][metric], sign)],
        "effect": effects,
        "without": _without("without", parts),
        "truth": Names("truth", (*METHODS, *TOY_METHODS), on_tree),
        "truth_effect": _effects("truth_effect", toy_rows(toys, "factorial", "tree")),
        "truth_without": _without("truth_without", toy_rows(toys, "importance", "tree")),
        "order": _order(toys),
        "below": lambda metric, method: compared(metric, method, "falls"),
        "above": lambda metric, method: compared(metric, method, "rises"),
    }


def _evaluated(results: Results, group: str, method: str) -> Names[Quantity]:
    rows = results.rows(group, method)

    def quantity(metric: str) -> Quantity:
        values = results.seeds(group, method, metric) if metric in PAIR_METRICS else seeds_of(rows, metric)
        return Quantity(values, metric)

    return _metrics(f"{group}.{method}", quantity)


def _effects(what: str, rows: pd.DataFrame) -> Names[Names[Change]]:
    def effect(factor: str, metric: str) -> Change:
        there = {metric, *MECHANISMS} <= set(rows.columns) and len(rows) > 0
        return Change(main_effects(rows, metric, MECHANISMS)[factor] if there else t_interval([]), metric)

    return Names(
        what, tuple(MECHANISMS), lambda factor: _metrics(f"{what}.{factor}", lambda metric: effect(factor, metric))
    )


def _without(what: str, rows: pd.DataFrame) -> Names[Names[Change]]:
    def effect(part: str, metric: str) -> Change:
        there = {metric, "importance"} <= set(rows.columns)
        return Change(drop_effect(rows, metric, part) if there else t_interval([]), metric)

    return Names(what, IMPORTANCE_PARTS, lambda part: _metrics(f"{what}.{part}", lambda metric: effect(part, metric)))


def _order(toys: pd.DataFrame) -> list[Change]:
    rows = toy_rows(toys, "rho")
    rows = rows[rows["label"] == "strong"]
    if rows.empty:
        return []
    metric = "parent_silent_rate"
    return [
        Quantity(seeds_of(part[part["method"] == "temporal_strong"], metric), metric)
        - Quantity(seeds_of(part[part["method"] == "variance"], metric), metric)
        for _, part in rows.groupby("rho")
    ]
