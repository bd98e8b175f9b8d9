"""What the results say about a claim, over seeds.

Each check reduces to comparisons: a quantity with a 95 % t interval over seeds, the sign that the paper gives it, and a
size. An entry of `wants` has a `metric`, `want` (what the paper says of first - second, or of a value against its
`bound`), and the size of the claim: `effect`, or `share` of the other's mean (half of it is the margin), or `allowed`,
how far something may fall that is only said to be kept.

A paper's method is compared with the same methods in every claim (`AGAINST`), unless the claim names the one whose
number it quotes. `ASKED` is our own question: told beside, without a say in the verdict.

The checks of `KINDS` are made on the language model's SAEs (`Scale`) and on those of toy data (`Toy`), whose true
features are known, so that absorption is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from sae_lib.report.results import Results, drop_effect, l0_is_matched, select, toy_rows, why_empty
from sae_lib.report.statistics import ROUNDING, Interval, difference, main_effects, seeds_of, t_interval
from sae_lib.report.tables.controls import no_better

Options = Mapping[str, Any]

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


def without_mechanisms(factorial: pd.DataFrame) -> pd.DataFrame:
    """The rows of `RECIPE`."""
    return factorial[~factorial.reindex(columns=[*MECHANISMS]).astype(bool).any(axis=1)]


def at_the_end(values: Mapping[str, float], want: Options) -> str:
    """Why a share of cases cannot move, from its means in all that is compared."""
    known = [value for value in values.values() if math.isfinite(value)]
    if want["metric"] not in SHARES or want.get("allowed") or "bound" in want or not known:
        return ""
    if max(known) < FEW:
        return f"a floor: {max(known):.4f} at most in all that is compared"
    return f"a ceiling: {min(known):.4f} at least in all that is compared" if min(known) > 1 - FEW else ""


def lacking(results: Results, metric: str) -> bool:
    """Whether every SAE was scored and the language model, of which no letter can be asked, gave `metric` no value."""
    rows = results.evaluation
    return metric in rows and why_empty(rows, metric) == NOT_MEASURABLE


class Scale:
    """The language model's SAEs, of the group that `options` name."""

    place = ""  # what the name of a comparison begins with
    toy = ""  # before a metric in `ROUNDING`

    def __init__(self, results: Results, options: Options) -> None:
        rows, self.results, self.group = results.evaluation, results, options.get("group", "main")
        self.factorial, self.importance = (rows[rows["group"] == name] for name in ("factorial", "atm_importance"))

    def seeds(self, method: str, metric: str) -> pd.Series:
        """The values of a metric by seed, of one method."""
        if method == RECIPE:
            return seeds_of(without_mechanisms(self.factorial), metric)
        return self._seeds(method, metric)

    def _seeds(self, method: str, metric: str) -> pd.Series:
        return self.results.seeds(self.group, method, metric)

    def untestable(self, metric: str) -> str:
        """Why a metric decides nothing, "" if it does: the language model does not allow it, or SAEs without training
        do as well."""
        if lacking(self.results, metric):
            return NO_LETTERS
        named = ", ".join(map(method_name, no_better(self.results, metric) if metric in METRICS else ()))
        return f"does not tell trained from untrained here: {named} no better" if named else ""

    def beside(self, methods: Sequence[str]) -> str:
        """What a contrast is told with."""
        means = {method: {m: t_interval(self.seeds(method, m)).mean for m in _BESIDE} for method in methods}
        return "".join(
            f"; {method_name(method)} at " + ", ".join(f"{metric_label(m)} {value:.3g}" for m, value in values.items())
            for method, values in means.items()
        )

    def on_l0(self, effects: Callable[[str], Sequence[Interval]]) -> str:
        """What a mechanism or a part is told with: its effects on L0."""
        return "; on L0 " + ", ".join(f"{effect.mean:+.3g}" for effect in effects("l0"))

    def needs_matched_l0(self, options: Options) -> bool:
        return self.group in ("main", "atm_fair") and any(want["metric"] in _DECIDED_BY_L0 for want in options["wants"])

    def compare(
        self, name: str, interval: Interval, want: Options, of: float, other: float = 0.0, why: str = ""
    ) -> Comparison:
        """The comparison of an entry of `wants`. `other` is the mean that a `share` is of; `of`, how often the variance
        of one SAE's value is in the quantity; `why`, why it decides nothing."""
        effect = want["share"] * abs(other) if "share" in want else want.get("effect", 0.0)
        rounding = ROUNDING.get(self.toy + want["metric"], 0.0) * math.sqrt(of)
        return Comparison(
            self.place + name, interval, want["want"], want.get("allowed", 0.0), effect / 2, why, rounding
        )


