"""What the results say about a claim, over seeds.

Each check reduces to comparisons: a quantity with a 95 % t interval over seeds, and the sign that the paper gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib.profiles.runs import VARIED, WARM_UP
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
from sae_lib.report.statistics import Interval, difference, main_effects, t_interval

Options = Mapping[str, Any]
# The values of a metric by seed, of one method.
Seeds = Callable[[str, str], pd.Series]

# Absorption is never told without these.
_BESIDE = ("l0", "explained_variance", "ce_score")
_DECIDED_BY_L0 = (
    "absorption_fraction", "absorption_full", "explained_variance", "ce_score", "num_split_features", "probing_k1",
    "probing_k5", "matched_cosine", "context_firing", "token_change",
)  # fmt: skip


def metric_label(name: str) -> str:
    """What a reason calls a metric."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ").replace("l1 per l0", "L1 / L0")


def wanted(name: str, interval: Interval, want: Mapping[str, Any]) -> Comparison:
    """The comparison of an entry of `wants`."""
    return Comparison(name, interval, want["want"], want.get("margin", 0.0))


def contrasts(seeds: Seeds, options: Options, place: str = "") -> list[Comparison]:
    """Method `first` against each of `second`, seed by seed, in each metric of `wants`; a name begins with `place`."""
    first = options["first"]
    return [
        wanted(
            f"{place}{metric_label(want['metric'])}, {method_name(first)} − {method_name(other)}:",
            difference(seeds(first, want["metric"]), seeds(other, want["metric"])),
            want,
        )
        for want in options["wants"]
        for other in options["second"]
    ]


def levels(seeds: Seeds, options: Options, place: str = "") -> list[Comparison]:
    """Metrics of one method, each against its `bound`, or `against` another metric of the same SAEs."""
    method, comparisons = options["method"], []
    for want in options["wants"]:
        values = seeds(method, want["metric"])
        bound = seeds(method, want["against"]) if "against" in want else want["bound"]
        minus = metric_label(want["against"]) if "against" in want else f"{bound:g}"
        name = f"{place}{metric_label(want['metric'])} of {method_name(method)} {t_interval(values)}, minus {minus}:"
        comparisons.append(wanted(name, t_interval((values - bound).dropna()), want))
    return comparisons


def effects(rows: pd.DataFrame, options: Options, place: str = "") -> list[Comparison]:
    """Main effects of mechanisms in the 2x2x2 factorial."""
    return [
        wanted(
            f"{place}effect of {MECHANISMS[factor]} on {metric_label(want['metric'])}:",
            main_effects(rows, want["metric"], MECHANISMS)[factor],
            want,
        )
        for factor in options["factors"]
        for want in options["wants"]
    ]


def drops(rows: pd.DataFrame, options: Options, place: str = "") -> list[Comparison]:
    """Each part of ATM's importance dropped, against all parts."""
    return [
        wanted(f"{place}{metric_label(want['metric'])} without {part}:", drop_effect(rows, want["metric"], part), want)
        for part in IMPORTANCE_PARTS
        for want in options["wants"]
    ]


def contrast(results: Results, options: Options) -> Outcome:
    """`contrasts` in a group of the results; at matched L0, where the metric depends on L0."""
    group = options.get("group", "main")

    def seeds(method: str, metric: str) -> pd.Series:
        return results.seeds(group, method, metric)

    state = {
        method: {metric: t_interval(seeds(method, metric)).mean for metric in _BESIDE}
        for method in (options["first"], *options["second"])
    }
    note = "".join(
        f"; {method_name(method)} at " + ", ".join(f"{metric_label(m)} {value:.3g}" for m, value in values.items())
        for method, values in state.items()
    )
    outcome = decide(contrasts(seeds, options), note)
    bound_to_l0 = group == "main" and any(want["metric"] in _DECIDED_BY_L0 for want in options["wants"])
    return only_at_matched_l0(outcome, not bound_to_l0 or l0_is_matched(values["l0"] for values in state.values()))


def only_at_matched_l0(outcome: Outcome, matched: bool) -> Outcome:
    """`outcome`, or that nothing follows from it."""
    if matched or outcome.verdict == NOT_RUN:
        return outcome
    return Outcome(NOT_RUN, f"L0 is not matched, so nothing follows from: {outcome.reason}")


def level(results: Results, options: Options) -> Outcome:
    """`levels` in a group of the results."""
    group = options.get("group", "main")
    return decide(levels(lambda method, metric: results.seeds(group, method, metric), options))


def factorial_effects(results: Results, options: Options) -> Outcome:
    """`effects` in group `factorial`, with those on L0."""
    rows = results.evaluation[results.evaluation["group"] == "factorial"]
    on_l0 = main_effects(rows, "l0", MECHANISMS)
    note = "; on L0 " + ", ".join(f"{on_l0[factor].mean:+.3g}" for factor in options["factors"])
    return decide(effects(rows, options), note)


