"""Absorption as others published it beside ours at the same L0: does the literature's order of methods come out?

Published: Tree SAE (arXiv 2605.07922), GPT-2 small, residual stream before block 5, 24,576 latents, 5 * 10^8 tokens.
Another model, another width and a hundred times the tokens: the order of methods and the trend over L0 can agree,
digits that agree are luck.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pandas as pd

from sae_lib.report.names import METRICS, NOT_MEASURABLE, method_name
from sae_lib.report.results import why_empty
from sae_lib.report.statistics import Interval, t_interval
from sae_lib.report.tables.rows import Table, left_out, range_cell
from sae_lib.report.tables.sweep import Curve, curves

METRIC = "absorption_full"
NEAR = 1.1  # where a method has no curve over L0 yet, a level within this factor stands for an L0
PUBLISHED: dict[str, dict[float, float]] = {
    "topk": {32: 0.216, 48: 0.164, 64: 0.155, 80: 0.141},
    "matryoshka_2": {32: 0.159, 48: 0.136, 64: 0.117, 80: 0.106},
    "matryoshka_4": {32: 0.125, 48: 0.104, 64: 0.078, 80: 0.076},
}


def literature_table(evaluation: pd.DataFrame) -> Table:
    """Full absorption by method and L0, published and ours, and how many of the published orderings come out: of two
    methods at one L0, and of one method at two L0. Raises ArtifactError without rows of the main table."""
    of_method = curves(evaluation, METRIC)
    lines, data, ours = [], [], {}
    for method, published in PUBLISHED.items():
        for l0, value in published.items():
            found = _here(of_method[method], l0) if method in of_method else t_interval([])
            if found.n:
                ours[method, l0] = found.mean
            lines.append(
                {"method": method_name(method), "L0": f"{l0:g}", "GPT-2 small (Tree SAE's table)": f"{value:.3f}",
                 "here": range_cell(found, METRICS[METRIC].decimals)}
            )  # fmt: skip
            data.append({"row": method, "l0": l0, "metric": METRIC, "published": value, **found._asdict()})
    theirs = {(method, l0): value for method, of_l0 in PUBLISHED.items() for l0, value in of_l0.items()}
    counts = [_agreeing(theirs, ours, same) for same in (1, 0)]
    caption = (
        f"{METRICS[METRIC].label.capitalize()} at the same L0, published and here: mean [95 % t interval over seeds], "
        f"read off each method's curve, or a level within a tenth. Published orderings that come out here: {counts[0]} "
        f"of two methods at one L0, {counts[1]} of one method at two L0. Another model, width and number of tokens: "
        "the order can agree, digits that agree are luck. – no level there. ↓ lower is better."
    )
    if why_empty(evaluation, METRIC) == NOT_MEASURABLE:
        caption += left_out([METRIC])
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption)


def _here(curve: Curve, l0: float) -> Interval:
    """What a curve has at an L0, or a level of it within `NEAR` of that."""
    estimate = curve.at(l0)
    if estimate:
        return estimate.interval
    near = [level for level in curve.levels if abs(level.log_l0 - math.log(l0)) <= math.log(NEAR)]
    return curve.at_level(near[0]) if near else t_interval([])


def _agreeing(theirs: dict[Any, float], ours: dict[Any, float], same: int) -> str:
    """'5 of 6': pairs of (method, L0) with the same L0 (`same` 1) or method (0) that are ordered alike."""
    pairs = [(a, b) for a, b in combinations(theirs, 2) if a[same] == b[same] and a in ours and b in ours]
    alike = sum((theirs[a] - theirs[b]) * (ours[a] - ours[b]) > 0 for a, b in pairs)
    return f"{alike} of {len(pairs)}"
