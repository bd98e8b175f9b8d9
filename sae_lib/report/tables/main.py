"""Tables of the methods.

Each builder takes the rows of results/evaluation.parquet (or another table that it names) and returns a `Table`.
Absorption never stands alone: L0, explained variance and CE score are columns of every table that shows it, and the
letters and words it rests on. Rows are ranked only at matched L0: a row that is off carries a dagger.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sae_lib.profiles.profile import Profile
from sae_lib.report.names import MAIN_METHODS, METRICS, RARE_LETTERS, in_order, method_name
from sae_lib.report.results import rows_of
from sae_lib.report.statistics import CONFIDENCE, by_seed, difference, holm, p_value, pair_values, t_interval
from sae_lib.report.tables.write import (
    ARROW_NOTE,
    MATCHED_NOTE,
    UNRANKED_NOTE,
    Table,
    cell,
    effect_cell,
    marked,
    pair_cell,
    record,
    seeds_note,
    split,
    table_of,
)

MAIN_COLUMNS = (
    "l0", "explained_variance", "cosine", "ce_score", "absorption_fraction", "absorption_full", "letters", "words",
    "probing_k1", "context_firing",
)  # fmt: skip
QUALITY_COLUMNS = (
    "l0", "l1", "explained_variance", "cosine", "mse", "ce_score", "kl_score", "dead_fraction", "num_split_features",
)  # fmt: skip
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


def profile_note(profile: Profile) -> str:
    """Where the numbers of a table or figure come from, in one line. Which seeds they are of, a caption says."""
    training, data = profile.training, profile.data
    return (
        f"Profile {profile.name}: {profile.model.name}, layer {profile.model.layer}, "
        f"{data.train_tokens / 1e6:.3g} M tokens, {training.steps} steps of {data.batch_tokens} tokens, "
        f"d_sae {training.d_sae}."
    )


def main_table(evaluation: pd.DataFrame) -> Table:
    """Every method at matched L0, and the untrained SAE as a floor."""
    caption = f"Methods at matched L0; mean ± sd over seeds. {ARROW_NOTE}. {MATCHED_NOTE}."
    return marked(table_of("method", _methods(evaluation), MAIN_COLUMNS, caption))


def quality_table(evaluation: pd.DataFrame) -> Table:
    """Reconstruction, behaviour and use of the dictionary, of the SAEs of the main table."""
    caption = f"Reconstruction and behaviour at matched L0; mean ± sd over seeds. {ARROW_NOTE}. {MATCHED_NOTE}."
    return marked(table_of("method", _methods(evaluation), QUALITY_COLUMNS, caption))


def probing_table(evaluation: pd.DataFrame) -> Table:
    """Sparse probing of the SAEs of the main table, beside the probe of the whole residual stream and chance."""
    caption = (
        "Sparse probing at matched L0: test accuracy with the k best latents, mean over tasks within each dataset, "
        f"then over datasets; mean ± sd over seeds. {ARROW_NOTE}. {MATCHED_NOTE}."
    )
    return marked(table_of("method", _methods(evaluation), PROBING_COLUMNS, caption))


def stability_table(evaluation: pd.DataFrame, seed_stability: pd.DataFrame) -> Table:
    """Stability of the SAEs of the main table: across seeds (pairs), across contexts and along tokens."""
    caption = (
        "Stability at matched L0. Seeds: cosine of decoder rows matched one to one between two seeds, share of them "
        "above 0.7, mean [95 % jackknife interval over seeds]. Contexts: share of a word's contexts in which its "
        "letter's latent fires. Tokens: change per active latent from token to token and autocorrelation of a latent, "
        f"each with shuffled tokens as control. Mean ± sd over seeds. {ARROW_NOTE}. {MATCHED_NOTE}."
    )
    parts = _methods(evaluation)
    table = marked(table_of("method", parts, STABILITY_COLUMNS, caption))
    of_main = seed_stability[seed_stability["group"] == "main"]
    shown, data = table.shown, [table.data]
    for column in (c for c in PAIR_COLUMNS if c in of_main):
        intervals = [t_interval(pair_values(of_main[of_main["method"] == _method(p)], column)) for p in parts.values()]
        cells = [pair_cell(interval, METRICS[column].decimals) for interval in intervals]
        shown = shown.assign(**{METRICS[column].header: cells})
        data.append(pd.DataFrame([record(n, column, i) for n, i in zip(parts, intervals, strict=True)]))
    return Table(shown, pd.concat(data, ignore_index=True), table.caption)


def difference_table(evaluation: pd.DataFrame, baseline: str = "standard") -> Table:
    """Every method of the main table minus `baseline`, seed by seed, with paired t tests and Holm's correction."""
    parts = _methods(evaluation, floor=False)
    others = {name: part for name, part in parts.items() if _method(part) != baseline}
    ours = parts.get(method_name(baseline))
    shown: dict[str, dict[str, str]] = {name: {} for name in others}
    data = []
    for column in (c for c in DIFFERENCE_COLUMNS if c in evaluation and ours is not None):
        gaps = {name: difference(by_seed(part, column), by_seed(ours, column)) for name, part in others.items()}
        adjusted = holm(p_value(gap) for gap in gaps.values())
        for (name, gap), p in zip(gaps.items(), adjusted, strict=True):
            star = " *" if p < 1 - CONFIDENCE and column != "l0" else ""
            shown[name][METRICS[column].header] = effect_cell(gap, METRICS[column].decimals) + star
            data.append(record(name, column, gap) | {"p": p_value(gap), "p_holm": p})
    caption = (
        f"Each method minus {method_name(baseline)} at matched L0, seed by seed: mean [95 % t interval over seeds]. * "
        f"p < 0.05, paired t test, after Holm's correction over the column. {ARROW_NOTE}. Where L0 differs too, part "
        f"of a difference may be sparsity's. {seeds_note(parts.values())}"
    )
    frame = pd.DataFrame([{"method": name, **line} for name, line in shown.items()]).fillna("–")
    return Table(frame, pd.DataFrame(data), caption)


