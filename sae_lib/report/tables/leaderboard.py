"""Every method in one line: on the language model, where the true features are known, and what it costs."""

from __future__ import annotations

import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, method_name
from sae_lib.report.results import Results, main_rows, select, toy_rows
from sae_lib.report.statistics import Interval, seeds_of, t_interval
from sae_lib.report.tables.controls import with_marks
from sae_lib.report.tables.rows import Table, cell, record, table_of
from sae_lib.util.errors import ArtifactError

COLUMNS = (
    "l0", "explained_variance", "kl_score", "absorption_full", "absorption_fraction", "main_latents_f1", "probing_k1",
)  # fmt: skip
# Of rows of experiment 'field': header, toy and metric.
ON_TOYS = {
    "synthetic: F1": ("synthetic", "f1"),
    "synthetic: MCC": ("synthetic", "mcc"),
    "loud children: excess absorption": ("loud", "excess_absorption"),
}
COST = Column("seconds, of TopK's", "lower", 2)


def leaderboard_table(evaluation: pd.DataFrame, toy_summary: pd.DataFrame) -> Table:
    """The main table's columns that a choice rests on, beside ground truth and the time to train. Raises ArtifactError
    without the field's toys."""
    toys = toy_rows(toy_summary, "field")
    if toys.empty:
        raise ArtifactError("toy_summary: no rows of experiment 'field'; set ablations.toy.field and run `make field`")
    rows = main_rows(evaluation)
    caption = (
        "Methods at matched L0 on the language model, and at the true L0 where features are known, with one Matryoshka "
        "of three levels; mean ± sd over seeds. Seconds: to train the fastest seed on one core, as a multiple of TopK's"
    )
    table = table_of("method", {method_name(method): part for method, part in rows.items()}, COLUMNS, caption)
    table = with_marks(table, Results(evaluation=evaluation), COLUMNS)
    shown, data = table.shown, [table.data]
    # Wall time, and a machine has other work: the fastest seed is the one that was disturbed least.
    topk = seeds_of(select(evaluation, "main", "topk"), "train_seconds").min()
    trained = [method for method, part in rows.items() if (part["group"] == "main").all()]

    def add(column: Column, metric: str, of: dict[str, Interval]) -> None:
        nonlocal shown
        shown = shown.assign(**{column.header: [cell(of[method], column.decimals) for method in rows]})
        data.append(
            pd.DataFrame([record(method_name(m), metric, each, {metric: column}) for m, each in of.items() if each.n])
        )

    for header, (toy, metric) in ON_TOYS.items():
        column = METRICS[metric]._replace(label=header)
        # On toys there is one Matryoshka.
        of_toy = {m: toy_rows(toys, "field", toy, "matryoshka" if m.startswith("matryoshka") else m) for m in rows}
        add(column, f"{toy}_{metric}", {m: t_interval(seeds_of(part, metric)) for m, part in of_toy.items()})
    fastest = {m: [seeds_of(rows[m], "train_seconds").min() / topk] if m in trained else [] for m in rows}
    add(COST, "seconds_of_topk", {m: t_interval(value) for m, value in fastest.items()})
    return Table(shown, pd.concat(data, ignore_index=True), table.caption)