def drop_one(results: Results, options: Options) -> Outcome:
    """`drops` in group `atm_importance`, with those on L0."""
    rows = results.evaluation[results.evaluation["group"] == "atm_importance"]
    note = "; on L0 " + ", ".join(f"{drop_effect(rows, 'l0', part).mean:+.3g}" for part in IMPORTANCE_PARTS)
    return decide(drops(rows, options), note)


def alpha_follows_loss(results: Results, options: Options) -> Outcome:
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


def dominance(results: Results, options: Options) -> Outcome:
    """Main effect of a mechanism on `top_share` in the factorial."""
    rows = results.evaluation[results.evaluation["group"] == "factorial"]
    # An SAE that stands in several groups has one histogram for each.
    histograms = results.density[results.density["run"].isin(rows["run"])].drop_duplicates(["run", "log10_rate_left"])
    shares = {run: top_share(part, options["top"]) for run, part in histograms.groupby("run")}
    rows = rows.assign(share=rows["run"].map(shares).astype(float))
    factor = options["factor"]
    effect = main_effects(rows, "share", MECHANISMS)[factor]
    mean = t_interval(seeds_of(rows, "share")).mean
    name = f"effect of {MECHANISMS[factor]} on the share of the top {options['top']:.0%} (mean {mean:.3f}):"
    return decide([Comparison(name, effect, "lower")])


def fluctuation(results: Results, options: Options) -> Outcome:
    """Standard deviation of the log reconstruction loss's changes in the second half of training; same batches."""

    def of(method: str) -> pd.Series:
        rows = select(results.history, "main", method)
        if "reconstruction" not in rows:
            return pd.Series(dtype=float)
        rows = rows[rows["reconstruction"] > 0].sort_values("step", kind="stable")
        rows = rows[rows["step"] > rows["step"].max() / 2]
        changes = {seed: np.diff(np.log(part["reconstruction"])) for seed, part in rows.groupby("seed")}
        return pd.Series({seed: c.std(ddof=1) for seed, c in changes.items() if len(c) > 1}, dtype=float)

    ours, name = of(options["first"]), f"fluctuation, {method_name(options['first'])}"
    gaps = {method: difference(ours, of(method)) for method in options["second"]}
    return decide([wanted(f"{name} − {method_name(method)}:", gap, options) for method, gap in gaps.items()])


def rare_letters(results: Results, options: Options) -> Outcome:
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
        return Outcome(REPRODUCED, reason, str(interval))
    return Outcome(CONTRADICTED if gap.low > 0 else NOT_REPRODUCED, reason, gap.range)


def seeds(results: Results, options: Options) -> Outcome:
    """Whether each method of the main table has exactly the seeds of the paper."""
    asked = set(options["seeds"])
    have = {method: {*select(results.evaluation, "main", method)["seed"].astype(int)} for method in MAIN_METHODS}
    if not any(have.values()):
        return Outcome(NOT_RUN, "no results for the main table")
    short = [method_name(method) for method, found in have.items() if found != asked]
    spread = f"seeds {min(asked)} to {max(asked)}"
    if short:
        return Outcome(NOT_REPRODUCED, f"other seeds than {spread} for {', '.join(short)}")
    return Outcome(REPRODUCED, f"every method of the main table has {spread}; the paper gives no spread, we do")


def sensitivity(results: Results, options: Options) -> Outcome:
    """Whether other values of each parameter change a metric by more than `margin`: both do, or neither does."""
    rows, margin = results.evaluation[results.evaluation["group"] == "sensitivity"], options["margin"]
    parameters = {name: name.replace("_", " ") for name in VARIED if name != WARM_UP}
    if rows.empty or not {"varied", *parameters, *options["metrics"]} <= set(rows.columns):
        return Outcome(NOT_RUN, "no results for other coefficients and thresholds")
    rows = rows[rows["varied"] != WARM_UP]
    default = {p: rows[p].mode().iloc[0] if rows[p].notna().any() else math.nan for p in parameters}
    usual = rows[(rows[list(parameters)] == pd.Series(default)).all(axis=1)]
    matters, indifferent, told, number = {}, True, [], ""
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
        number = number or largest.range
        told.append(f"{name} {value:g} for {default[parameter]:g}: {metric_label(metric)} {largest.range}")
    reason = f"largest changes, {margin:g} counted as none: " + "; ".join(told)
    if all(matters.values()):
        return Outcome(REPRODUCED, reason, number)
    return Outcome(CONTRADICTED if indifferent else NOT_REPRODUCED, reason, number)


def warm_up(results: Results, options: Options) -> Outcome:
    """TemporalSAE without any schedule of its first steps, against the method as it is: a collapse is a fall of the
    metric by more than `fall`.
    """
    metric, fall = options["metric"], options["fall"]
    rows = select(results.evaluation, "sensitivity", "temporal_sae")
    without = seeds_of(rows[rows["varied"] == WARM_UP] if "varied" in rows else rows, metric)
    change = difference(without, results.seeds("main", "temporal_sae", metric) - fall)
    name = f"{metric_label(metric)} without the warm-up − with it, plus {fall:g}:"
    return decide([Comparison(name, change, "lower")])


DATA_CHECKS: dict[str, Callable[[Results, Options], Outcome]] = {
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
