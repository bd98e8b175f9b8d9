"""Whether a measure tells trained SAEs from controls on these results, as the rows have it: one on which something
untrained does as well decides nothing about methods. Absorption beside the score of nothing, and what a study asks of
some SAEs beside their scores, as a rule beside SAEs that have learned nothing."""

from collections.abc import Sequence

import pandas as pd

from sae_lib.mechanisms import methods
from sae_lib.metrics.registry import Column
from sae_lib.report.names import MAIN_METHODS, METRICS, method_name
from sae_lib.report.results import BESIDE, Results, by_method, main_rows, rows_of
from sae_lib.report.statistics import ROUNDING, Interval, difference, guarded
from sae_lib.report.tables.rows import ARROW_NOTE, Lines, Table, intervals, left_out, table_of

UNTRAINED = "untrained"
MARK = "‡"
MARK_NOTE = f"{MARK} does not tell trained SAEs from untrained ones here: some method is no better than they are"
# Share of what a control leaves to be gained, up to 1 or down to 0, that a method has to gain: a cosine that is higher
# in the third digit is above the control's at any spread, and no merit of training.
LEAST_GAIN = 0.1
MEASURES = (
    "explained_variance", "cosine", "ce_score", "ce_score_mean", "kl_score", "kl_sae", "dead_fraction",
    "absorption_fraction", "absorption_full", "main_latent_f1", "probing_k1", "probing_k5", "matched_cosine",
    "context_firing",
)  # fmt: skip
ABOVE_NULL = {
    "fraction_above_random": ("absorption_fraction", "absorption_fraction_random"),
    "fraction_below_shuffled": ("absorption_fraction_null", "absorption_fraction"),
    "full_above_random": ("absorption_full", "absorption_full_random"),
    "full_below_shuffled": ("absorption_full_null", "absorption_full"),
}
# Column -> its name, or "" for the usual one.
NULL_COLUMNS = {
    "l0": "", "explained_variance": "",
    "absorption_fraction": "", "absorption_fraction_random": "random directions",
    "fraction_above_random": "above random", "absorption_fraction_null": "shuffled letters",
    "fraction_below_shuffled": "below shuffled",
    "absorption_full": "", "absorption_full_random": "full, random directions",
    "full_above_random": "full, above random", "absorption_full_null": "full, shuffled letters",
    "full_below_shuffled": "full, below shuffled",
    "main_latent_f1": "", "main_latent_f1_null": "F1, shuffled letters",
}  # fmt: skip
NULL_METRICS = {name: Column(label, "none", 3) if label else METRICS[name] for name, label in NULL_COLUMNS.items()}

CARRIER_METRICS: dict[str, Column] = {
    "words": Column("words", "none", 0),
    "carried": Column("carried", "none", 2),
    "named": Column("logit lost: these latents", "none", 3),
    "random": Column("another that is on", "none", 3),
    "direction": Column("the probe's direction", "none", 3),
}
ENDING_METRICS: dict[str, Column] = {
    "absorption_full": Column("endings, full", "lower", 3),
    "absorption_full_random": Column("random directions", "none", 3),
    "absorption_full_null": Column("shuffled endings", "none", 3),
    "main_latent_f1": Column("endings, main latent F1", "higher", 3),
    "absorption_fraction": Column("endings, fraction", "lower", 3),
    "letters_full": Column("first letters, full", "lower", 3),
}
SHOWN_N = (2, 10, 50, 500)  # latents that are ablated
PERTURBATION_METRICS = {
    f"{metric}_{n}": Column(f"{metric.upper()}, N = {n}", "higher", 3) for metric in ("tpp", "scr") for n in SHOWN_N
}
INTERPRETED = ("interpretation_surprisal", "interpretation_embedding", "interpretation_latents")


def group_of(method: str) -> str:
    """The group of a method of the main table, or of a control."""
    return UNTRAINED if method == UNTRAINED else "control" if method in methods("control") else "main"