class Toy(Scale):
    """The SAEs of one toy, in the experiment that a check reads."""

    toy = "toy "

    def __init__(self, results: Results, rows: pd.DataFrame, toy: str) -> None:
        self.rows, self.name, self.place = rows, toy, f"{toy}, "
        self.factorial, self.importance = toy_rows(results.toy_summary, "factorial", toy), rows

    def _seeds(self, method: str, metric: str) -> pd.Series:
        return seeds_of(self.rows[self.rows["method"] == method], metric)

    def untestable(self, metric: str) -> str:
        return ""  # toy data has no controls

    def beside(self, methods: Sequence[str]) -> str:
        l0 = {method: t_interval(self.seeds(method, "l0")).mean for method in methods}
        return f"; {self.name}: L0 " + ", ".join(f"{method_name(method)} {value:.3g}" for method, value in l0.items())

    def on_l0(self, effects: Callable[[str], Sequence[Interval]]) -> str:
        return ""

    def needs_matched_l0(self, options: Options) -> bool:
        return True


# Comparisons, what is told beside them, and whether L0 allows to conclude from them.
Found = tuple[list[Comparison], str, bool]


def contrast(scale: Scale, options: Options) -> Found:
    """Method `first` against each of others, seed by seed, in each metric of `wants`; at matched L0, where the metric
    depends on L0."""
    first = options["first"]
    against = tuple(options.get("second", AGAINST.get(first, ())))
    asked = () if "second" in options else ASKED.get(first, ())
    told = (first, *against, *asked)

    def comparisons(others: Sequence[str]) -> list[Comparison]:
        found = []
        for want in options["wants"]:
            values = {method: scale.seeds(method, want["metric"]) for method in (first, *others)}
            means = {method: t_interval(each).mean for method, each in values.items()}
            why = at_the_end(means, want) or scale.untestable(want["metric"])
            for other in others:
                name = f"{metric_label(want['metric'])}, {method_name(first)} − {method_name(other)}:"
                gap = difference(values[first], values[other])
                found.append(scale.compare(name, gap, want, of=2, other=means[other], why=why))
        return found

    note = ""
    for other in asked:
        ours = decide(comparisons((other,)))
        note += f"; our question, against {method_name(other)}: {ours.verdict}, {ours.reason}"
    l0 = [t_interval(scale.seeds(method, "l0")).mean for method in told]
    return comparisons(against), note + scale.beside(told), not scale.needs_matched_l0(options) or l0_is_matched(l0)


def level(scale: Scale, options: Options) -> Found:
    """Metrics of one method, each against its `bound`, or `against` another metric of the same SAEs. `beside` are
    methods whose values are told too."""
    method, comparisons, note = options["method"], [], ""
    for want in options["wants"]:
        metric = metric_label(want["metric"])
        values = scale.seeds(method, want["metric"])
        bound = scale.seeds(method, want["against"]) if "against" in want else want["bound"]
        minus = metric_label(want["against"]) if "against" in want else f"{bound:g}"
        name = f"{metric} of {method_name(method)} {t_interval(values)}, minus {minus}:"
        interval = t_interval((values - bound).dropna())
        comparisons.append(scale.compare(name, interval, want, of=1, why=scale.untestable(want["metric"])))
        for other in options.get("beside", ()):
            found = t_interval(scale.seeds(other, want["metric"]))
            note += f"; {scale.place}{metric} of {method_name(other)} {found}" if found.n or not scale.place else ""
    return comparisons, note, True


