"""Tables of the methods. Absorption never stands alone: L0, explained variance and CE score are columns of every table
that shows it. Rows are ranked only at matched L0: a row that is off carries a dagger."""

import pandas as pd

from sae_lib.mechanisms import methods
from sae_lib.metrics.registry import Column
from sae_lib.profiles.profile import Profile
from sae_lib.report.names import BASELINE, METRICS, method_name
from sae_lib.report.results import Results, by_method, main_rows, rows_of
from sae_lib.report.statistics import CONFIDENCE, difference, holm, p_value, seeds_of, t_interval
from sae_lib.report.tables.controls import method_table
from sae_lib.report.tables.rows import (
    ARROW_NOTE,
    UNRANKED,
    Table,
    gap_cell,
    left_out,
    measurable,
    range_cell,
    record,
    seeds_note,
    table_of,
)

MAIN_COLUMNS = (
    "l0", "explained_variance", "cosine", "ce_score", "absorption_fraction", "absorption_full", "letters", "words",
    "probing_k1", "context_firing",
)  # fmt: skip
HEADLINE_COLUMNS = ("l0", "explained_variance", "ce_score", "absorption_fraction", "absorption_full", "probing_k1")
PROBING_COLUMNS = (
    "l0", "explained_variance", "probing_k1", "probing_k2", "probing_k5", "probing_all", "probing_chance",
)  # fmt: skip
STABILITY_COLUMNS = (
    "l0", "explained_variance", "context_firing", "context_words", "token_change", "token_change_shuffled",
    "token_autocorrelation", "token_autocorrelation_shuffled",
)  # fmt: skip
PAIR_COLUMNS = ("matched_cosine", "share_matched")
WRITTEN_COLUMNS = (
    "l0", "explained_variance", "cosine", "mse", "ce_score", "absorption_fraction", "absorption_full", "letters",
    "words", "final_loss",
)  # fmt: skip
# What the differences against Standard are taken of.
DIFFERENCE_COLUMNS = (
    "l0", "explained_variance", "ce_score", "absorption_fraction", "probing_k1", "probing_k5", "context_firing",
    "token_change",
)  # fmt: skip
# Column -> how it is shown where contexts are all there is. `_random`: latents of equal density that are no letter's;
# `_probe`: the ground-truth probe, the ceiling; `_text`: in running text instead of prompts.
CONTEXT_METRICS: dict[str, Column] = {
    "l0": METRICS["l0"],
    "context_words": Column("words", "none", 0),
    "context_firing": Column("fires", "higher", 3),
    "context_firing_any": Column("any main latent", "higher", 3),
    "context_firing_random": Column("equal density", "none", 3),
    "context_probe": Column("probe", "none", 3),
    "context_repeat": Column("again", "higher", 3),
    "context_repeat_random": Column("again, equal density", "none", 3),
}
_TEXT = ("context_words", "context_firing", "context_firing_random", "context_probe")
CONTEXT_METRICS |= {
    f"{name}_text": CONTEXT_METRICS[name]._replace(label=f"text: {CONTEXT_METRICS[name].label}") for name in _TEXT
}
AT_MATCHED_L0 = "Methods at matched L0; mean ± sd over seeds"


def profile_note(profile: Profile) -> str:
    """Where the numbers of a table or figure come from, in one line. Which seeds they are of, a caption says."""
    training, data = profile.training, profile.data
    return (
        f"Profile {profile.name}: {profile.model.name}, layer {profile.model.layer}, "
        f"{data.train_tokens / 1e6:.3g} M tokens, {training.steps} steps of {data.batch_tokens} tokens, "
        f"d_sae {training.d_sae}."
    )


def main_table(evaluation: pd.DataFrame) -> Table:
    """Every method at matched L0, and the controls."""
    return method_table(evaluation, MAIN_COLUMNS, AT_MATCHED_L0)


def headline_table(evaluation: pd.DataFrame) -> Table:
    """The main table in few columns, without the rest of the field, for README."""
    return method_table(evaluation[~evaluation["method"].isin(methods("field"))], HEADLINE_COLUMNS, AT_MATCHED_L0)


def quality_table(evaluation: pd.DataFrame) -> Table:
    """Reconstruction, behaviour and use of the dictionary, of the SAEs of the main table."""
    columns = [name for name, column in METRICS.items() if column.quality]
    return method_table(evaluation, columns, "Reconstruction and behaviour at matched L0; mean ± sd over seeds")