def above(results: Results, metric: str, method: str, control: str) -> Interval:
    """How much better a method of the main table is than a control, seed by seed: positive is better."""
    gap = difference(results.seeds("main", method, metric), results.seeds(group_of(control), control, metric))
    if METRICS[metric].direction == "higher":
        return gap
    return Interval(-gap.mean, gap.sd, gap.n, -gap.high, -gap.low)


def no_better(results: Results, metric: str, control: str = UNTRAINED) -> tuple[str, ...]:
    """The methods of the main table that are not above `control`, by `LEAST_GAIN` and with another processor's rounding
    allowed for. None where fewer than two seeds have both, or where neither direction of the metric is better. The
    soft-frozen SAE is held against TopK alone, which differs from it in the decoder only."""
    if METRICS[metric].direction == "none":
        return ()
    compared = ("topk",) if control == "soft_frozen" else MAIN_METHODS
    floor = float(results.seeds(group_of(control), control, metric).mean())
    least = LEAST_GAIN * ((1 - floor) if METRICS[metric].direction == "higher" else floor)
    rounding = 2**0.5 * ROUNDING.get(metric, 0.0)
    gaps = {method: guarded(above(results, metric, method, control), rounding) for method in compared}
    return tuple(method for method, gap in gaps.items() if gap.n > 1 and not (gap.low > 0 and gap.mean > least))


def method_table(evaluation: pd.DataFrame, columns: Sequence[str], caption: str) -> Table:
    """One row per method of the main table, and the controls; measures that tell nothing are marked."""
    table, results = table_of("method", main_rows(evaluation), columns, caption), Results(evaluation)
    mute = {METRICS[m].header: f"{METRICS[m].header} {MARK}" for m in columns if no_better(results, m)}
    note = f" {MARK_NOTE}." if mute else ""
    return table._replace(shown=table.shown.rename(columns=mute), caption=f"{table.caption}{note}")


def controls_table(evaluation: pd.DataFrame, seed_stability: pd.DataFrame) -> Table:
    """For each measure and each control the methods that are no better than the control."""
    results = Results(evaluation=evaluation, seed_stability=seed_stability)
    present = [c for c in methods("control") if len(results.seeds(group_of(c), c, "l0"))]
    lines, data = [], []
    for metric in MEASURES:
        line = {"measure": METRICS[metric].header}
        for control in present:
            gaps = {method: above(results, metric, method, control) for method in MAIN_METHODS}
            alike, known = no_better(results, metric, control), sum(gap.n > 1 for gap in gaps.values())
            names = ", ".join(map(method_name, alike)) or "none"
            line[method_name(control)] = "–" if not known else "every method" if len(alike) == known else names
            keys = {"measure": metric, "control": control}
            data += [keys | {"method": method, **gap._asdict()} for method, gap in gaps.items()]
        lines.append(line)
    caption = (
        "Which methods are no better than a control by a measure, at matched L0: the 95 % interval of the difference "
        "over seeds is not on the better side, or the gain is below a tenth of what the control leaves. "
        "A measure decides between methods only where the answer is none. The "
        f"soft-frozen decoder is held against TopK alone. {ARROW_NOTE}.{left_out(evaluation, MEASURES)}"
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption)


def null_table(evaluation: pd.DataFrame) -> Table:
    """Absorption beside the absorption score of nothing, and how well the main latents find their letters."""
    known = {name: pd.to_numeric(evaluation[name]) for name in NULL_METRICS if name in evaluation}
    gaps = {name: known[a] - known[b] for name, (a, b) in ABOVE_NULL.items() if a in known and b in known}
    caption = (
        "Absorption beside the score of nothing, at matched L0. random directions: with random unit vectors for the "
        "letters' directions; shuffled letters: with main latents chosen for letters that were dealt out anew, what an "
        "SAE gets whose latents know no letter. Main latent F1: how well a letter's best latent finds its words. "
        "Mean ± sd over seeds"
    )
    return table_of("method", main_rows(evaluation.assign(**gaps)), NULL_METRICS, caption)