def as_written_table(evaluation: pd.DataFrame) -> Table:
    """The papers' own coefficients, whatever they lead to."""
    rows = rows_of(evaluation, "as_written")
    named = {_written_name(part): part for _, part in split(rows, "method")}
    caption = f"The papers' coefficients as written; mean ± sd over seeds. {ARROW_NOTE}. {UNRANKED_NOTE}."
    return table_of("method", named, WRITTEN_COLUMNS, caption)


def letters_table(letters: pd.DataFrame, probe: pd.DataFrame | None = None) -> Table:
    """Absorption (fraction) of each letter and method at matched L0, with the number of evaluated words.

    Below the letters stand the rare ones together and all together, each letter counting once. A rare letter that is
    not scored, since the ground-truth probe does not find it, has a row too. Empty where no letter passed the probe's
    gate: the language model does not spell.

    Args:
        probe: `show.probe_letters`, for the test words and F1 of rare letters that are not scored.
    """
    main = letters[letters["group"] == "main"]
    scored = sorted({*main["letter"]})
    tested = probe.set_index("letter") if probe is not None else pd.DataFrame(columns=["test_words", "probe_f1"])
    sets = {letter: main[main["letter"] == letter] for letter in sorted({*scored, *(RARE_LETTERS if scored else ())})}
    if scored:
        sets[f"{', '.join(RARE_LETTERS)} together"] = main[main["letter"].isin(RARE_LETTERS)]
        sets["all"] = main
    data, shown = [], []
    for name, part in sets.items():
        counts = part.groupby("letter")[["true_positives", "probe_f1"]].mean()
        words, f1 = counts["true_positives"].sum(), counts["probe_f1"].mean()
        if part.empty and name in tested.index:
            words, f1 = tested.loc[name, ["test_words", "probe_f1"]]
        note = f" ({f1:.2f})" if np.isfinite(f1) else ""
        line = {"letter": name, "words (probe F1)": f"{words:.0f}{note}"}
        for method, of_method in split(part, "method"):
            interval = t_interval(by_seed(of_method, "absorption_fraction"))
            line[method_name(method)] = cell(interval, 3)
            data.append(record(f"{name}: {method_name(method)}", "absorption_fraction", interval) | {"words": words})
        shown.append(line)
    caption = (
        "Absorption (fraction, ↓ lower is better) per letter at matched L0; mean ± sd over seeds; with the words that "
        "a score rests on and the F1 of the letter's probe. – not scored: the probe does not find the letter. "
        f"{seeds_note(part for _, part in split(main, 'method'))}"
    ).strip()
    columns = ["letter", "words (probe F1)", *(method_name(m) for m in in_order([*main["method"]]))]
    return Table(pd.DataFrame(shown, columns=columns).fillna("–"), pd.DataFrame(data), caption)


def _methods(evaluation: pd.DataFrame, floor: bool = True) -> dict[str, pd.DataFrame]:
    """Name -> rows of each method at matched L0, then of the untrained SAEs."""
    rows = rows_of(evaluation, "main", "untrained")
    main = rows[rows["group"] == "main"]
    named = {method_name(m): main[main["method"] == m] for m in in_order([*main["method"]]) if m in MAIN_METHODS}
    bottom = rows[(rows["group"] == "untrained") & floor]
    for method in in_order([*bottom["method"]]):
        label = "Untrained" if method == "untrained" else f"Untrained ({method_name(method)})"
        named[label] = bottom[bottom["method"] == method]
    return named


def _method(part: pd.DataFrame) -> str:
    return str(part["method"].iloc[0])


def _written_name(part: pd.DataFrame) -> str:
    """A method's name with the sparsity it was given."""
    method = str(part["method"].iloc[0])
    for column, symbol in (("k", "k"), ("target_l0", "target L0"), ("l1_coefficient", "λ1")):
        value = part[column].iloc[0] if column in part else np.nan
        if pd.notna(value) and value > 0:
            return f"{method_name(method)}, {symbol} = {value:g}"
    return method_name(method)
