"""Every method in one line: on the language model, where the true features are known, and what it costs; and whether an
idea is better than the best of them."""

from __future__ import annotations

import pandas as pd

from sae_lib.autoencoders.switch import at_width, encoder_flops
from sae_lib.mechanisms import methods
from sae_lib.metrics.registry import Column
from sae_lib.report.names import METRICS, method_name
from sae_lib.report.results import by_method, main_rows, select, toy_rows
from sae_lib.report.statistics import Interval, difference, seeds_of, t_interval
from sae_lib.report.tables.controls import method_table
from sae_lib.report.tables.published import ASK
from sae_lib.report.tables.rows import ARROW_NOTE, Table, cell, gap_cell, left_out, not_measurable, record, seeds_note
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
# Those that absorb least, by their authors, and what a method that is better has to show: lower absorption at no cost.
ON_TOY = "matryoshka"  # of three levels, the only one there
TO_BEAT = ("matryoshka_4", "tree_4", "ortsae", "lista_matryoshka")
ON_MODEL = ("absorption_full", "explained_variance", "ce_score", "kl_score", "probing_k1")
FLOOR = 0.02  # absorption below which there is nothing left to be better by
WHERE_KNOWN = {"tree": "tree", "loud": "loud children", "synthetic": "synthetic"}  # as excess and explained variance
IDEAS = (
    "onset_priced", "consistent", "consistent_onset", "consistent_batchtopk", "presence_matryoshka",
    "masked_matryoshka",
)  # fmt: skip


def leaderboard_table(evaluation: pd.DataFrame, toy_summary: pd.DataFrame) -> Table:
    """The main table's columns that a choice rests on, beside ground truth, where it was asked for, and the time to
    train. Raises ArtifactError without the field's toys and methods."""
    rows = main_rows(evaluation)
    toys = toy_rows(toy_summary, "field", otherwise="" if {*methods("field")} & {*rows} else ASK)
    caption = "Methods at matched L0 on the language model"
    if len(toys):
        caption += ", and at the true L0 where features are known, with one Matryoshka of three levels"
    caption += "; mean ± sd over seeds. Seconds: to train the fastest seed on one core, as a multiple of TopK's"
    if "switch" in rows:
        d_sae = int(rows["switch"]["d_sae"].iloc[0])
        experts = at_width(d_sae)["experts"]
        share = encoder_flops(1, d_sae, experts) / encoder_flops(1, d_sae)
        caption += f". Switch has {experts} experts, and an encoder of {share:.2f} of TopK's FLOPs"
    table = method_table(evaluation, COLUMNS, caption)
    shown, data = table.shown, [*table.data.to_dict("records")]
    # Wall time, and a machine has other work: the fastest seed is the one that was disturbed least.
    topk = seeds_of(select(evaluation, "main", "topk"), "train_seconds").min()
    trained = [method for method, part in rows.items() if (part["group"] == "main").all()]

    def add(column: Column, metric: str, of: dict[str, Interval]) -> None:
        shown[column.header] = [cell(of[method], column.decimals) for method in rows]
        data.extend(record(method_name(m), metric, each, {metric: column}) for m, each in of.items() if each.n)

    for header, (toy, metric) in ON_TOYS.items() if len(toys) else ():
        column = METRICS[metric]._replace(label=header)
        of_toy = by_method(toy_rows(toys, "field", toy))
        values = {m: seeds_of(part, metric) for m, part in of_toy.items()}
        named = {m: ON_TOY if m.startswith(ON_TOY) else m for m in rows}
        add(column, f"{toy}_{metric}", {m: t_interval(values.get(name, ())) for m, name in named.items()})
    fastest = {m: [seeds_of(rows[m], "train_seconds").min() / topk] if m in trained else [] for m in rows}
    add(COST, "seconds_of_topk", {m: t_interval(value) for m, value in fastest.items()})
    return Table(shown, pd.DataFrame(data), table.caption)


def bar_table(evaluation: pd.DataFrame, toy_summary: pd.DataFrame) -> Table:
    """Each idea against the best of `TO_BEAT`, by measure. Raises ArtifactError without ideas as methods."""
    toys, model = toy_rows(toy_summary, "field"), main_rows(evaluation)
    ours = [m for m in methods("field") if m in IDEAS and m in {*model, *toys["method"]}]
    if not ours:
        raise ArtifactError("evaluation: no idea among the methods; run `make field`")
    compared = [m for m in (*TO_BEAT, *ours) if m in model]
    columns = {METRICS[metric]: {m: seeds_of(model[m], metric) for m in compared} for metric in ON_MODEL}
    for metric, name in (("excess_absorption", "excess"), ("explained_variance", "explained variance")):
        for toy, place in WHERE_KNOWN.items():
            known = by_method(toy_rows(toys, "field", toy))
            column = METRICS[metric]._replace(label=f"{place}: {name}")
            of_seed = {m: seeds_of(part, metric) for m, part in known.items()}
            # A parent that is missed more often alone than under its child is not absorbed.
            columns[column] = {m: values.clip(lower=0.0) for m, values in of_seed.items()}
    lines, data = [], []
    for column, of in columns.items():
        means = {m: float(of[m].mean()) for m in (*TO_BEAT, ON_TOY) if m in of and len(of[m])}
        if not means:
            continue
        best = (max if column.direction == "higher" else min)(means, key=lambda m: means[m])
        line = {"measure": column.header, "best of the four": f"{means[best]:.3f} ({method_name(best)})"}
        for method in ours:
            gap = difference(of[method], of[best]) if method in of else t_interval([])
            line[method_name(method)] = gap_cell(gap, 3)
            row = record(method_name(method), column.label, gap, {column.label: column})
            data.append(row | {"against": best, "met": _met(column, gap, means[best])})
        lines.append(line)
    found = pd.DataFrame(data)
    met = {row: f"{part['met'].sum()} of {len(part)}" for row, part in found.groupby("row")}
    lines.append({"measure": "met", "best of the four": "–"} | met)
    lacking, used = left_out(not_measurable(evaluation, ON_MODEL)), [toys, *(model[m] for m in ours if m in model)]
    caption = (
        "Ideas against the best of Matryoshka-4, Tree-4, OrtSAE and LISTA-Matryoshka, measure by measure: its mean, "
        "then each idea's difference from it with the 95 % t interval over seeds. Met: absorption is lower (no higher, "
        f"where the best has at most {FLOOR:g}; an excess below zero counts as none), and anything else no worse, "
        f"beyond the interval. A method that is better meets all. {ARROW_NOTE}.{lacking} {seeds_note(used)}"
    )
    return Table(pd.DataFrame(lines).fillna("–"), found, caption)


def _met(column: Column, gap: Interval, best: float) -> bool:
    """Whether a difference from the best is what is asked of a better method."""
    if column.direction == "higher":
        return gap.n > 1 and gap.high >= 0
    return gap.n > 1 and (gap.low <= 0 if best <= FLOOR else gap.high < 0)
