"""Targeted probe perturbation and removal of spurious correlations, beside SAEs that have learned nothing."""

from __future__ import annotations

import pandas as pd

from sae_lib.metrics.registry import Column
from sae_lib.report.names import method_name
from sae_lib.report.results import by_method, with_controls
from sae_lib.report.tables.rows import Table, measured, seeds_note

SHOWN_N = (2, 10, 50, 500)  # latents that are ablated
SHOWN = {"tpp": "TPP", "scr": "SCR"}
PERTURBATION_METRICS = {
    f"{metric}_{n}": Column(f"{name}, N = {n}", "higher", 3) for metric, name in SHOWN.items() for n in SHOWN_N
}


def perturbation_table(perturbation: pd.DataFrame) -> Table:
    """By method: TPP and SCR for some numbers of ablated latents."""
    rows = with_controls(perturbation, "perturbation: no rows; make study ablates what probes read")
    lines, data = [], []
    for method, of_method in by_method(rows).items():
        wide = of_method.pivot(index="seed", columns="n", values=[*SHOWN])
        wide.columns = [f"{metric}_{n}" for metric, n in wide.columns]
        columns = [column for column in PERTURBATION_METRICS if column in wide]
        cells, records = measured(method_name(method), wide.reset_index(), columns, PERTURBATION_METRICS)
        lines.append({"method": method_name(method)} | cells)
        data += records
    caption = (
        "Targeted probe perturbation (TPP: the accuracy that a probe loses without the N latents of the largest effect "
        "on it, less what other classes' probes lose) and spurious correlation removal (SCR: the share of a biased "
        "probe's lost accuracy that comes back without the other attribute's N latents), by SAEBench's algorithms; "
        "mean ± sd over seeds. They rank nothing here: where features are known TPP falls while SAEs learn, and SCR "
        "goes against the truth for large N (2605.18229); compare trained SAEs with the untrained. "
        f"{seeds_note([rows])}"
    )
    return Table(pd.DataFrame(lines).fillna("–"), pd.DataFrame(data), caption)