def effects(scale: Scale, options: Options) -> Found:
    """Main effects of mechanisms in the 2x2x2 factorial."""
    comparisons, rows, recipe = [], scale.factorial, without_mechanisms(scale.factorial)
    for want in options["wants"]:
        metric = want["metric"]
        why = at_the_end({"factorial": t_interval(seeds_of(rows, metric)).mean}, want) or scale.untestable(metric)
        effect, other = main_effects(rows, metric, MECHANISMS), t_interval(seeds_of(recipe, metric)).mean
        for factor in options["factors"]:
            name = f"effect of {MECHANISMS[factor]} on {metric_label(metric)}:"
            # Four cells minus four.
            comparisons.append(scale.compare(name, effect[factor], want, of=1 / 2, other=other, why=why))
    return (
        comparisons,
        scale.on_l0(lambda l0: [main_effects(rows, l0, MECHANISMS)[f] for f in options["factors"]]),
        True,
    )


def drop_one(scale: Scale, options: Options) -> Found:
    """Each part of ATM's importance dropped, against all parts."""
    comparisons, rows = [], scale.importance
    kept = rows[rows["dropped"] == "nothing"] if "dropped" in rows else rows.iloc[:0]
    for want in options["wants"]:
        metric, all_parts = want["metric"], t_interval(seeds_of(kept, want["metric"])).mean
        for part in IMPORTANCE_PARTS:
            name, change = f"{metric_label(metric)} without {part}:", drop_effect(rows, metric, part)
            why = scale.untestable(metric)
            comparisons.append(scale.compare(name, change, want, of=2, other=all_parts, why=why))
    return comparisons, scale.on_l0(lambda l0: [drop_effect(rows, l0, part) for part in IMPORTANCE_PARTS]), True


# Kind of check -> what makes it, and the toys' experiment that it reads unless `options` name another.
KINDS: dict[str, tuple[Callable[[Scale, Options], Found], str]] = {
    "contrast": (contrast, "matched"),
    "level": (level, "matched"),
    "main_effects": (effects, "factorial"),
    "drop_one": (drop_one, "importance"),
}


def alpha_follows_loss(scale: Scale, options: Options) -> Outcome:
    """Rank correlation, within each run, of the penalty's alpha and the reconstruction loss: negative in the paper."""
    rows = select(scale.results.history, options["group"], options["method"])
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
    return decide([scale.compare(name, t_interval(correlations.values()), want, of=1)], note)


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


def dominance(scale: Scale, options: Options) -> Outcome:
    """Main effect of a mechanism on `top_share` in the factorial."""
    rows, density = scale.factorial, scale.results.density
    # An SAE that stands in several groups has one histogram for each.
    histograms = density[density["run"].isin(rows["run"])].drop_duplicates(["run", "log10_rate_left"])
    shares = {run: top_share(part, options["top"]) for run, part in histograms.groupby("run")}
    rows = rows.assign(share=rows["run"].map(shares).astype(float))
    factor = options["factor"]
    effect = main_effects(rows, "share", MECHANISMS)[factor]
    mean = t_interval(seeds_of(rows, "share")).mean
    name = f"effect of {MECHANISMS[factor]} on the share of the top {options['top']:.0%} (mean {mean:.3f}):"
    return decide([Comparison(name, effect, "lower", margin=options["share"] * mean / 2)])


def fluctuation(scale: Scale, options: Options) -> Outcome:
    """Standard deviation of the log reconstruction loss's changes in the second half of training; same batches. What
    is compared is the ratio of two, in logarithms; `effect` is a ratio too."""

    def of(method: str) -> pd.Series:
        rows = scale.results.history
        if method == RECIPE:
            rows = rows[rows["run"].isin(without_mechanisms(scale.factorial)["run"])]
        else:
            rows = select(rows, "main", method)
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
        comparisons.append(scale.compare(name, difference(ours, of(method)), want, of=2))
    return decide(comparisons)


