"""Tables of the ablations: TemporalSAE's mechanisms and values, ATM's importance, c and r.

Each builder takes the rows of results/evaluation.parquet and returns a `Table`. Absorption never stands alone: L0,
explained variance and CE score are columns of every table that shows it, and the letters and words it rests on.
"""

from __future__ import annotations

import pandas as pd

from sae_lib.mechanisms.resampling import ResamplingConfig
from sae_lib.mechanisms.temporal_penalty import TemporalConfig
from sae_lib.profiles.runs import FAIR, VARIED, WARM_UP
from sae_lib.report.names import MECHANISMS, NOT_MEASURABLE, method_name
from sae_lib.report.results import DROPPED, drop_effect, rows_of, why_empty
from sae_lib.report.statistics import difference, main_effects, seeds_of
from sae_lib.report.tables.rows import (
    ARROW_NOTE,
    FIRST_ROW_NOTE,
    UNRANKED_NOTE,
    Table,
    left_out,
    marked,
    seeds_note,
    table_of,
    with_effects,
)

IDLE = "‡"
SHORT_COLUMNS = (
    "l0", "explained_variance", "ce_score", "absorption_fraction", "absorption_full", "letters", "words",
    "dead_fraction",
)  # fmt: skip
# The same for every row: how many letters and words stand behind an absorption score.
COUNTS = ("letters", "words")


# The paper's own runs (column `paper_run`) -> the name of the row.
PAPER_RUNS = {
    "run_1": "Run 1: temporal penalty",
    "run_2": "Run 2: lower clip norm and coefficient",
    "run_3": "Run 3: + resampling",
    "run_4": "Run 4: + gradient scaling",
}


def factorial_table(evaluation: pd.DataFrame) -> Table:
    """The 2x2x2 factorial of TemporalSAE's mechanisms, then the main effect of each with its 95 % t interval."""
    rows = rows_of(evaluation, "factorial")
    named = {}
    for cell, part in rows.groupby(list(MECHANISMS), sort=True):
        present = [name for name, on in zip(MECHANISMS.values(), cell, strict=True) if on]
        named[" + ".join(present) or "none"] = part
    caption = (
        "TemporalSAE's mechanisms, every combination: mean ± sd over seeds; below, the main effect of each "
        f"mechanism [95 % t interval over seeds]. {ARROW_NOTE}. {FIRST_ROW_NOTE}."
    )
    cells = marked(table_of("mechanisms", named, SHORT_COLUMNS, caption), against_first=True)
    effects = {column: main_effects(rows, column, MECHANISMS) for column in _with_effects(rows)}
    return with_effects(
        cells,
        {f"effect of {name}": {c: effect[f] for c, effect in effects.items()} for f, name in MECHANISMS.items()},
    )


def sequence_table(evaluation: pd.DataFrame) -> Table:
    """The paper's own sequence of runs, each adding a part to the one before."""
    rows = rows_of(evaluation, "sequence")
    named = {name: rows[rows["paper_run"] == run] for run, name in PAPER_RUNS.items() if run in set(rows["paper_run"])}
    caption = f"TemporalSAE's four runs, section 6.2; mean ± sd over seeds. {ARROW_NOTE}. {UNRANKED_NOTE}."
    columns = [column for column in SHORT_COLUMNS if column != "dead_fraction"]
    return table_of("run", named, (*columns, "num_split_features", "final_loss"), caption)


# Table 1 of the paper, which names no number of seeds and no width; shown as rows of their own.
PUBLISHED = {
    "published: baseline": {"l0": 8311.29, "cosine": 0.996, "absorption_full": 0.009},
    "published: TemporalSAE": {"l0": 1950.00, "cosine": 0.568, "absorption_full": 0.313},
}
COLLAPSE_COLUMNS = ("l0", "explained_variance", "cosine", "absorption_full", "absorption_fraction", "main_latent_f1")


def collapse_table(evaluation: pd.DataFrame) -> Table:
    """Where the paper's table comes from: each mechanism alone with the paper's coefficients, resampling made milder,
    and dense SAEs that fail for other reasons, below what was published."""
    rows = rows_of(evaluation, "collapse")
    written = evaluation[evaluation["group"] == "as_written"]
    measured = {column for column in COLLAPSE_COLUMNS if not why_empty(rows, column)}
    common = {"seed": 0} | ({"letters": rows["letters"].max()} if "letters" in rows else {})
    named = {
        name: pd.DataFrame([common | {column: values[column] for column in values.keys() & measured}])
        for name, values in PUBLISHED.items()
    }
    named |= {
        f"{name}, as written": written[written["method"] == method]
        for name, method in (("baseline", "paper_standard"), ("TemporalSAE", "temporal_sae"))
    }
    named |= {str(label): part for label, part in rows.groupby("label", sort=False)}
    caption = (
        "Where the published table comes from: TemporalSAE's mechanisms one at a time with its own coefficients, and "
        f"other dense SAEs that fail; mean ± sd over seeds. {ARROW_NOTE}. {UNRANKED_NOTE}."
    )
    table = table_of("SAE", {name: part for name, part in named.items() if len(part)}, COLLAPSE_COLUMNS, caption)
    shown = table.shown.assign(seeds=table.shown["seeds"].where(~table.shown["SAE"].isin(PUBLISHED), "–"))
    kept = table.data[~table.data["row"].isin(PUBLISHED) | table.data["n"].gt(0)]
    lacking = [column for column in COLLAPSE_COLUMNS if why_empty(rows, column) == NOT_MEASURABLE]
    seeds = seeds_note(part for name, part in named.items() if name not in PUBLISHED)
    return Table(shown, kept, f"{caption}{left_out(lacking)} {seeds}")


