"""What SAEs on toy data say about a claim: there the true features are known, so absorption is counted.

Each check reads toy_summary.parquet, one row per SAE: `experiment` ('matched': every method at the same L0;
'factorial': TemporalSAE's mechanisms, in the columns `temporal`, `resampling` and `gradient_scaling`; 'importance':
parts of ATM's score, in the column `importance`; 'rare': families that are seldom on), `toy`, `method`, `seed`
and metrics. `options` name a `toy`; without one, every toy of the experiment has to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from sae_lib.report.claims.data_checks import metric_label
from sae_lib.report.claims.verdicts import NOT_RUN, Comparison, Outcome, decide
from sae_lib.report.names import IMPORTANCE_PARTS, MECHANISMS, method_name
from sae_lib.report.results import Results, drop_effect, l0_is_matched, seeds_of, toy_rows
from sae_lib.report.statistics import difference, main_effects, t_interval

Options = Mapping[str, Any]


def toy_contrast(results: Results, options: Options) -> Outcome:
    """Method `first` against each of `second` at matched L0, seed by seed, in each metric of `wants`."""
    comparisons, notes, matched = [], [], True
    for toy, rows in _toys(results, "matched", options):
        methods = (options["first"], *options["second"])
        state = {m: t_interval(seeds_of(rows[rows["method"] == m], "l0")).mean for m in methods}
        notes.append(f"{toy}: L0 " + ", ".join(f"{method_name(m)} {value:.3g}" for m, value in state.items()))
        matched &= l0_is_matched(state.values())
        for want in options["wants"]:
            by = {m: seeds_of(rows[rows["method"] == m], want["metric"]) for m in methods}
            comparisons += [
                Comparison(
                    f"{toy}, {metric_label(want['metric'])}, {method_name(methods[0])} − {method_name(other)}:",
                    difference(by[methods[0]], by[other]), want["want"], want.get("margin", 0.0),
                )
                for other in methods[1:]
            ]  # fmt: skip
    outcome = decide(comparisons, "".join(f"; {note}" for note in notes))
    if outcome.verdict != NOT_RUN and not matched:
        return Outcome(NOT_RUN, f"L0 is not matched, so nothing follows from: {outcome.reason}")
    return outcome


def toy_level(results: Results, options: Options) -> Outcome:
    """Metrics of one method, each against a `bound` of its own; `beside` are methods whose values are told with it."""
    experiment, method = options.get("experiment", "matched"), options["method"]
    comparisons, notes = [], []
    for toy, all_rows in _toys(results, experiment, options):
        rows = all_rows[all_rows["method"] == method]
        for want in options["wants"]:
            values, label = seeds_of(rows, want["metric"]), metric_label(want["metric"])
            name = f"{toy}, {label} of {method_name(method)} {t_interval(values)}, minus {want['bound']:g}:"
            comparisons.append(Comparison(name, t_interval(values - want["bound"]), want["want"]))
            for other in options.get("beside", ()):
                interval = t_interval(seeds_of(all_rows[all_rows["method"] == other], want["metric"]))
                notes += [f"{toy}, {label} of {method_name(other)} {interval}"] if interval.n else []
    return decide(comparisons, "".join(f"; {note}" for note in notes))


def toy_effects(results: Results, options: Options) -> Outcome:
    """Main effects of mechanisms in the factorial on toy data."""
    comparisons = []
    for toy, rows in _toys(results, "factorial", options):
        for want in options["wants"]:
            if not {want["metric"], *MECHANISMS} <= set(rows.columns):
                return Outcome(NOT_RUN, f"no {metric_label(want['metric'])} in the factorial on toy data")
            effects = main_effects(rows, want["metric"], MECHANISMS)
            comparisons += [
                Comparison(
                    f"{toy}, effect of {MECHANISMS[factor]} on {metric_label(want['metric'])}:",
                    effects[factor], want["want"], want.get("margin", 0.0),
                )
                for factor in options["factors"]
            ]  # fmt: skip
    return decide(comparisons) if comparisons else Outcome(NOT_RUN, "no factorial on toy data")


def toy_drop_one(results: Results, options: Options) -> Outcome:
    """Each part of ATM's importance dropped, against all parts, on toy data."""
    comparisons = []
    for toy, rows in _toys(results, "importance", options):
        if "importance" not in rows:
            return Outcome(NOT_RUN, "no column importance in the toy data's summary")
        comparisons += [
            Comparison(
                f"{toy}, {metric_label(want['metric'])} without {part}:",
                drop_effect(rows, want["metric"], part), want["want"], want.get("margin", 0.0),
            )
            for part in IMPORTANCE_PARTS
            for want in options["wants"]
        ]  # fmt: skip
    return decide(comparisons) if comparisons else Outcome(NOT_RUN, "no toy SAEs with parts of the importance dropped")


def _toys(results: Results, experiment: str, options: Options) -> list[tuple[str, pd.DataFrame]]:
    """The rows of an experiment, toy by toy."""
    rows = toy_rows(results.toy_summary, experiment, options.get("toy"))
    return [(str(toy), part) for toy, part in rows.groupby("toy", sort=True)]


TOY_CHECKS: dict[str, Callable[[Results, Options], Outcome]] = {
    "contrast": toy_contrast,
    "level": toy_level,
    "main_effects": toy_effects,
    "drop_one": toy_drop_one,
}
