"""Whether the latents by which words count as absorbed carry their letters."""

from __future__ import annotations

import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import method_name
from sae_lib.report.results import by_method, with_controls
from sae_lib.report.tables.rows import Table, measured, seeds_note

CARRIER_METRICS: dict[str, Column] = {
    "words": Column("words", "none", 0),
    "carried": Column("carried", "none", 2),
    "named": Column("logit lost: these latents", "none", 3),
    "random": Column("another that is on", "none", 3),
    "direction": Column("the probe's direction", "none", 3),
}


def carriers_table(carriers: pd.DataFrame) -> Table:
    """By method, words that are absorbed by the score *full* and words that a main latent finds."""
    rows = with_controls(carriers, "carriers: no rows; make study tests which latents carry letters")
    lines, data = [], []
    for method, of_method in by_method(rows).items():
        for kind, part in of_method.groupby("kind"):
            cells, records = measured(method_name(method), part, CARRIER_METRICS, CARRIER_METRICS)
            lines.append({"method": method_name(method), "latents": str(kind)} | cells)
            data += [{"kind": kind} | each for each in records]
    caption = (
        "Whether latents carry letters to the model's answer; mean ± sd over seeds. absorbed: the latent by which a "
        "word counts as absorbed (full); found: the main latents of a word on which they fire. Logit lost: how much "
        "the logit of the word's letter, less the mean of all letters', falls where the residual stream at the word "
        "loses what those latents write; what another latent writes that is on there; all that the probe reads. "
        "carried: words in which these latents cost more than the other one; 0.5 where nothing is carried. "
        f"{seeds_note([rows])}"
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption)