def sensitivity_table(evaluation: pd.DataFrame, history: pd.DataFrame) -> Table:
    """TemporalSAE at other values of the two numbers that the paper calls sensitive, and without any warm-up.

    Args:
        history: results/history.parquet: rows are marked in which no latent was resampled.
    """
    rows = rows_of(evaluation, "sensitivity")
    published = {
        "temporal_coefficient": TemporalConfig().coefficient, "resampling_threshold": ResamplingConfig().threshold,
    }  # fmt: skip
    order = rows.assign(place=rows["varied"].map(list(VARIED).index)).sort_values(["place", *published], kind="stable")
    named = {}
    for label, part in order.groupby("label", sort=False):
        first = part.iloc[0]
        as_published = first["varied"] != WARM_UP and all(first[column] == value for column, value in published.items())
        name = f"{label} (published)" if as_published else str(label)
        if _never_resampled(part, history):
            name += f" {IDLE}"
        named[name] = part
    caption = f"TemporalSAE with one value changed; mean ± sd over seeds. {ARROW_NOTE}. {FIRST_ROW_NOTE}."
    if any(name.endswith(IDLE) for name in named):
        caption += f" {IDLE} no latent was resampled."
    return marked(table_of("changed", named, SHORT_COLUMNS, caption), against_first=True)


def _never_resampled(part: pd.DataFrame, history: pd.DataFrame) -> bool:
    """Whether resampling was on in these SAEs' training, and found no latent to resample."""
    counts = history[history["run"].isin(part["run"])].get("resampled", pd.Series(dtype=float)).dropna()
    return len(counts) > 0 and not counts.any()


def atm_table(evaluation: pd.DataFrame) -> Table:
    """ATM with one part of the importance dropped, and over the grid of c and r."""
    rows = rows_of(evaluation, "atm_importance", "atm_grid")
    parts = rows[rows["group"] == "atm_importance"]
    named = {name: parts[parts["dropped"] == part] for part, name in DROPPED.items()}
    named["product of the parts"] = parts[parts["importance"] == "product"]
    for (c, r), part in rows[rows["group"] == "atm_grid"].groupby(["c", "r"], sort=True):
        named[f"c = {c:g}, r = {r:g}"] = part
    named = {name: part for name, part in named.items() if len(part)}
    caption = f"ATM's importance score and its c and r; mean ± sd over seeds. {ARROW_NOTE}. {FIRST_ROW_NOTE}."
    table = marked(table_of("ATM", named, SHORT_COLUMNS, caption), against_first=True)
    whole = DROPPED["nothing"]
    effects = {
        f"{name} − {whole}": {column: drop_effect(parts, column, part) for column in _with_effects(rows)}
        for part, name in DROPPED.items()
        if name in named and whole in named and name != whole
    }
    return with_effects(table, effects)


FAIR_COLUMNS = (*SHORT_COLUMNS[:-1], "main_latent_f1")
TUNED, ITS_DROPOUT = "ATM, c and r chosen", "dropout of as much activation"


def atm_fair_table(evaluation: pd.DataFrame) -> Table:
    """ATM at the c and r that suit it, beside the dropout that takes away as much activation, plain L1, and ATM at
    c = r = 1; then the differences, seed by seed."""
    final = rows_of(evaluation, "atm_fair")
    rows = {method: final[final["method"] == method] for method in FAIR}
    main = evaluation[evaluation["group"] == "main"]
    beside = {method: main[main["method"] == method] for method in ("standard", "atm")}
    named = {
        TUNED: rows["atm"], ITS_DROPOUT: rows["dropout"], method_name("standard"): beside["standard"],
        "ATM, c = r = 1": beside["atm"],
    }  # fmt: skip
    chosen = rows["atm"].iloc[0]
    caption = (
        f"ATM with c = {chosen['c']:g} and r = {chosen['r']:g}, chosen on other seeds (the same words) as the cell of "
        f"the grid that absorbs least among those that keep explained variance; all at the target L0; mean ± sd over "
        f"seeds. Below, differences [95 % t interval]. {ARROW_NOTE}. {FIRST_ROW_NOTE}."
    )
    table = table_of("SAE", {name: part for name, part in named.items() if len(part)}, FAIR_COLUMNS, caption)
    shown = [c for c in FAIR_COLUMNS if c in final and c not in COUNTS and not why_empty(final, c)]
    effects = {
        f"{TUNED} − {name}": {c: difference(seeds_of(rows["atm"], c), seeds_of(named[name], c)) for c in shown}
        for name in (ITS_DROPOUT, method_name("standard"))
        if len(named[name])
    }
    return with_effects(marked(table, against_first=True), effects)


def _with_effects(rows: pd.DataFrame) -> list[str]:
    return [c for c in SHORT_COLUMNS if c in rows and c not in COUNTS and not why_empty(rows, c)]
