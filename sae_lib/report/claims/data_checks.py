"""What the results say about a claim, over seeds.

Each check reduces to comparisons: a quantity with a 95 % t interval over seeds, the sign that the paper gives it, and a
size. An entry of `wants` has a `metric`, `want` (what the paper says of first - second, or of a value against its
`bound`), and the size of the claim: `effect`, or `share` of the other's mean (half of it is the margin), or `allowed`,
how far something may fall that is only said to be kept. The checks of `KINDS` are made on the language model's SAEs and
on those of toy data, whose true features are known, so that absorption is counted.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.profiles.runs import VARIED, WARM_UP
from sae_lib.report.claims.verdicts import Comparison, Outcome, Verdict, decide, united
from sae_lib.report.names import MAIN_METHODS, MECHANISMS, METRICS, NOT_MEASURABLE, method_name
from sae_lib.report.results import Results, bare, drop_effect, l0_is_matched, main_effect, select, toy_rows, why_empty
from sae_lib.report.statistics import ROUNDING, Interval, difference, seeds_of, t_interval
from sae_lib.report.tables.controls import no_better

Options = Mapping[str, Any]

# TemporalSAE's own recipe without its three mechanisms: the factorial's cell in which all are off.
RECIPE = "same recipe, no mechanism"
# What a paper's method is compared with, unless the claim quotes another's number; and our own question, told beside.
AGAINST = {"temporal_sae": (RECIPE, "topk", "jumprelu"), "atm": ("topk", "jumprelu")}
ASKED = {"atm": ("standard",)}
# Shares of cases: below `FEW` of them, or above all but `FEW`, there is nothing left to move.
SHARES = ("dead_fraction", "absorption_fraction", "absorption_full", "parent_silent_rate", "context_firing")
FEW = 0.01
NO_LETTERS = f"{NOT_MEASURABLE}: no letter can be asked of it"
# Absorption is never told without these.
_BESIDE = ("l0", "explained_variance", "ce_score")


def metric_label(name: str) -> str:
    return METRICS[name].label if name in METRICS else name.replace("_", " ").replace("l1 per l0", "L1 / L0")


def at_the_end(want: Options, compared: Iterable[pd.Series]) -> str:
    """Why a share of cases cannot move, from its means in all that is compared."""
    known = [mean for mean in (t_interval(values).mean for values in compared) if math.isfinite(mean)]
    if want["metric"] not in SHARES or want.get("allowed") or "bound" in want or not known:
        return ""
    if max(known) < FEW:
        return f"a floor: {max(known):.4f} at most in all that is compared"
    return f"a ceiling: {min(known):.4f} at least in all that is compared" if min(known) > 1 - FEW else ""


def lacking(results: Results, metric: str) -> bool:
    """Whether every SAE was scored, and no letter can be asked of the language model for `metric`."""
    return metric in results.evaluation and why_empty(results.evaluation, metric) == NOT_MEASURABLE


class Scale:
    """What a check is made on: SAEs of the group that `options` name, of the language model, or of one `toy`."""

    def __init__(self, results: Results, options: Options, toy: str = "") -> None:
        self.results, self.toy, self.group = results, toy, options.get("group", "main")
        groups = results.evaluation["group"]
        self.factorial, self.importance = (results.evaluation[groups == g] for g in ("factorial", "atm_importance"))
        self.place = f"{toy}, " if toy else ""  # what the name of a comparison begins with

    def seeds(self, method: str, metric: str) -> pd.Series:
        if method == RECIPE:
            return seeds_of(bare(self.factorial), metric)
        return self.results.seeds(self.group, method, metric)

    def mean(self, method: str, metric: str) -> float:
        return t_interval(self.seeds(method, metric)).mean

    def untestable(self, metric: str) -> str:
        """Why a metric decides nothing: not allowed by the model, or no better than untrained. Toys have no control."""
        if self.toy:
            return ""
        if lacking(self.results, metric):
            return NO_LETTERS
        named = ", ".join(map(method_name, no_better(self.results, metric) if metric in METRICS else ()))
        return f"does not tell trained from untrained here: {named} no better" if named else ""

    def beside(self, methods: Sequence[str]) -> str:
        if self.toy:
            l0 = ", ".join(f"{method_name(method)} {self.mean(method, 'l0'):.3g}" for method in methods)
            return f"; {self.toy}: L0 {l0}"
        told = {method: [f"{metric_label(m)} {self.mean(method, m):.3g}" for m in _BESIDE] for method in methods}
        return "".join(f"; {method_name(method)} at {', '.join(values)}" for method, values in told.items())

    def on_l0(self, effects: Iterable[Interval]) -> str:
        return "" if self.toy else "; on L0 " + ", ".join(f"{effect.mean:+.3g}" for effect in effects)

    def compare(
        self, name: str, interval: Interval, want: Options, of: float, other: float = 0.0, why: str = ""
    ) -> Comparison:
        """The comparison of an entry of `wants`. `other` is the mean that a `share` is of; `of`, how often the variance
        of one SAE's value is in the quantity; `why`, why it decides nothing."""
        effect = want["share"] * abs(other) if "share" in want else want.get("effect", 0.0)
        rounding = ROUNDING.get(f"{'toy ' if self.toy else ''}{want['metric']}", 0.0) * math.sqrt(of)
        allowed = want.get("allowed", 0.0)
        return Comparison(self.place + name, interval, want["want"], allowed, effect / 2, why, rounding)


