"""What the results say about a claim, over seeds.

Each check reduces to comparisons: a quantity with a 95 % t interval over seeds, and the sign that the paper gives it.

What training logs and firing rates say about a claim, over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib.profiles.runs import NO_WARM_UP
from sae_lib.report.claims.verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    Comparison,
    Outcome,
    decide,
)
from sae_lib.report.names import IMPORTANCE_PARTS, MAIN_METHODS, MECHANISMS, METRICS, method_name
from sae_lib.report.results import Results, drop_effect, l0_is_matched, seeds_of, select
from sae_lib.report.statistics import difference, main_effects, t_interval


def alpha_follows_loss(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Rank correlation, within each run, of the penalty's alpha and the reconstruction loss: negative in the paper."""
    rows = select(results.history, options["group"], options["method"])
    if not {"alpha", "reconstruction"} <= set(rows.columns):
        return Outcome(NOT_RUN, "no log of alpha")
    rows = rows.dropna(subset=["alpha", "reconstruction"])
    correlations = {
        seed: float(stats.spearmanr(part["alpha"], part["reconstruction"]).statistic)
        for seed, part in rows.groupby("seed")
        if part["alpha"].nunique() > 1 and part["reconstruction"].nunique() > 1
    }
    saturated = t_interval(seeds_of(rows, "alpha_saturated")).mean
    note = f"; alpha is saturated at {saturated:.0%} of the steps" if math.isfinite(saturated) else ""
    name = "rank correlation of alpha and the reconstruction loss:"
    return decide([Comparison(name, t_interval(correlations.values()), "lower")], note)


def top_share(histogram: pd.DataFrame, top: float) -> float:
    """Share of all activations made by the most frequent `top` of the latents, from a histogram of log10 rates.

    A latent counts with the rate in the middle of its bin; latents that never fire have a bin at -inf or none.
    """
    bins = histogram.sort_values("log10_rate_left", ascending=False, kind="stable")
    left, count = bins["log10_rate_left"].to_numpy(float), bins["count"].to_numpy(float)
    finite = np.isfinite(left)
    widths = -np.diff(np.unique(left[finite])[::-1])
    middle = left + (widths.min() if len(widths) else 0.0) / 2
    rate = np.where(finite, 10.0 ** np.where(finite, middle, 0.0), 0.0)
    allowed = math.ceil(top * count.sum())
    taken = np.clip(allowed - (np.cumsum(count) - count), 0, count)
    total = float((rate * count).sum())
    return float((rate * taken).sum()) / total if total > 0 else math.nan