def carriers_table(carriers: pd.DataFrame) -> Table:
    """Whether latents carry letters: of words that are absorbed (*full*), and that a main latent finds."""
    rows = rows_of(carriers, *BESIDE, otherwise="carriers: no rows; make study tests which latents carry letters")
    lines = Lines(CARRIER_METRICS)
    for method, of_method in by_method(rows).items():
        for kind, part in of_method.groupby("kind"):
            keys = {"method": method_name(method), "latents": str(kind)}
            lines.add(keys, method_name(method), intervals(part, CARRIER_METRICS), kind=kind)
    caption = (
        "Whether latents carry letters to the model's answer; mean ± sd over seeds. absorbed: the latent by which a "
        "word counts as absorbed (full); found: the main latents of a word on which they fire. Logit lost: how much "
        "the logit of the word's letter, less the mean of all letters', falls where the residual stream at the word "
        "loses what those latents write; what another latent writes that is on there; all that the probe reads. "
        "carried: words in which these latents cost more than the other one; 0.5 where nothing is carried"
    )
    return lines.table(caption, [rows])


def endings_table(endings: pd.DataFrame, evaluation: pd.DataFrame) -> Table:
    """Absorption of word endings, mean over endings, beside that of first letters by the same SAEs."""
    missing = "endings: no rows; make study measures the absorption of word endings"
    rows, lines = rows_of(endings[endings["ending"] == "all"], *BESIDE, otherwise=missing), Lines(ENDING_METRICS)
    letters = evaluation.drop_duplicates("run").set_index("run").reindex(columns=["absorption_full"]).squeeze(axis=1)
    rows = rows.assign(letters_full=rows["run"].map(letters))
    for method, part in by_method(rows).items():
        lines.add({"method": method_name(method)}, method_name(method), intervals(part, ENDING_METRICS))
    named = endings.loc[endings["ending"] != "all"].groupby("ending", sort=False)["words"].max()
    counts = ", ".join(f"{ending} ({int(words)})" for ending, words in named.items())
    caption = (
        "Absorption by the same rules where the general feature is how a word ends and not its first letter; mean ± sd "
        f"over seeds. Endings that the probe finds, with their words: {counts}. random directions, shuffled endings: "
        "the score of nothing"
    )
    return lines.table(caption, [rows], ARROW_NOTE)


def perturbation_table(perturbation: pd.DataFrame) -> Table:
    """Targeted probe perturbation and spurious correlation removal, for some numbers of latents."""
    rows = rows_of(perturbation, *BESIDE, otherwise="perturbation: no rows; make study ablates what probes read")
    lines = Lines(PERTURBATION_METRICS)
    for method, of_method in by_method(rows).items():
        wide = of_method.pivot(index="seed", columns="n", values=["tpp", "scr"])
        wide.columns = [f"{metric}_{n}" for metric, n in wide.columns]
        found = intervals(wide.reset_index(), [column for column in PERTURBATION_METRICS if column in wide])
        lines.add({"method": method_name(method)}, method_name(method), found)
    caption = (
        "Targeted probe perturbation (TPP: the accuracy that a probe loses without the N latents of the largest effect "
        "on it, less what other classes' probes lose) and spurious correlation removal (SCR: the share of a biased "
        "probe's lost accuracy that comes back without the other attribute's N latents), by SAEBench's algorithms; "
        "mean ± sd over seeds. They rank nothing here: where features are known TPP falls while SAEs learn, and SCR "
        "goes against the truth for large N (2605.18229); compare trained SAEs with the untrained"
    )
    return lines.table(caption, [rows])


def interpretation_table(interpretation: pd.DataFrame) -> Table:
    """Automatic interpretation by the judges that need no other model."""
    rows = rows_of(interpretation, *BESIDE, otherwise="interpretation: no rows; make study interprets latents")
    caption = (
        "How well latents can be told from five examples of where they fire, on windows half of which have them: areas "
        "under the ROC curve, 0.5 by chance. Surprisal: what the language model gains by reading the examples first; "
        "embedding: how alike residual streams are to those of the examples (2410.13928). Latents: how many a mean is "
        "taken of. Mean ± sd over seeds"
    )
    return table_of("method", by_method(rows), INTERPRETED, caption, "compare trained SAEs with the untrained")