class Found(NamedTuple):
    """Comparisons, what is told beside them, and whether L0 allows to conclude from them."""

    comparisons: list[Comparison]
    note: str
    matched: bool = True


def contrast(scale: Scale, options: Options) -> Found:
    """Method `first` against others, seed by seed, in each metric of `wants`; at matched L0."""
    first = options["first"]
    against = tuple(options.get("second", AGAINST.get(first, ())))
    asked = () if "second" in options else ASKED.get(first, ())

    def comparisons(others: Sequence[str]) -> list[Comparison]:
        found = []
        for want in options["wants"]:
            values = {method: scale.seeds(method, want["metric"]) for method in (first, *others)}
            why = at_the_end(want, values.values()) or scale.untestable(want["metric"])
            for other in others:
                name = f"{metric_label(want['metric'])}, {method_name(first)} − {method_name(other)}:"
                gap, mean = difference(values[first], values[other]), t_interval(values[other]).mean
                found.append(scale.compare(name, gap, want, of=2, other=mean, why=why))
        return found

    note = ""
    for other in asked:
        ours = decide(comparisons((other,)))
        note += f"; our question, against {method_name(other)}: {ours.verdict}, {ours.reason}"
    every = (first, *against, *asked)
    # Of runs as written L0 is a result.
    matched = not scale.toy and scale.group not in ("main", "atm_fair")
    matched = matched or l0_is_matched(scale.mean(method, "l0") for method in every)
    return Found(comparisons(against), note + scale.beside(every), matched)


def level(scale: Scale, options: Options) -> Found:
    """Metrics of one method, each against its `bound` or another metric; `beside` are methods told too."""
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
            note += f"; {scale.place}{metric} of {method_name(other)} {found}" if found.n or not scale.toy else ""
    return Found(comparisons, note)


def effects(scale: Scale, options: Options) -> Found:
    """Main effects of mechanisms in the 2x2x2 factorial."""
    comparisons, rows = [], scale.factorial
    for want in options["wants"]:
        metric, none = want["metric"], scale.mean(RECIPE, want["metric"])
        why = at_the_end(want, [seeds_of(rows, metric)]) or scale.untestable(metric)
        for factor in options["factors"]:
            name = f"effect of {MECHANISMS[factor]} on {metric_label(metric)}:"
            effect = main_effect(rows, metric, factor)  # four cells minus four
            comparisons.append(scale.compare(name, effect, want, of=1 / 2, other=none, why=why))
    return Found(comparisons, scale.on_l0(main_effect(rows, "l0", factor) for factor in options["factors"]))


def drop_one(scale: Scale, options: Options) -> Found:
    """Each part of ATM's importance dropped, against all parts."""
    comparisons, rows = [], scale.importance
    kept = rows[rows["dropped"] == "nothing"] if "dropped" in rows else rows.iloc[:0]
    for want in options["wants"]:
        metric = want["metric"]
        all_parts, why = t_interval(seeds_of(kept, metric)).mean, scale.untestable(metric)
        for part in COMPONENTS:
            name, change = f"{metric_label(metric)} without {part}:", drop_effect(rows, metric, part)
            comparisons.append(scale.compare(name, change, want, of=2, other=all_parts, why=why))
    return Found(comparisons, scale.on_l0(drop_effect(rows, "l0", part) for part in COMPONENTS))