def rare_letters(scale: Scale, options: Options) -> Outcome:
    """Full absorption of the third of the letters with the fewest words: zero, while that of the others is not."""
    rows = select(scale.results.letters, "main", options["method"])
    words = rows.groupby("letter")["test_words"].mean().sort_values(kind="stable")
    rare = list(words.index[: len(words) // 3])
    if lacking(scale.results, "absorption_full"):
        return Outcome(UNTESTABLE, NO_LETTERS, NO_LETTERS)
    if not rare or "absorption_full" not in rows:
        return Outcome(NOT_RUN, "no results for letters")
    is_rare = rows["letter"].isin(rare)
    of_rare, of_others = (seeds_of(rows[part], "absorption_full") for part in (is_rare, ~is_rare))
    means = {"rare": t_interval(of_rare).mean, "others": t_interval(of_others).mean}
    why = at_the_end(means, {"metric": "absorption_full"})
    named = f"the {len(rare)} letters with the fewest words ({', '.join(sorted(rare))})"
    zero = Comparison(f"absorption (full) of {named}, minus {FEW:g}:", t_interval(of_rare - FEW), "lower")
    others = Comparison(f"of the others, minus {FEW:g}:", t_interval(of_others - FEW), "higher")
    return decide([zero._replace(untestable=why), others._replace(untestable=why)])


def seeds(scale: Scale, options: Options) -> Outcome:
    """Whether each method of the main table has exactly the seeds of the paper."""
    asked = set(options["seeds"])
    rows = scale.results.evaluation
    have = {method: {*select(rows, "main", method)["seed"].astype(int)} for method in MAIN_METHODS}
    if not any(have.values()):
        return Outcome(NOT_RUN, "no results for the main table")
    short = [method_name(method) for method, found in have.items() if found != asked]
    spread = f"seeds {min(asked)} to {max(asked)}"
    if short:
        return Outcome(NOT_REPRODUCED, f"other seeds than {spread} for {', '.join(short)}")
    return Outcome(REPRODUCED, f"every method of the main table has {spread}; the paper gives no spread, we do")


def sensitivity(scale: Scale, options: Options) -> Outcome:
    """Whether other values of each parameter change a metric by more than `margin`: both do, or neither does."""
    rows, margin = scale.results.evaluation, options["margin"]
    rows = rows[rows["group"] == "sensitivity"]
    parameters = {name: name.replace("_", " ") for name in VARIED if name != WARM_UP}
    if rows.empty or not {"varied", *parameters, *options["metrics"]} <= set(rows.columns):
        return Outcome(NOT_RUN, "no results for other coefficients and thresholds")
    metrics = [metric for metric in options["metrics"] if not lacking(scale.results, metric)]
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


def warm_up(scale: Scale, options: Options) -> Outcome:
    """TemporalSAE without any schedule of its first steps, against the method as it is: a collapse is a fall of the
    metric by more than `fall`.
    """
    metric, fall = options["metric"], options["fall"]
    results = scale.results
    rows = select(results.evaluation, "sensitivity", "temporal_sae")
    without = seeds_of(rows[rows["varied"] == WARM_UP] if "varied" in rows else rows, metric)
    change = difference(without, results.seeds("main", "temporal_sae", metric) - fall)
    name = f"{metric_label(metric)} without the warm-up − with it, plus {fall:g}:"
    return decide([scale.compare(name, change, {"metric": metric, "want": "lower"}, of=2)])


# Checks of single claims, on the language model alone.
SINGLE: dict[str, Callable[[Scale, Options], Outcome]] = {
    check.__name__: check
    for check in (rare_letters, alpha_follows_loss, dominance, fluctuation, seeds, sensitivity, warm_up)
}


def _outcome(scales: Sequence[Scale], options: Options) -> Outcome:
    """Of a check of `KINDS` that all of `scales` have to agree in."""
    found = [KINDS[options["kind"]][0](scale, options) for scale in scales]
    outcome = decide([each for comparisons, *_ in found for each in comparisons], "".join(note for _, note, _ in found))
    if outcome.verdict == NOT_RUN or all(matched for *_, matched in found):
        return outcome
    return Outcome(NOT_RUN, f"L0 is not matched, so nothing follows from: {outcome.reason}")


def check_on_data(results: Results, options: Options) -> Outcome:
    """A check on the language model's SAEs."""
    kind, scale = options["kind"], Scale(results, options)
    return _outcome([scale], options) if kind in KINDS else SINGLE[kind](scale, options)


def check_on_toys(results: Results, options: Options) -> Outcome:
    """A check of `KINDS` on toy data. `options` name a `toy`; without one, every toy of the experiment has to agree."""
    experiment = options.get("experiment", KINDS[options["kind"]][1])
    rows = toy_rows(results.toy_summary, experiment, options.get("toy"))
    return _outcome([Toy(results, part, str(toy)) for toy, part in rows.groupby("toy", sort=True)], options)
