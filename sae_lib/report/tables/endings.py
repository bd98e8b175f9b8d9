"""Absorption of word endings beside that of first letters."""

from __future__ import annotations

import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import method_name
from sae_lib.report.results import by_method, with_controls
from sae_lib.report.statistics import seeds_of, t_interval
from sae_lib.report.tables.rows import ARROW_NOTE, Table, cell, measured, record, seeds_note

METRIC = "absorption_full"
LETTERS = Column("first letters, full", "lower", 3)
ENDING_METRICS: dict[str, Column] = {
    "absorption_full": Column("endings, full", "lower", 3),
    "absorption_full_random": Column("random directions", "none", 3),
    "absorption_full_null": Column("shuffled endings", "none", 3),
    "main_latent_f1": Column("endings, main latent F1", "higher", 3),
    "absorption_fraction": Column("endings, fraction", "lower", 3),
}


def endings_table(endings: pd.DataFrame, evaluation: pd.DataFrame) -> Table:
    """By method, the mean over endings, and full absorption of first letters by the same SAEs."""
    rows = with_controls(
        endings[endings["ending"] == "all"], "endings: no rows; make study measures the absorption of word endings"
    )
    lines, data = [], []
    for method, part in by_method(rows).items():
        cells, records = measured(method_name(method), part, ENDING_METRICS, ENDING_METRICS)
        letters = t_interval(seeds_of(evaluation[evaluation["run"].isin(part["run"])], METRIC))
        shown = {LETTERS.header: cell(letters, LETTERS.decimals)} if METRIC in evaluation else {}
        lines.append({"method": method_name(method)} | cells | shown)
        data += [*records, record(method_name(method), "letters_full", letters, {"letters_full": LETTERS})]
    named = endings.loc[endings["ending"] != "all"].groupby("ending", sort=False)["words"].max()
    counts = ", ".join(f"{ending} ({int(words)})" for ending, words in named.items())
    caption = (
        "Absorption by the same rules where the general feature is how a word ends and not its first letter; mean ± sd "
        f"over seeds. Endings that the probe finds, with their words: {counts}. random directions, shuffled endings: "
        f"the score of nothing. {ARROW_NOTE}. {seeds_note([rows])}"
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption)
