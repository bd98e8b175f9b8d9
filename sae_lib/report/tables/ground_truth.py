"""Where the true features are known: the field's methods on two more toys, beside SynthSAEBench's published rows.

Published: arXiv 2602.14687 (second version), 16,384 features in 768 dimensions, 4,096 latents, 2 * 10^8 rows, at an L0
of 25. Ours has 1 / 32 of the features and of the latents and few rows: the order of methods can agree.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sae_lib.report.names import METRICS, method_name
from sae_lib.report.results import by_method, toy_rows
from sae_lib.report.statistics import seeds_of, t_interval
from sae_lib.report.tables.rows import ARROW_NOTE, Table, cell, record, seeds_note
from sae_lib.util.errors import ArtifactError

PUBLISHED: dict[str, tuple[float, float, float]] = {
    "BatchTopK": (0.732, 0.757, 0.792),
    "Matryoshka": (0.879, 0.793, 0.779),
    "Matching pursuit": (0.446, 0.693, 0.835),
    "Standard (L1)": (0.556, 0.604, 0.765),
    "JumpReLU": (0.732, 0.753, 0.795),
}
TOYS = {"loud": "loud children", "synthetic": "synthetic"}
COLUMNS = ("f1", "mcc", "explained_variance", "l0", "parent_silent_rate", "miss_rate", "excess_absorption")


def ground_truth_table(toy_summary: pd.DataFrame) -> Table:
    """F1, MCC, explained variance and absorption by toy and method, at the true L0; then the published rows. Raises
    ArtifactError without rows of the field."""
    lines, data, used = [], [], []
    for toy, name in TOYS.items():
        for method, part in by_method(toy_rows(toy_summary, "field", toy)).items():
            intervals = {column: t_interval(seeds_of(part, column)) for column in COLUMNS}
            shown = {METRICS[c].header: cell(interval, METRICS[c].decimals) for c, interval in intervals.items()}
            lines.append({"method": method_name(method), "data": name} | shown)
            data += [{"toy": toy, **record(method, column, interval)} for column, interval in intervals.items()]
            used.append(part)
    if not lines:
        raise ArtifactError("toy_summary: no rows of experiment 'field'; set ablations.toy.field and run notebook 03")
    for method, values in PUBLISHED.items():
        line: dict[str, Any] = {"method": method, "data": "SynthSAEBench-16k, published"}
        line |= {METRICS[column].header: f"{value:.3f}" for column, value in zip(COLUMNS, values, strict=False)}
        lines.append(line | {METRICS["l0"].header: "25"})
    caption = (
        "Methods where the true features are known, at the true L0 of the features that can have a latent, or as near "
        "as they come; mean ± sd over seeds. Loud children: the tree of the other toys, children five times as loud as "
        "parents. Synthetic: 512 features in SynthSAEBench's shape, 128 latents; its published rows (arXiv 2602.14687) "
        "have 32 times as many of both. Excess absorption: P(parent silent | child) - P(parent missed | parent alone). "
        f"{ARROW_NOTE}. {seeds_note(used)}"
    )
    return Table(pd.DataFrame(lines).fillna("–"), pd.DataFrame(data), caption)


IDEA_COLUMNS = ("l0", "explained_variance", "f1", "parent_silent_rate", "miss_rate", "excess_absorption")


def ideas_table(toy_summary: pd.DataFrame) -> Table:
    """Ideas against absorption, by toy and change. Raises ArtifactError without rows of them."""
    rows = toy_rows(toy_summary, "ideas")
    if rows.empty:
        raise ArtifactError("toy_summary: no rows of experiment 'ideas'; set ablations.toy.field and run `make field`")
    lines, data = [], []
    for (idea, toy, rho, method, label), part in rows.groupby(["idea", "toy", "rho", "method", "label"], sort=False):
        intervals = {column: t_interval(seeds_of(part, column)) for column in IDEA_COLUMNS}
        place = f"{toy}, rho = {rho:g}" if toy == "chain" else str(toy)
        line = {"idea": idea, "data": place, "method": method_name(str(method)), "change": label}
        lines.append(
            line | {METRICS[c].header: cell(interval, METRICS[c].decimals) for c, interval in intervals.items()}
        )
        data += [
            {"idea": idea, "toy": place, "change": label, **record(method_name(str(method)), column, interval)}
            for column, interval in intervals.items()
        ]
    caption = (
        "Ideas against absorption where the true features are known; mean ± sd over seeds. order: what fills the "
        "prefixes of a LISTA-Matryoshka, k = 2. consistency: weight of a penalty on encoders that are inhibited along "
        "similar decoder rows. onset: share of the L1 penalty that a latent is let off where it was on at the token "
        "before; chain: parents and singles persist with rho. The last two at the true L0, or as near as they come. "
        f"{ARROW_NOTE}. {seeds_note([rows])}"
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption)
