"""What the results say about a claim, over seeds.

Each check reduces to comparisons: a quantity with a 95 % t interval over seeds, the sign that the paper gives it, and a
size. An entry of `wants` has a `metric`, `want` (what the paper says of first - second, or of a value against its
`bound`), and the size of the claim: `effect`, or `share` of the other's mean (half of it is the margin), or `allowed`,
how far something may fall that is only said to be kept.

A paper's method is compared with the same methods in every claim (`AGAINST`), unless the claim names the one whose
number it quotes. `ASKED` is our own question: told beside, without a say in the verdict.
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
    INCONCLUSIVE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    UNTESTABLE,
    Comparison,
    Outcome,
    decide,
    united,
)
from sae_lib.report.names import IMPORTANCE_PARTS, MAIN_METHODS, MECHANISMS, METRICS, NOT_MEASURABLE, method_name
from sae_lib.report.results import Results, drop_effect, l0_is_matched, seeds_of, select, why_empty
from sae_lib.report.statistics import ROUNDING, Interval, difference, main_effects, t_interval
from sae_lib.report.tables.controls import no_better

Options = Mapping[str, Any]
# The values of a metric by seed, of one method.
Seeds = Callable[[str, str], pd.Series]
# Why a metric decides nothing, "" if it does.
Untestable = Callable[[str], str]

# TemporalSAE's own recipe without its three mechanisms: the factorial's cell in which all are off.
RECIPE = "same recipe, no mechanism"
AGAINST = {"temporal_sae": (RECIPE, "topk", "jumprelu"), "atm": ("topk", "jumprelu")}
ASKED = {"atm": ("standard",)}
# Shares of cases: below `FEW` of them, or above all but `FEW`, there is nothing left to move.
SHARES = ("dead_fraction", "absorption_fraction", "absorption_full", "parent_silent_rate", "context_firing")
FEW = 0.01
NO_LETTERS = f"{NOT_MEASURABLE}: no letter can be asked of it"
# Absorption is never told without these.
_BESIDE = ("l0", "explained_variance", "ce_score")
_DECIDED_BY_L0 = (
    "absorption_fraction", "absorption_full", "explained_variance", "ce_score", "num_split_features", "probing_k1",
    "probing_k5", "matched_cosine", "context_firing", "token_change",
)  # fmt: skip


def metric_label(name: str) -> str:
    """What a reason calls a metric."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ").replace("l1 per l0", "L1 / L0")


