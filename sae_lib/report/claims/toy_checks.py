"""What SAEs on toy data say about a claim: there the true features are known, so absorption is counted.

A check reads toy_summary.parquet, one row per SAE: `experiment` ('matched': every method at the same L0; 'factorial':
TemporalSAE's mechanisms, in the columns `temporal`, `resampling` and `gradient_scaling`; 'importance': parts of ATM's
score, in the column `dropped`; 'rare': families that are seldom on), `toy`, `method`, `seed` and metrics.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sae_lib.report.claims.data_checks import (
    AGAINST,
    ASKED,
    RECIPE,
    Options,
    contrasts,
    drops,
    effects,
    levels,
    metric_label,
    only_at_matched_l0,
    without_mechanisms,
)
from sae_lib.report.claims.verdicts import Comparison, Outcome, decide
from sae_lib.report.names import method_name
from sae_lib.report.results import Results, l0_is_matched, seeds_of, toy_rows
from sae_lib.report.statistics import t_interval

# Kind of check -> the experiment that it reads, unless `options` name another.
TOY_CHECKS = {"contrast": "matched", "level": "matched", "main_effects": "factorial", "drop_one": "importance"}


def _tells(metric: str) -> str:
    """Toy data has no controls."""
    return ""


def check_on_toys(results: Results, options: Options) -> Outcome:
    """The check of `data_checks` with the same name, on toy data. `options` name a `toy`; without one, every toy of the
    experiment has to agree. `beside` are methods whose values are told too."""
    kind = options["kind"]
    rows_of_all = toy_rows(results.toy_summary, options.get("experiment", TOY_CHECKS[kind]), options.get("toy"))
    first = options.get("first", "")
    against, asked = tuple(options.get("second", AGAINST.get(first, ()))), ASKED.get(first, ())
    asked = () if "second" in options else asked
    comparisons: list[Comparison] = []
    note, matched = "", True
    for toy, rows in rows_of_all.groupby("toy", sort=True):

        def seeds(method: str, metric: str, rows: pd.DataFrame = rows, toy: Any = toy) -> pd.Series:
            if method == RECIPE:
                return seeds_of(without_mechanisms(toy_rows(results.toy_summary, "factorial", toy)), metric)
            return seeds_of(rows[rows["method"] == method], metric)

        place = f"{toy}, "
        if kind == "contrast":
            comparisons += contrasts(seeds, _tells, options, against, place)
            for other in asked:
                ours = decide(contrasts(seeds, _tells, options, (other,), place))
                note += f"; our question, against {method_name(other)}: {ours.verdict}, {ours.reason}"
            l0 = {method: t_interval(seeds(method, "l0")).mean for method in (first, *against, *asked)}
            note += f"; {toy}: L0 " + ", ".join(f"{method_name(method)} {value:.3g}" for method, value in l0.items())
            matched &= l0_is_matched(l0.values())
        elif kind == "level":
            comparisons += levels(seeds, _tells, options, place)
            for metric in (want["metric"] for want in options["wants"]):
                for other in options.get("beside", ()):
                    interval = t_interval(seeds(other, metric))
                    told = f"; {place}{metric_label(metric)} of {method_name(other)} {interval}"
                    note += told if interval.n else ""
        else:
            comparisons += (effects if kind == "main_effects" else drops)(rows, _tells, options, place)
    return only_at_matched_l0(decide(comparisons, note), matched)
