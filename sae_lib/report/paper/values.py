"""What the paper's sentences may say about the results: quantities by name, and differences that know their sign.

In the template, `main.atm.absorption_fraction` is the mean over seeds with its standard deviation, and
`main.atm.absorption_fraction - main.dropout.absorption_fraction` the paired difference with its 95 % t interval, which
`falls`, `rises` or is `flat` (the interval holds zero). So no sentence compares without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
    def sign(self) -> str:
        """'falls', 'rises', 'flat', or '' where it is not known."""
        if not self.known:
            return ""
        return "falls" if self.interval.high < 0 else "rises" if self.interval.low > 0 else "flat"

    falls = property(lambda self: self.sign == "falls")
    rises = property(lambda self: self.sign == "rises")
    flat = property(lambda self: self.sign == "flat")


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
    evaluation, toys = results.evaluation, results.toy_summary
    tree = toy_rows(toys, "matched", "tree")
    main = _named("main", MAIN_METHODS, _of_group(results, "main"))

    def on_tree(method: str, metric: str) -> Quantity:
        return Quantity(seeds_of(tree[tree["method"] == method], metric), metric)

    def compared(metric: str, method: str, sign: str) -> list[str]:
        return [method_name(m) for m in MAIN_METHODS if (main[m][metric] - main[method][metric]).sign == sign]

    def best(metric: str) -> str:
        sign = 1 if METRICS[metric].direction == "lower" else -1
        means = {m: main[m][metric].values.mean() * sign for m in MAIN_METHODS}
        known = {method: mean for method, mean in means.items() if math.isfinite(mean)}
        return method_name(min(known, key=known.__getitem__)) if known else "–"

    effects = _effects("effect", evaluation[evaluation["group"] == "factorial"])
    return {
        "main": main,
        "as_written": _named("as_written", METHODS, _of_group(results, "as_written")),
        "untrained": _named("untrained", ["untrained"], _of_group(results, "untrained")),
        "sequence": _named("sequence", PAPER_RUNS, _of_group(results, "sequence")),
        "best": best,
        "mechanisms": lambda metric, sign: [n for m, n in MECHANISMS.items() if effects[m][metric].sign == sign],
        "effect": effects,
        "without": _without("without", evaluation[evaluation["group"] == "atm_importance"]),
        "truth": _named("truth", (*METHODS, *TOY_METHODS), on_tree),
        "truth_effect": _effects("truth_effect", toy_rows(toys, "factorial", "tree")),
        "truth_without": _without("truth_without", toy_rows(toys, "importance", "tree")),
        "order": _order(toys),
        "below": lambda metric, method: compared(metric, method, "falls"),
        "above": lambda metric, method: compared(metric, method, "rises"),
    }


def _named(what: str, known: Iterable[str], make: Callable[[str, str], Item]) -> Names[Names[Item]]:
    """Items by a name of `known` and a metric."""

    def of(name: str) -> Names[Item]:
        return Names(f"{what}.{name}", tuple(METRICS), lambda metric: make(name, metric))

    return Names(what, tuple(known), of)


def _of_group(results: Results, group: str) -> Callable[[str, str], Quantity]:
    return lambda method, metric: Quantity(results.seeds(group, method, metric), metric)


def _effects(what: str, rows: pd.DataFrame) -> Names[Names[Change]]:
    return _named(what, MECHANISMS, lambda name, metric: Change(main_effects(rows, metric, MECHANISMS)[name], metric))


def _without(what: str, rows: pd.DataFrame) -> Names[Names[Change]]:
    return _named(what, IMPORTANCE_PARTS, lambda part, metric: Change(drop_effect(rows, metric, part), metric))


def _order(toys: pd.DataFrame) -> list[Change]:
    rows, metric = toy_rows(toys, "rho"), "parent_silent_rate"
    rows = rows[rows["label"] == "strong"]
    pairs = [
        [seeds_of(part[part["method"] == method], metric) for method in ("temporal_strong", "variance")]
        for _, part in (rows.groupby("rho") if len(rows) else ())
    ]
    return [Change(difference(first, second), metric) for first, second in pairs]
