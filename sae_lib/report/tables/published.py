"""What others published beside ours: absorption at the same L0, and methods where the true features are known; and
ideas of our own there.

Other models, widths and numbers of tokens: the order of methods and the trend over L0 can agree, digits that agree are
luck.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pandas as pd

from sae_lib.report.names import METRICS, method_name
from sae_lib.report.results import by_method, toy_rows
from sae_lib.report.statistics import Interval, t_interval
from sae_lib.report.tables.rows import (
    ARROW_NOTE,
    Lines,
    Table,
    intervals,
    left_out,
    not_measurable,
    range_cell,
    seeds_note,
)
from sae_lib.report.tables.sweep import Curve, curves

METRIC = "absorption_full"
NEAR = 1.1  # where a method has no curve over L0 yet, a level within this factor stands for an L0
# Tree SAE (arXiv 2605.07922), GPT-2 small, residual stream before block 5, 24,576 latents, 5 * 10^8 tokens.
BY_L0: dict[str, dict[float, float]] = {
    "topk": {32: 0.216, 48: 0.164, 64: 0.155, 80: 0.141},
    "matryoshka_2": {32: 0.159, 48: 0.136, 64: 0.117, 80: 0.106},
    "matryoshka_4": {32: 0.125, 48: 0.104, 64: 0.078, 80: 0.076},
}
# SynthSAEBench (arXiv 2602.14687, second version), 16,384 features in 768 dimensions, 4,096 latents, 2 * 10^8 rows, at
# an L0 of 25: the first three of `COLUMNS`. Ours has 1 / 32 of the features and of the latents and few rows.
ON_FEATURES: dict[str, tuple[float, float, float]] = {
    "BatchTopK": (0.732, 0.757, 0.792),
    "Matryoshka": (0.879, 0.793, 0.779),
    "Matching pursuit": (0.446, 0.693, 0.835),
    "Standard (L1)": (0.556, 0.604, 0.765),
    "JumpReLU": (0.732, 0.753, 0.795),
}
ASK = "set ablations.toy.field and run `make field`"  # where there are no toys of the field
TOYS = {"loud": "loud children", "synthetic": "synthetic"}
IDEA_COLUMNS = ("l0", "explained_variance", "f1", "parent_silent_rate", "miss_rate", "excess_absorption")
COLUMNS = ("f1", "mcc", "explained_variance", "l0", "parent_silent_rate", "miss_rate", "excess_absorption")


def literature_table(evaluation: pd.DataFrame) -> Table:
    """Full absorption by method and L0, published and ours, and how many of the published orderings come out: of two
    methods at one L0, and of one method at two L0. Raises ArtifactError without rows of the main table."""
    of_method = curves(evaluation, METRIC)
    theirs = {(method, l0): value for method, of_l0 in BY_L0.items() for l0, value in of_l0.items()}
    lines, data, ours = [], [], {}
    for (method, l0), value in theirs.items():
        found = _here(of_method[method], l0) if method in of_method else t_interval([])
        if found.n:
            ours[method, l0] = found.mean
        line = {"method": method_name(method), "L0": f"{l0:g}", "GPT-2 small (Tree SAE's table)": f"{value:.3f}"}
        lines.append(line | {"here": range_cell(found, METRICS[METRIC].decimals)})
        data.append({"row": method, "l0": l0, "metric": METRIC, "published": value, **found._asdict()})
    counts = [_agreeing(theirs, ours, same) for same in (1, 0)]
    caption = (
        f"{METRICS[METRIC].label.capitalize()} at the same L0, published and here: mean [95 % t interval over seeds], "
        f"read off each method's curve, or a level within a tenth. Published orderings that come out here: {counts[0]} "
        f"of two methods at one L0, {counts[1]} of one method at two L0. Another model, width and number of tokens: "
        "the order can agree, digits that agree are luck. – no level there. ↓ lower is better."
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption + left_out(not_measurable(evaluation, [METRIC])))


def _here(curve: Curve, l0: float) -> Interval:
    """What a curve has at an L0, or a level of it within `NEAR` of that."""
    if estimate := curve.at(l0):
        return estimate.interval
    near = [level for level in curve.levels if abs(level.log_l0 - math.log(l0)) <= math.log(NEAR)]
    return curve.at_level(near[0]) if near else t_interval([])


def _agreeing(theirs: dict[Any, float], ours: dict[Any, float], same: int) -> str:
    """'5 of 6': pairs of (method, L0) with the same L0 (`same` 1) or method (0) that are ordered alike."""
    pairs = [(a, b) for a, b in combinations(theirs, 2) if a[same] == b[same] and a in ours and b in ours]
    alike = sum((theirs[a] - theirs[b]) * (ours[a] - ours[b]) > 0 for a, b in pairs)
    return f"{alike} of {len(pairs)}"


def ground_truth_table(toy_summary: pd.DataFrame) -> Table:
    """F1, MCC, explained variance and absorption by toy and method, at the true L0; then the published rows. Raises
    ArtifactError without rows of the field."""
    rows, used, lines = toy_rows(toy_summary, "field", otherwise=ASK), [], Lines()
    for toy, name in TOYS.items():
        for method, part in by_method(rows[rows["toy"] == toy]).items():
            keys = {"method": method_name(method), "data": name}
            lines.add(keys, method, intervals(part, COLUMNS), toy=toy)
            used.append(part)
    for method, values in ON_FEATURES.items():
        printed = [*(f"{value:.3f}" for value in values), "25"]
        line = {METRICS[column].header: text for column, text in zip(COLUMNS, printed, strict=False)}
        lines.shown.append({"method": method, "data": "SynthSAEBench-16k, published"} | line)
    return lines.table(
        "Methods where the true features are known, at the true L0 of the features that can have a latent, or as near "
        "as they come; mean ± sd over seeds. Loud children: the tree of the other toys, children five times as loud as "
        "parents. Synthetic: 512 features in SynthSAEBench's shape, 128 latents; its published rows (arXiv 2602.14687) "
        "have 32 times as many of both. Excess absorption: P(parent silent | child) - P(parent missed | parent alone). "
        f"{ARROW_NOTE}. {seeds_note(used)}"
    )


def ideas_table(toy_summary: pd.DataFrame) -> Table:
    """Ideas against absorption, by toy and change. Raises ArtifactError without rows of them."""
    rows, lines = toy_rows(toy_summary, "ideas", otherwise=ASK), Lines()
    for (idea, toy, rho, method, label), part in rows.groupby(["idea", "toy", "rho", "method", "label"], sort=False):
        place, name = f"{toy}, rho = {rho:g}" if toy == "chain" else str(toy), method_name(str(method))
        keys = {"idea": idea, "data": place, "method": name, "change": label}
        lines.add(keys, name, intervals(part, IDEA_COLUMNS), idea=idea, toy=place, change=label)
    return lines.table(
        "Ideas against absorption where the true features are known; mean ± sd over seeds. order: what fills the "
        "prefixes of a LISTA-Matryoshka, k = 2. consistency: weight of a penalty on encoders that are inhibited along "
        "similar decoder rows. onset: share of the L1 penalty that a latent is let off where it was on at the token "
        "before; chain: parents and singles persist with rho. The last two at the true L0, or as near as they come. "
        f"{ARROW_NOTE}. {seeds_note([rows])}"
    )
