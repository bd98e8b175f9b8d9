"""What the paper's sentences may say about the results: quantities by name, and differences that know their sign.

In the template, `main.atm.absorption_fraction` is the mean over seeds with its standard deviation, and
`main.atm.absorption_fraction - main.dropout.absorption_fraction` the paired difference with its 95 % t interval, which
`falls`, `rises` or is `flat` (the interval holds zero). So no sentence compares without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import pandas as pd

from sae_lib.report.names import IMPORTANCE_PARTS, MAIN_METHODS, MECHANISMS, METHODS, METRICS, TOY_METHODS, method_name
from sae_lib.report.results import Results, drop_effect, seeds_of, toy_rows
from sae_lib.report.statistics import Interval, difference, main_effects, t_interval
from sae_lib.report.tables.ablations import PAPER_RUNS
from sae_lib.report.tables.rows import cell, range_cell
from sae_lib.util.errors import ArtifactError

NOTHING = "(not run)"
Item = TypeVar("Item")


class Change:
    """A difference or an effect, with its interval over seeds: '−0.158 [−0.210, −0.107]'."""

    def __init__(self, interval: Interval, metric: str) -> None:
        self.interval, self.metric = interval, metric

    def __str__(self) -> str:
        if self.interval.n == 0:
            return NOTHING
        return range_cell(self.interval, METRICS[self.metric].decimals, "+").replace("-", "−")

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
        group: _by_name(group, methods, partial(results.seeds, group))
        for group, methods in {
            "main": MAIN_METHODS,
            "as_written": tuple(METHODS),
            "untrained": ("untrained",),
            "sequence": tuple(PAPER_RUNS),
        }.items()
    }
    evaluation, toys = results.evaluation, results.toy_summary
    tree = toy_rows(toys, "matched", "tree")
    effects = _effects("effect", evaluation[evaluation["group"] == "factorial"])
    signs: dict[str, Callable[[Change], bool]] = {
        "falls": lambda change: change.falls, "rises": lambda change: change.rises, "flat": lambda change: change.flat,
    }  # fmt: skip

    def compared(metric: str, method: str, sign: str) -> list[str]:
        main = groups["main"]
        return [method_name(m) for m in MAIN_METHODS if signs[sign](main[m][metric] - main[method][metric])]

    def best(metric: str) -> str:
        sign = 1 if METRICS[metric].direction == "lower" else -1
        means = {m: groups["main"][m][metric].values.mean() * sign for m in MAIN_METHODS}
        known = {method: mean for method, mean in means.items() if math.isfinite(mean)}
        return method_name(min(known, key=known.__getitem__)) if known else "–"

    return groups | {
        "best": best,
        "mechanisms": lambda metric, sign: [n for m, n in MECHANISMS.items() if signs[sign](effects[m][metric])],
        "effect": effects,
        "without": _without("without", evaluation[evaluation["group"] == "atm_importance"]),
        "truth": _by_name(
            "truth",
            (*METHODS, *TOY_METHODS),
            lambda method, metric: seeds_of(tree[tree["method"] == method], metric),
        ),
        "truth_effect": _effects("truth_effect", toy_rows(toys, "factorial", "tree")),
        "truth_without": _without("truth_without", toy_rows(toys, "importance", "tree")),
        "order": _order(toys),
        "below": lambda metric, method: compared(metric, method, "falls"),
        "above": lambda metric, method: compared(metric, method, "rises"),
    }


def _two_names(what: str, known: Iterable[str], make: Callable[[str, str], Item]) -> Names[Names[Item]]:
    """Items by a name of `known` and a metric."""

    def of(name: str) -> Names[Item]:
        return Names(f"{what}.{name}", tuple(METRICS), lambda metric: make(name, metric))

    return Names(what, tuple(known), of)


def _by_name(what: str, methods: Iterable[str], seeds: Callable[[str, str], pd.Series]) -> Names[Names[Quantity]]:
    return _two_names(what, methods, lambda method, metric: Quantity(seeds(method, metric), metric))


def _effects(what: str, rows: pd.DataFrame) -> Names[Names[Change]]:
    def effect(factor: str, metric: str) -> Change:
        return Change(main_effects(rows, metric, MECHANISMS)[factor], metric)

    return _two_names(what, MECHANISMS, effect)


def _without(what: str, rows: pd.DataFrame) -> Names[Names[Change]]:
    return _two_names(what, IMPORTANCE_PARTS, lambda part, metric: Change(drop_effect(rows, metric, part), metric))


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