# Experiment on toy data -> the group of the language model's SAEs that it is like.
GROUPS = {"matched": "main", "factorial": "factorial", "importance": "atm_importance"}
# Kind of check -> what makes it, and the toys' experiment that it reads.
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
        return Outcome(Verdict.NOT_RUN, "no log of alpha")
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
    """Share of all activations made by the most frequent `top` of the latents, from a histogram of log10 rates: each
    counts with the rate in the middle of its bin. Latents that never fire have a bin at -inf or none."""
    bins = histogram.sort_values("log10_rate_left", ascending=False, kind="stable")
    left, count = bins["log10_rate_left"].to_numpy(float), bins["count"].to_numpy(float)
    widths = np.diff(np.unique(left[np.isfinite(left)]))
    rate = 10.0 ** (left + (widths.min() if len(widths) else 0.0) / 2)
    allowed = math.ceil(top * count.sum())
    taken = np.clip(allowed - (np.cumsum(count) - count), 0, count)
    total = float((rate * count).sum())
    return float((rate * taken).sum()) / total if total > 0 else math.nan


def dominance(scale: Scale, options: Options) -> Outcome:
    """Main effect of a mechanism on `top_share` in the factorial."""
    density, factor = scale.results.density, options["factor"]
    # An SAE that stands in several groups has one histogram for each.
    histograms = density[density["run"].isin(scale.factorial["run"])].drop_duplicates(["run", "log10_rate_left"])
    shares = {run: top_share(part, options["top"]) for run, part in histograms.groupby("run")}
    rows = scale.factorial.assign(share=scale.factorial["run"].map(shares).astype(float))
    mean = t_interval(seeds_of(rows, "share")).mean
    name = f"effect of {MECHANISMS[factor]} on the share of the top {options['top']:.0%} (mean {mean:.3f}):"
    return decide([Comparison(name, main_effect(rows, "share", factor), "lower", margin=options["share"] * mean / 2)])


def fluctuation(scale: Scale, options: Options) -> Outcome:
    """Standard deviation of the log reconstruction loss's changes in the second half of training; same batches. What
    is compared is the ratio of two, in logarithms; `effect` is a ratio too."""

    def of(method: str) -> pd.Series:
        rows, recipe = scale.results.history, bare(scale.factorial)["run"]
        rows = rows[rows["run"].isin(recipe)] if method == RECIPE else select(rows, "main", method)
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
        return Outcome(Verdict.UNTESTABLE, NO_LETTERS, NO_LETTERS)
    if not rare or "absorption_full" not in rows:
        return Outcome(Verdict.NOT_RUN, "no results for letters")
    is_rare = rows["letter"].isin(rare)
    of_rare, of_others = (seeds_of(rows[part], "absorption_full") for part in (is_rare, ~is_rare))
    why = at_the_end({"metric": "absorption_full"}, (of_rare, of_others))
    named = f"absorption (full) of the {len(rare)} letters with the fewest words ({', '.join(sorted(rare))})"
    zero = Comparison(f"{named}, minus {FEW:g}:", t_interval(of_rare - FEW), "lower", untestable=why)
    others = Comparison(f"of the others, minus {FEW:g}:", t_interval(of_others - FEW), "higher", untestable=why)
    return decide([zero, others])


def seeds(scale: Scale, options: Options) -> Outcome:
    """Whether each method of the main table has exactly the seeds of the paper."""
    asked, rows = set(options["seeds"]), scale.results.evaluation
    have = {method: {*select(rows, "main", method)["seed"].astype(int)} for method in MAIN_METHODS}
    if not any(have.values()):
        return Outcome(Verdict.NOT_RUN, "no results for the main table")
    short = [method_name(method) for method, found in have.items() if found != asked]
    spread = f"seeds {min(asked)} to {max(asked)}"
    if short:
        return Outcome(Verdict.NOT_REPRODUCED, f"other seeds than {spread} for {', '.join(short)}")
    return Outcome(Verdict.REPRODUCED, f"every method of the main table has {spread}; the paper gives no spread, we do")