def probing_table(evaluation: pd.DataFrame) -> Table:
    """Sparse probing of the SAEs of the main table, beside the probe of the whole residual stream and chance."""
    caption = (
        "Sparse probing at matched L0: test accuracy with the k best latents, mean over tasks within each dataset, "
        "then over datasets; mean ± sd over seeds"
    )
    return method_table(evaluation, PROBING_COLUMNS, caption)


def stability_table(evaluation: pd.DataFrame, seed_stability: pd.DataFrame) -> Table:
    """Stability of the SAEs of the main table: across seeds (pairs), across contexts and along tokens."""
    caption = (
        "Stability at matched L0. Seeds: cosine of decoder rows matched one to one between two seeds, share of them "
        "above 0.7, mean [95 % jackknife interval over seeds]. Contexts: share of a word's contexts in which its "
        "letter's latent fires. Tokens: change per active latent from token to token and autocorrelation of a latent, "
        "each with shuffled tokens as control. Mean ± sd over seeds"
    )
    table = method_table(evaluation, STABILITY_COLUMNS, caption)
    pairs = Results(seed_stability=seed_stability)
    for column in (c for c in PAIR_COLUMNS if c in seed_stability):
        found = {method_name(m): t_interval(pairs.seeds("main", m, column)) for m in main_rows(evaluation)}
        table = table.with_column(column, METRICS[column], found, range_cell)
    return table


def contexts_table(evaluation: pd.DataFrame) -> Table:
    """Stability across contexts in full: in prompts and in running text, with controls and ceilings."""
    caption = (
        "Stability across contexts. fires: share of a word's contexts in which its letter's first main latent fires, "
        "mean over words; any main latent: the same for any of the letter's; again: probability that it fires in "
        "another context of a word when it fires in one; equal density: latents that fire as often and are no "
        "letter's; probe: the ground-truth probe, the ceiling. Contexts are prompts with different examples, then the "
        "words' occurrences in held-out text. Mean ± sd over seeds"
    )
    table = table_of("method", main_rows(evaluation), CONTEXT_METRICS, caption, "")
    return table._replace(data=table.data[["row", "metric", "better", "mean", "sd", "n", "low", "high"]])


def difference_table(evaluation: pd.DataFrame) -> Table:
    """Every method of the main table minus Standard, seed by seed, with paired t tests and Holm's correction."""
    parts = main_rows(rows_of(evaluation, "main"))
    names = {method: method_name(method) for method in parts if method != BASELINE}
    shown, data = pd.DataFrame({"method": names.values()}), []
    for column in measurable(evaluation, DIFFERENCE_COLUMNS if BASELINE in parts else ()):
        if column not in evaluation:
            continue
        standard = seeds_of(parts[BASELINE], column)
        gaps = [difference(seeds_of(parts[method], column), standard) for method in names]
        adjusted, cells = holm(map(p_value, gaps)), []
        for name, gap, p in zip(names.values(), gaps, adjusted, strict=True):
            star = " *" if p < 1 - CONFIDENCE and column != "l0" else ""
            cells.append(gap_cell(gap, METRICS[column].decimals) + star)
            data.append(record(name, column, gap, METRICS[column]) | {"p": p_value(gap), "p_holm": p})
        shown[METRICS[column].header] = cells
    caption = (
        f"Each method minus {method_name(BASELINE)} at matched L0, seed by seed: mean [95 % t interval over seeds]. * "
        f"p < 0.05, paired t test, after Holm's correction over the column. {ARROW_NOTE}. Where L0 differs too, part "
        f"of a difference may be sparsity's. {seeds_note(parts.values())}{left_out(evaluation, DIFFERENCE_COLUMNS)}"
    )
    return Table(shown, pd.DataFrame(data), caption)


def as_written_table(evaluation: pd.DataFrame) -> Table:
    """The papers' own coefficients, whatever they lead to; a method's name comes with the sparsity it was given."""
    named, symbols = {}, {"k": "k", "target_l0": "target L0", "l1_coefficient": "λ1"}
    for method, part in by_method(rows_of(evaluation, "as_written")).items():
        first = part.iloc[0]
        given = [f", {symbol} = {first[c]:g}" for c, symbol in symbols.items() if first.get(c, 0) > 0]  # NaN is not
        named["".join([method_name(method), *given[:1]])] = part
    caption = "The papers' coefficients as written; mean ± sd over seeds"
    return table_of("method", named, WRITTEN_COLUMNS, caption, UNRANKED)
