"""What it costs that neighbouring layers share an SAE."""

from __future__ import annotations

import pandas as pd

from sae_lib.report.names import METRICS
from sae_lib.report.statistics import difference, seeds_of, t_interval
from sae_lib.report.tables.rows import Table, cell, range_cell, record, seeds_note
from sae_lib.util.errors import ArtifactError

METRIC = "explained_variance"
KINDS = {"own": "own SAE", "shared": "the group's"}


def layer_groups_table(layer_groups: pd.DataFrame) -> Table:
    """Explained variance of each layer by an SAE of its own and by its group's, and the difference."""
    if layer_groups.empty:
        raise ArtifactError("layer_groups: no rows; make study compares layers where ablations.layer_groups is set")
    header, decimals = METRICS[METRIC].header, METRICS[METRIC].decimals
    lines, data = [], []
    for layer, rows in layer_groups.groupby("layer"):
        of = {kind: seeds_of(rows[rows["kind"] == kind], METRIC) for kind in KINDS}
        line = {
            "layer": str(layer),
            "group": str(rows["group"].iloc[0]),
            "angle within": f"{rows['distance'].iloc[0]:.3f}",
        }
        line |= {f"{name}: {header}": cell(t_interval(of[kind]), decimals) for kind, name in KINDS.items()}
        change = difference(of["shared"], of["own"])
        lines.append(line | {"difference": range_cell(change, decimals, "+")})
        data += [record(f"layer {layer}, {kind}", METRIC, t_interval(values)) for kind, values in of.items()]
        data.append(record(f"layer {layer}, difference", METRIC, change))
    caption = (
        "TopK SAEs of single layers, and one for each group of neighbouring layers whose residual streams point the "
        "same way, trained for as many steps on windows each from one of its layers; explained variance on held-out "
        "text, mean ± sd over seeds, and the difference with its 95 % interval. Angle within: the largest angular "
        f"distance of two layers of the group, in units of pi; mean over groups {layer_groups['amad'].iloc[0]:.3f}. "
        f"{seeds_note([layer_groups])}"
    )
    return Table(pd.DataFrame(lines), pd.DataFrame(data), caption)
