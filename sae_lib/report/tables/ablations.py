"""Tables of the ablations: TemporalSAE's mechanisms and values, ATM's importance, c and r."""

from functools import partial

import pandas as pd

from sae_lib.mechanisms.resampling import ResamplingConfig
from sae_lib.mechanisms.temporal_penalty import TemporalConfig
from sae_lib.profiles.runs import FAIR, VARIED, WARM_UP
from sae_lib.report.names import MECHANISMS, method_name
from sae_lib.report.results import DROPPED, drop_effect, main_effect, rows_of, select, why_empty
from sae_lib.report.statistics import difference, seeds_of, t_interval
from sae_lib.report.tables.rows import UNRANKED, VARIANTS, Lines, Table, table_of

IDLE = "‡"
SHORT_COLUMNS = (
    "l0", "explained_variance", "ce_score", "absorption_fraction", "absorption_full", "letters", "words",
    "dead_fraction",
)  # fmt: skip
SEQUENCE_COLUMNS = (*SHORT_COLUMNS[:-1], "num_split_features", "final_loss")
COLLAPSE_COLUMNS = ("l0", "explained_variance", "cosine", "absorption_full", "absorption_fraction", "main_latent_f1")
FAIR_COLUMNS = (*SHORT_COLUMNS[:-1], "main_latent_f1")

# The paper's own runs (column `paper_run`) -> the name of the row.
PAPER_RUNS = {
    "run_1": "Run 1: temporal penalty",
    "run_2": "Run 2: lower clip norm and coefficient",
    "run_3": "Run 3: + resampling",
    "run_4": "Run 4: + gradient scaling",
}
# Table 1 of the paper, which names no number of seeds and no width; shown as rows of their own.
PUBLISHED = {
    "published: baseline": {"l0": 8311.29, "cosine": 0.996, "absorption_full": 0.009},
    "published: TemporalSAE": {"l0": 1950.00, "cosine": 0.568, "absorption_full": 0.313},
}
TUNED, ITS_DROPOUT = "ATM, c and r chosen", "dropout of as much activation"


def factorial_table(evaluation: pd.DataFrame) -> Table:
    """The 2x2x2 factorial of TemporalSAE's mechanisms, then the main effect of each with its 95 % t interval."""
    rows = rows_of(evaluation, "factorial")
    named = {
        " + ".join(name for name, is_on in zip(MECHANISMS.values(), on, strict=True) if is_on) or "none": part
        for on, part in rows.groupby(list(MECHANISMS), sort=True)
    }
    caption = (
        "TemporalSAE's mechanisms, every combination: mean ± sd over seeds; below, the main effect of each "
        "mechanism [95 % t interval over seeds]"
    )
    effects = {f"effect of {name}": partial(main_effect, rows, factor=factor) for factor, name in MECHANISMS.items()}
    return table_of("mechanisms", named, SHORT_COLUMNS, caption, VARIANTS, effects=effects)


def sequence_table(evaluation: pd.DataFrame) -> Table:
    """The paper's own sequence of runs, each adding a part to the one before."""
    rows = rows_of(evaluation, "sequence")
    named = {name: rows[rows["paper_run"] == run] for run, name in PAPER_RUNS.items()}
    caption = "TemporalSAE's four runs, section 6.2; mean ± sd over seeds"
    return table_of("run", named, SEQUENCE_COLUMNS, caption, UNRANKED)


def collapse_table(evaluation: pd.DataFrame) -> Table:
    """Where the paper's table comes from: mechanisms one at a time, and other dense SAEs that fail."""
    rows = rows_of(evaluation, "collapse")
    named = {
        "baseline, as written": select(evaluation, "as_written", "paper_standard"),
        "TemporalSAE, as written": select(evaluation, "as_written", "temporal_sae"),
        **{str(label): part for label, part in rows.groupby("label", sort=False)},
    }
    caption = (
        "Where the published table comes from: TemporalSAE's mechanisms one at a time with its own coefficients, and "
        "other dense SAEs that fail; mean ± sd over seeds"
    )
    table, published = table_of("SAE", named, COLLAPSE_COLUMNS, caption, UNRANKED), Lines()
    for name, values in PUBLISHED.items():
        found = {c: t_interval([value]) for c, value in values.items() if not why_empty(rows, c)}
        published.add({"SAE": name}, name, found)
    above = published.table("", ())
    shown = pd.concat([above.shown.reindex(columns=table.shown.columns), table.shown], ignore_index=True).fillna("–")
    return table._replace(shown=shown, data=pd.concat([above.data, table.data], ignore_index=True))