def without_mechanisms(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `RECIPE`, of a table that has the factorial."""
    if "factorial" in {*rows.get("group", ())}:
        rows = rows[rows["group"] == "factorial"]
    elif "experiment" in rows:
        rows = rows[rows["experiment"] == "factorial"]
    else:
        return rows.iloc[:0]
    return rows[~rows[list(MECHANISMS)].astype(bool).any(axis=1)]


def at_the_end(values: Mapping[str, float], want: Mapping[str, Any]) -> str:
    """Why a share of cases cannot move, from its means in all that is compared."""
    known = [value for value in values.values() if math.isfinite(value)]
    if want["metric"] not in SHARES or want.get("allowed") or "bound" in want or not known:
        return ""
    if max(known) < FEW:
        return f"a floor: {max(known):.4f} at most in all that is compared"
    return f"a ceiling: {min(known):.4f} at least in all that is compared" if min(known) > 1 - FEW else ""


def wanted(
    name: str, interval: Interval, want: Mapping[str, Any], other: float, untestable: str = "", *, of: float, toy: bool
) -> Comparison:
    """The comparison of an entry of `wants`. `other` is the mean that a `share` is of; `of`, how often the variance of
    one SAE's value is in the quantity."""
    effect = want["share"] * abs(other) if "share" in want else want.get("effect", 0.0)
    rounding = ROUNDING.get(f"toy {want['metric']}" if toy else want["metric"], 0.0) * math.sqrt(of)
    return Comparison(name, interval, want["want"], want.get("allowed", 0.0), effect / 2, untestable, rounding)


def contrasts(
    seeds: Seeds, untestable: Untestable, options: Options, against: tuple[str, ...], place: str = ""
) -> list[Comparison]:
    """Method `first` against each of others, seed by seed, in each metric of `wants`; a name begins with `place`."""
    first, comparisons = options["first"], []
    for want in options["wants"]:
        values = {method: seeds(method, want["metric"]) for method in (first, *against)}
        means = {method: t_interval(each).mean for method, each in values.items()}
        why = at_the_end(means, want) or untestable(want["metric"])
        for other in against:
            name = f"{place}{metric_label(want['metric'])}, {method_name(first)} − {method_name(other)}:"
            gap = difference(values[first], values[other])
            comparisons.append(wanted(name, gap, want, means[other], why, of=2, toy=bool(place)))
    return comparisons


def levels(seeds: Seeds, untestable: Untestable, options: Options, place: str = "") -> list[Comparison]:
    """Metrics of one method, each against its `bound`, or `against` another metric of the same SAEs."""
    method, comparisons = options["method"], []
    for want in options["wants"]:
        values = seeds(method, want["metric"])
        bound = seeds(method, want["against"]) if "against" in want else want["bound"]
        minus = metric_label(want["against"]) if "against" in want else f"{bound:g}"
        name = f"{place}{metric_label(want['metric'])} of {method_name(method)} {t_interval(values)}, minus {minus}:"
        interval = t_interval((values - bound).dropna())
        comparisons.append(wanted(name, interval, want, 0.0, untestable(want["metric"]), of=1, toy=bool(place)))
    return comparisons


def effects(rows: pd.DataFrame, untestable: Untestable, options: Options, place: str = "") -> list[Comparison]:
    """Main effects of mechanisms in the 2x2x2 factorial."""
    comparisons = []
    for want in options["wants"]:
        mean = t_interval(seeds_of(rows, want["metric"])).mean
        why = at_the_end({"factorial": mean}, want) or untestable(want["metric"])
        effect = main_effects(rows, want["metric"], MECHANISMS)
        other = t_interval(seeds_of(without_mechanisms(rows), want["metric"])).mean if len(rows) else math.nan
        for factor in options["factors"]:
            name = f"{place}effect of {MECHANISMS[factor]} on {metric_label(want['metric'])}:"
            # Four cells minus four.
            comparisons.append(wanted(name, effect[factor], want, other, why, of=1 / 2, toy=bool(place)))
    return comparisons


def drops(rows: pd.DataFrame, untestable: Untestable, options: Options, place: str = "") -> list[Comparison]:
    """Each part of ATM's importance dropped, against all parts."""
    comparisons = []
    for want in options["wants"]:
        metric = want["metric"]
        kept = rows[rows["dropped"] == "nothing"] if "dropped" in rows else rows.iloc[:0]
        all_parts = t_interval(seeds_of(kept, metric)).mean
        for part in IMPORTANCE_PARTS:
            name = f"{place}{metric_label(metric)} without {part}:"
            change = drop_effect(rows, metric, part)
            comparisons.append(wanted(name, change, want, all_parts, untestable(metric), of=2, toy=bool(place)))
    return comparisons


def lacking(results: Results, metric: str) -> bool:
    """Whether every SAE was scored and the language model, of which no letter can be asked, gave `metric` no value."""
    rows = results.evaluation
    return metric in rows and why_empty(rows, metric) == NOT_MEASURABLE


def at_this_scale(results: Results) -> Untestable:
    """A metric of the language model's SAEs decides nothing where the model does not allow it, or where SAEs without
    training do as well."""

    def why(metric: str) -> str:
        if lacking(results, metric):
            return NO_LETTERS
        named = ", ".join(map(method_name, no_better(results, metric) if metric in METRICS else ()))
        return f"does not tell trained from untrained here: {named} no better" if named else ""

    return why


def contrast(results: Results, options: Options) -> Outcome:
    """`contrasts` in a group of the results; at matched L0, where the metric depends on L0."""
    group, first = options.get("group", "main"), options["first"]

    def seeds(method: str, metric: str) -> pd.Series:
        if method == RECIPE:
            return seeds_of(without_mechanisms(results.evaluation), metric)
        return results.seeds(group, method, metric)

    against = tuple(options.get("second", AGAINST.get(first, ())))
    asked = () if "second" in options else ASKED.get(first, ())
    state = {
        method: {metric: t_interval(seeds(method, metric)).mean for metric in _BESIDE}
        for method in (first, *against, *asked)
    }
    note = "".join(
        f"; {method_name(method)} at " + ", ".join(f"{metric_label(m)} {value:.3g}" for m, value in values.items())
        for method, values in state.items()
    )
    untestable = at_this_scale(results)
    for other in asked:
        ours = decide(contrasts(seeds, untestable, options, (other,)))
        note = f"; our question, against {method_name(other)}: {ours.verdict}, {ours.reason}{note}"
    outcome = decide(contrasts(seeds, untestable, options, against), note)
    bound_to_l0 = group in ("main", "atm_fair") and any(want["metric"] in _DECIDED_BY_L0 for want in options["wants"])
    return only_at_matched_l0(outcome, not bound_to_l0 or l0_is_matched(values["l0"] for values in state.values()))


def only_at_matched_l0(outcome: Outcome, matched: bool) -> Outcome:
    """`outcome`, or that nothing follows from it."""
    if matched or outcome.verdict == NOT_RUN:
        return outcome
    return Outcome(NOT_RUN, f"L0 is not matched, so nothing follows from: {outcome.reason}")


def level(results: Results, options: Options) -> Outcome:
    """`levels` in a group of the results."""
    group = options.get("group", "main")

    def seeds(method: str, metric: str) -> pd.Series:
        return results.seeds(group, method, metric)

    beside = [(method, want["metric"]) for want in options["wants"] for method in options.get("beside", ())]
    note = "".join(f"; {metric_label(m)} of {method_name(other)} {t_interval(seeds(other, m))}" for other, m in beside)
    return decide(levels(seeds, at_this_scale(results), options), note)


def factorial_effects(results: Results, options: Options) -> Outcome:
    """`effects` in group `factorial`, with those on L0."""
    rows = results.evaluation[results.evaluation["group"] == "factorial"]
    on_l0 = main_effects(rows, "l0", MECHANISMS)
    note = "; on L0 " + ", ".join(f"{on_l0[factor].mean:+.3g}" for factor in options["factors"])
    return decide(effects(rows, at_this_scale(results), options), note)


def drop_one(results: Results, options: Options) -> Outcome:
    """`drops` in group `atm_importance`, with those on L0."""
    rows = results.evaluation[results.evaluation["group"] == "atm_importance"]
    note = "; on L0 " + ", ".join(f"{drop_effect(rows, 'l0', part).mean:+.3g}" for part in IMPORTANCE_PARTS)
    return decide(drops(rows, at_this_scale(results), options), note)


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
    want = {"metric": "alpha_loss_correlation", "want": "lower", "effect": options["effect"]}
    return decide([wanted(name, t_interval(correlations.values()), want, 0.0, of=1, toy=False)], note)


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
    return decide([Comparison(name, effect, "lower", margin=options["share"] * mean / 2)])


def fluctuation(results: Results, options: Options) -> Outcome:
    """Standard deviation of the log reconstruction loss's changes in the second half of training; same batches. What
    is compared is the ratio of two, in logarithms; `effect` is a ratio too."""

    def of(method: str) -> pd.Series:
        history = results.history
        recipe = without_mechanisms(results.evaluation)["run"] if method == RECIPE else ()
        rows = history[history["run"].isin(recipe)] if method == RECIPE else select(history, "main", method)
        if "reconstruction" not in rows:
            return pd.Series(dtype=float)
        rows = rows[rows["reconstruction"] > 0].sort_values("step", kind="stable")
        rows = rows[rows["step"] > rows["step"].max() / 2]
        changes = {seed: np.diff(np.log(part["reconstruction"])) for seed, part in rows.groupby("seed")}
        return pd.Series({seed: math.log(c.std(ddof=1)) for seed, c in changes.items() if len(c) > 1}, dtype=float)

    first = options["first"]
    ours, comparisons = of(first), []
    want = {"metric": "fluctuation", "want": options["want"], "effect": math.log(options["effect"])}
    for method in options.get("second", AGAINST.get(first, ())):
        name = f"fluctuation, log of {method_name(first)} / {method_name(method)}:"
        comparisons.append(wanted(name, difference(ours, of(method)), want, 0.0, of=2, toy=False))
    return decide(comparisons)


def rare_letters(results: Results, options: Options) -> Outcome:
    """Full absorption of the third of the letters with the fewest words: zero, while that of the others is not."""
    rows = select(results.letters, "main", options["method"])
    words = rows.groupby("letter")["test_words"].mean().sort_values(kind="stable")
    rare = list(words.index[: len(words) // 3])
    if lacking(results, "absorption_full"):
        return Outcome(UNTESTABLE, NO_LETTERS, NO_LETTERS)
    if not rare or "absorption_full" not in rows:
        return Outcome(NOT_RUN, "no results for letters")
    is_rare = rows["letter"].isin(rare)
    of_rare, of_others = (seeds_of(rows[part], "absorption_full") for part in (is_rare, ~is_rare))
    means = {"rare": t_interval(of_rare).mean, "others": t_interval(of_others).mean}
    why = at_the_end(means, {"metric": "absorption_full"})
    named = f"the {len(rare)} letters with the fewest words ({', '.join(sorted(rare))})"
    zero = Comparison(
        f"absorption (full) of {named}, minus {FEW:g}:", t_interval(of_rare - FEW), "lower", 0.0, 0.0, why
    )
    others = Comparison(f"of the others, minus {FEW:g}:", t_interval(of_others - FEW), "higher", 0.0, 0.0, why)
    return decide([zero, others])


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
    metrics = [metric for metric in options["metrics"] if not lacking(results, metric)]
    left_out = [metric_label(metric) for metric in options["metrics"] if metric not in metrics]
    note = f"; left out, {NO_LETTERS}: {', '.join(left_out)}" if left_out else ""
    if not metrics:
        return Outcome(UNTESTABLE, NO_LETTERS, NO_LETTERS)
    rows = rows[rows["varied"] != WARM_UP]
    default = {p: rows[p].mode().iloc[0] if rows[p].notna().any() else math.nan for p in parameters}
    usual = rows[(rows[list(parameters)] == pd.Series(default)).all(axis=1)]
    outcomes = []
    for parameter, name in parameters.items():
        other = rows[rows[parameter].notna() & (rows[parameter] != default[parameter])]
        changes = {
            (value, metric): difference(seeds_of(part, metric), seeds_of(usual, metric))
            for value, part in other.groupby(parameter)
            for metric in metrics
        }
        if not changes or min(change.n for change in changes.values()) < 2:
            return Outcome(NOT_RUN, f"no two seeds for another {name} than {default[parameter]:g}")
        # One change that is large enough is all that a parameter needs; it is indifferent where all are small.
        sizes = [
            Comparison(
                f"{metric_label(metric)} at {name} {value:g} in place of {default[parameter]:g}:",
                change,
                "higher" if change.mean > 0 else "lower",
                allowed=-margin,
                rounding=math.sqrt(2) * ROUNDING.get(metric, 0.0),
            )
            for (value, metric), change in sorted(changes.items(), key=lambda item: -abs(item[1].mean))
        ]
        large, unclear = [c for c in sizes if c.holds], [c for c in sizes if not c.excluded]
        told = (large or unclear or sizes)[0]
        verdict = REPRODUCED if large else INCONCLUSIVE if unclear else NOT_REPRODUCED
        number = f"{told.number}; {told.seeds}" if verdict == INCONCLUSIVE else told.number
        outcomes.append(Outcome(verdict, str(told), number))
    outcome = united(outcomes)
    if all(each.verdict == NOT_REPRODUCED for each in outcomes):
        outcome = outcome._replace(verdict=CONTRADICTED)
    return outcome._replace(
        reason=f"up to {margin:g} counted as none: " + "; ".join(each.reason for each in outcomes) + note
    )


def warm_up(results: Results, options: Options) -> Outcome:
    """TemporalSAE without any schedule of its first steps, against the method as it is: a collapse is a fall of the
    metric by more than `fall`.
    """
    metric, fall = options["metric"], options["fall"]
    rows = select(results.evaluation, "sensitivity", "temporal_sae")
    without = seeds_of(rows[rows["varied"] == WARM_UP] if "varied" in rows else rows, metric)
    change = difference(without, results.seeds("main", "temporal_sae", metric) - fall)
    name = f"{metric_label(metric)} without the warm-up − with it, plus {fall:g}:"
    return decide([wanted(name, change, {"metric": metric, "want": "lower"}, 0.0, of=2, toy=False)])


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