def dominance(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Main effect of a mechanism on `top_share` in the factorial."""
    rows = results.evaluation[results.evaluation["group"] == "factorial"]
    # An SAE that stands in several groups has one histogram for each.
    histograms = results.density[results.density["run"].isin(rows["run"])].drop_duplicates(["run", "log10_rate_left"])
    shares = {run: top_share(part, options["top"]) for run, part in histograms.groupby("run")}
    if not set(MECHANISMS) <= set(rows.columns) or not shares:
        return Outcome(NOT_RUN, "no firing-rate histograms of the factorial")
    rows = rows.assign(share=rows["run"].map(shares))
    factor = options["factor"]
    effect = main_effects(rows, "share", MECHANISMS)[factor]
    mean = t_interval(seeds_of(rows, "share")).mean
    name = f"effect of {MECHANISMS[factor]} on the share of the top {options['top']:.0%} (mean {mean:.3f}):"
    return decide([Comparison(name, effect, "lower")])


def fluctuation(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Standard deviation of the log reconstruction loss's changes in the second half of training; same batches."""

    def of(method: str) -> pd.Series:
        rows = select(results.history, "main", method)
        if "reconstruction" not in rows:
            return pd.Series(dtype=float)
        rows = rows[rows["reconstruction"] > 0].sort_values("step", kind="stable")
        rows = rows[rows["step"] > rows["step"].max() / 2]
        changes = {seed: np.diff(np.log(part["reconstruction"])) for seed, part in rows.groupby("seed")}
        return pd.Series({seed: c.std(ddof=1) for seed, c in changes.items() if len(c) > 1}, dtype=float)

    first, ours = options["first"], of(options["first"])
    return decide(
        [
            Comparison(
                f"fluctuation, {method_name(first)} − {method_name(method)}:",
                difference(ours, of(method)),
                options["want"],
            )
            for method in options["second"]
        ]
    )


# Absorption is never told without these.
_BESIDE = ("l0", "explained_variance", "ce_score")
_DECIDED_BY_L0 = (
    "absorption_fraction",
    "absorption_full",
    "explained_variance",
    "ce_score",
    "num_split_features",
    "probing_k1",
    "probing_k5",
    "matched_cosine",
    "context_firing",
    "token_change",
)


def contrast(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Method `first` against each of `second`, seed by seed, in each metric of `wants`."""
    group, first = options.get("group", "main"), options["first"]
    comparisons, state = [], {}
    for method in (first, *options["second"]):
        state[method] = {metric: t_interval(results.seeds(group, method, metric)).mean for metric in _BESIDE}
    for want in options["wants"]:
        metric = want["metric"]
        ours = results.seeds(group, first, metric)
        for method in options["second"]:
            theirs = results.seeds(group, method, metric)
            name = f"{metric_label(metric)}, {method_name(first)} − {method_name(method)}:"
            comparisons.append(Comparison(name, difference(ours, theirs), want["want"], want.get("margin", 0.0)))
    note = "".join(
        f"; {method_name(method)} at " + ", ".join(f"{metric_label(m)} {value:.3g}" for m, value in values.items())
        for method, values in state.items()
    )
    outcome = decide(comparisons, note)
    bound_to_l0 = group == "main" and any(want["metric"] in _DECIDED_BY_L0 for want in options["wants"])
    if outcome.verdict != NOT_RUN and bound_to_l0 and not l0_is_matched(values["l0"] for values in state.values()):
        return Outcome(NOT_RUN, f"L0 is not matched, so nothing follows from: {outcome.reason}")
    return outcome


def level(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Metrics of one method, each against its `bound`, or `against` another metric of the same SAEs."""
    group, method = options.get("group", "main"), options["method"]
    comparisons = []
    for want in options["wants"]:
        values = results.seeds(group, method, want["metric"])
        told = f"{metric_label(want['metric'])} of {method_name(method)} {t_interval(values)}, minus "
        if "against" in want:
            gap = difference(values, results.seeds(group, method, want["against"]))
            comparisons.append(Comparison(f"{told}{metric_label(want['against'])}:", gap, want["want"]))
        else:
            gap = t_interval(values - want["bound"])
            comparisons.append(Comparison(f"{told}{want['bound']:g}:", gap, want["want"]))
    return decide(comparisons)


def factorial_effects(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Main effects of mechanisms in the 2x2x2 factorial."""
    rows = results.evaluation[results.evaluation["group"] == "factorial"]
    metrics = {want["metric"] for want in options["wants"]} | {"l0"}
    if rows.empty or not metrics | set(MECHANISMS) <= set(rows.columns):
        return Outcome(NOT_RUN, "no results for the factorial of the mechanisms")
    effects = {metric: main_effects(rows, metric, MECHANISMS) for metric in metrics}
    comparisons = [
        Comparison(
            f"effect of {MECHANISMS[factor]} on {metric_label(want['metric'])}:",
            effects[want["metric"]][factor],
            want["want"],
            want.get("margin", 0.0),
        )
        for factor in options["factors"]
        for want in options["wants"]
    ]
    note = "; on L0 " + ", ".join(f"{effects['l0'][factor].mean:+.3g}" for factor in options["factors"])
    return decide(comparisons, note)


def rare_letters(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Full absorption of the third of the letters with the fewest words: zero, or above the others'."""
    rows = select(results.letters, "main", options["method"])
    words = rows.groupby("letter")["test_words"].mean().sort_values(kind="stable")
    rare = list(words.index[: len(words) // 3])
    if not rare or "absorption_full" not in rows:
        return Outcome(NOT_RUN, "no results for letters")
    is_rare = rows["letter"].isin(rare)
    of_rare, of_others = (seeds_of(rows[part], "absorption_full") for part in (is_rare, ~is_rare))
    interval, gap = t_interval(of_rare), difference(of_rare, of_others)
    reason = (
        f"absorption (full) of the {len(rare)} letters with the fewest words ({', '.join(sorted(rare))}): "
        f"{interval}; minus that of the others: {gap.range}"
    )
    if gap.n < 2:
        return Outcome(NOT_RUN, f"one seed gives no interval: {reason}")
    if interval.high <= options["zero"]:
        return Outcome(REPRODUCED, reason)
    return Outcome(CONTRADICTED if gap.low > 0 else NOT_REPRODUCED, reason)


def seeds(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Whether each method of the main table has exactly the seeds of the paper."""
    wanted = set(options["seeds"])
    have = {method: set(results.rows("main", method)["seed"].astype(int)) for method in MAIN_METHODS}
    if not any(have.values()):
        return Outcome(NOT_RUN, "no results for the main table")
    short = [method_name(method) for method, found in have.items() if found != wanted]
    spread = f"seeds {min(wanted)} to {max(wanted)}"
    if short:
        return Outcome(NOT_REPRODUCED, f"other seeds than {spread} for {', '.join(short)}")
    return Outcome(REPRODUCED, f"every method of the main table has {spread}; the paper gives no spread, we do")


def drop_one(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Each part of ATM's importance dropped, against all parts."""
    rows = results.evaluation[results.evaluation["group"] == "atm_importance"]
    if not {"importance", "l0", *(want["metric"] for want in options["wants"])} <= set(rows.columns):
        return Outcome(NOT_RUN, "no results for ATM's importance")
    comparisons = [
        Comparison(
            f"{metric_label(want['metric'])} without {part}:",
            drop_effect(rows, want["metric"], part),
            want["want"],
            want.get("margin", 0.0),
        )
        for part in IMPORTANCE_PARTS
        for want in options["wants"]
    ]
    note = "; on L0 " + ", ".join(f"{drop_effect(rows, 'l0', part).mean:+.3g}" for part in IMPORTANCE_PARTS)
    return decide(comparisons, note)


def sensitivity(results: Results, options: Mapping[str, Any]) -> Outcome:
    """Whether other values of each parameter change a metric by more than `margin`: both do, or neither does."""
    rows, margin = results.evaluation[results.evaluation["group"] == "sensitivity"], options["margin"]
    rows = rows[rows["label"] != NO_WARM_UP]
    parameters = {"temporal_coefficient": "temporal coefficient", "resampling_threshold": "resampling threshold"}
    if rows.empty or not {*parameters, *options["metrics"]} <= set(rows.columns):
        return Outcome(NOT_RUN, "no results for other coefficients and thresholds")
    default = {p: rows[p].mode().iloc[0] if rows[p].notna().any() else math.nan for p in parameters}
    usual = rows[(rows[list(parameters)] == pd.Series(default)).all(axis=1)]
    matters, indifferent, told = {}, True, []
    for parameter, name in parameters.items():
        other = rows[rows[parameter].notna() & (rows[parameter] != default[parameter])]
        changes = {
            (value, metric): difference(seeds_of(part, metric), seeds_of(usual, metric))
            for value, part in other.groupby(parameter)
            for metric in options["metrics"]
        }
        if not changes or min(change.n for change in changes.values()) < 2:
            return Outcome(NOT_RUN, f"no two seeds for another {name} than {default[parameter]:g}")
        matters[parameter] = any(c.low > margin or c.high < -margin for c in changes.values())
        indifferent &= all(-margin < c.low and c.high < margin for c in changes.values())
        (value, metric), largest = max(changes.items(), key=lambda item: abs(item[1].mean))
        told.append(f"{name} {value:g} for {default[parameter]:g}: {metric_label(metric)} {largest.range}")
    reason = f"largest changes, {margin:g} counted as none: " + "; ".join(told)
    if all(matters.values()):
        return Outcome(REPRODUCED, reason)
    return Outcome(CONTRADICTED if indifferent else NOT_REPRODUCED, reason)


def warm_up(results: Results, options: Mapping[str, Any]) -> Outcome:
    """TemporalSAE without any schedule of its first steps, against the method as it is: a collapse is a fall of the
    metric by more than `fall`.
    """
    metric, fall = options["metric"], options["fall"]
    rows = select(results.evaluation, "sensitivity", "temporal_sae")
    without = seeds_of(rows[rows["label"] == NO_WARM_UP], metric)
    change = difference(without, results.seeds("main", "temporal_sae", metric) - fall)
    return decide(
        [Comparison(f"{metric_label(metric)} without the warm-up − with it, plus {fall:g}:", change, "lower")]
    )


def metric_label(name: str) -> str:
    """What a reason calls a metric."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ").replace("l1 per l0", "L1 / L0")


DATA_CHECKS: dict[str, Callable[[Results, Mapping[str, Any]], Outcome]] = {
    "contrast": contrast,
    "main_effects": factorial_effects,
    "level": level,
    "rare_letters": rare_letters,
    "alpha_follows_loss": alpha_follows_loss,
    "dominance": dominance,
    "fluctuation": fluctuation,
    "seeds": seeds,
    "drop_one": drop_one,
    "sensitivity": sensitivity,
    "warm_up": warm_up,
}