def sensitivity_table(evaluation: pd.DataFrame, history: pd.DataFrame) -> Table:
    """TemporalSAE at other values, and without warm-up; marked where `history` has no latent resampled."""
    rows = rows_of(evaluation, "sensitivity")
    published = {
        "temporal_coefficient": TemporalConfig().coefficient, "resampling_threshold": ResamplingConfig().threshold,
    }  # fmt: skip
    order = rows.assign(place=rows["varied"].map(list(VARIED).index)).sort_values(["place", *published], kind="stable")
    named = {}
    for label, part in order.groupby("label", sort=False):
        first = part.iloc[0]
        as_published = first["varied"] != WARM_UP and all(first[column] == value for column, value in published.items())
        resampled = history[history["run"].isin(part["run"])].get("resampled", pd.Series(dtype=float)).dropna()
        idle = len(resampled) > 0 and not resampled.any()
        named[f"{label}{' (published)' * as_published}{f' {IDLE}' * idle}"] = part
    table = table_of(
        "changed", named, SHORT_COLUMNS, "TemporalSAE with one value changed; mean ± sd over seeds", VARIANTS
    )
    note = f". {IDLE} no latent was resampled" if any(name.endswith(IDLE) for name in named) else ""
    return table._replace(caption=table.caption.replace(VARIANTS, f"{VARIANTS}{note}"))


def atm_table(evaluation: pd.DataFrame) -> Table:
    """ATM with one part of the importance dropped, and over the grid of c and r."""
    rows = rows_of(evaluation, "atm_importance", "atm_grid")
    parts = rows[rows["group"] == "atm_importance"]
    named = {name: parts[parts["dropped"] == part] for part, name in DROPPED.items()}
    named["product of the parts"] = parts[parts["importance"] == "product"]
    for (c, r), part in rows[rows["group"] == "atm_grid"].groupby(["c", "r"], sort=True):
        named[f"c = {c:g}, r = {r:g}"] = part
    whole = DROPPED["nothing"]
    effects = {
        f"{name} − {whole}": partial(drop_effect, parts, part=part)
        for part, name in DROPPED.items()
        if name != whole and len(named[name]) and len(named[whole])
    }
    caption = "ATM's importance score and its c and r; mean ± sd over seeds"
    return table_of("ATM", named, SHORT_COLUMNS, caption, VARIANTS, effects=effects)


def atm_fair_table(evaluation: pd.DataFrame) -> Table:
    """ATM at the c and r that suit it, beside dropout of as much activation, plain L1 and c = r = 1."""
    tuned, dropout = (select(rows_of(evaluation, "atm_fair"), "atm_fair", method) for method in FAIR)
    named = {
        TUNED: tuned,
        ITS_DROPOUT: dropout,
        method_name("standard"): select(evaluation, "main", "standard"),
        "ATM, c = r = 1": select(evaluation, "main", "atm"),
    }
    chosen = tuned.iloc[0]
    caption = (
        f"ATM with c = {chosen['c']:g} and r = {chosen['r']:g}, chosen on other seeds (the same words) as the cell of "
        "the grid that absorbs least among those that keep explained variance; all at the target L0; mean ± sd over "
        "seeds. Below, differences [95 % t interval]"
    )
    effects = {
        f"{TUNED} − {name}": lambda c, other=named[name]: difference(seeds_of(tuned, c), seeds_of(other, c))
        for name in (ITS_DROPOUT, method_name("standard"))
        if len(named[name])
    }
    return table_of("SAE", named, FAIR_COLUMNS, caption, VARIANTS, effects=effects)