def sensitivity(scale: Scale, options: Options) -> Outcome:
    """Whether other values of each parameter change a metric by more than `margin`: both do, or neither does."""
    rows, margin = scale.results.evaluation, options["margin"]
    rows = rows[rows["group"] == "sensitivity"]
    parameters = [name for name in VARIED if name != WARM_UP]
    if rows.empty or not {"varied", *parameters, *options["metrics"]} <= set(rows.columns):
        return Outcome(Verdict.NOT_RUN, "no results for other coefficients and thresholds")
    unknown = [metric for metric in options["metrics"] if lacking(scale.results, metric)]
    metrics = [metric for metric in options["metrics"] if metric not in unknown]
    if not metrics:
        return Outcome(Verdict.UNTESTABLE, NO_LETTERS, NO_LETTERS)
    rows = rows[rows["varied"] != WARM_UP]
    default = {p: rows[p].mode().iloc[0] if rows[p].notna().any() else math.nan for p in parameters}
    usual = rows[(rows[parameters] == pd.Series(default)).all(axis=1)]
    outcomes = []
    for parameter, value in default.items():
        label = parameter.replace("_", " ")
        changes = [
            (difference(seeds_of(part, metric), seeds_of(usual, metric)), metric, other)
            for other, part in rows[rows[parameter] != value].groupby(parameter)
            for metric in metrics
        ]
        if not changes or min(change.n for change, *_ in changes) < 2:
            return Outcome(Verdict.NOT_RUN, f"no two seeds for another {label} than {value:g}")
        # One change that is large enough is all that a parameter needs; it is indifferent where all are small.
        sizes = []
        for change, metric, other in sorted(changes, key=lambda each: -abs(each[0].mean)):
            name = f"{metric_label(metric)} at {label} {other:g} in place of {value:g}:"
            want = {"metric": metric, "want": "higher" if change.mean > 0 else "lower", "allowed": -margin}
            sizes.append(scale.compare(name, change, want, of=2))
        large, unclear = [c for c in sizes if c.holds], [c for c in sizes if not c.excluded]
        told = (large or unclear or sizes)[0]
        verdict = Verdict.REPRODUCED if large else Verdict.INCONCLUSIVE if unclear else Verdict.NOT_REPRODUCED
        number = f"{told.number}; {told.seeds}" if verdict == Verdict.INCONCLUSIVE else told.number
        outcomes.append(Outcome(verdict, str(told), number))
    found, reasons = united(outcomes), "; ".join(each.reason for each in outcomes)
    neither = all(each.verdict == Verdict.NOT_REPRODUCED for each in outcomes)
    note = f"; left out, {NO_LETTERS}: {', '.join(map(metric_label, unknown))}" if unknown else ""
    verdict = Verdict.CONTRADICTED if neither else found.verdict
    return Outcome(verdict, f"up to {margin:g} counted as none: {reasons}{note}", found.number)


def warm_up(scale: Scale, options: Options) -> Outcome:
    """TemporalSAE without any warm-up against the method as it is: a collapse is a fall by more than `fall`."""
    metric, fall = options["metric"], options["fall"]
    rows = select(scale.results.evaluation, "sensitivity", "temporal_sae")
    without = seeds_of(rows[rows["varied"] == WARM_UP] if "varied" in rows else rows, metric)
    change = difference(without, scale.results.seeds("main", "temporal_sae", metric) - fall)
    name = f"{metric_label(metric)} without the warm-up − with it, plus {fall:g}:"
    return decide([scale.compare(name, change, {"metric": metric, "want": "lower"}, of=2)])


# Checks of single claims, on the language model alone.
SINGLE: dict[str, Callable[[Scale, Options], Outcome]] = {
    check.__name__: check
    for check in (rare_letters, alpha_follows_loss, dominance, fluctuation, seeds, sensitivity, warm_up)
}


def check_on_data(results: Results, options: Options) -> Outcome:
    kind, scale = options["kind"], Scale(results, options)
    return _agreed([scale], options) if kind in KINDS else SINGLE[kind](scale, options)


def check_on_toys(results: Results, options: Options) -> Outcome:
    """On the `toy` that `options` name; without one, every toy of the experiment has to agree."""
    rows = results.toy_summary.assign(group=results.toy_summary["experiment"].map(GROUPS))
    toys = sorted({*toy_rows(rows, KINDS[options["kind"]][1], options.get("toy"))["toy"]})
    return _agreed([Scale(Results(rows[rows["toy"] == toy]), options, str(toy)) for toy in toys], options)


def _agreed(scales: Sequence[Scale], options: Options) -> Outcome:
    found = [KINDS[options["kind"]][0](scale, options) for scale in scales]
    outcome = decide([c for each in found for c in each.comparisons], "".join(each.note for each in found))
    if outcome.verdict == Verdict.NOT_RUN or all(each.matched for each in found):
        return outcome
    return Outcome(Verdict.NOT_RUN, f"L0 is not matched, so nothing follows from: {outcome.reason}")
