"""The rest of the field on ground truth: a tree whose children are loud, and synthetic data in SynthSAEBench's shape.

Rows are those of `experiments`, with the metrics of `recovery`. Experiment 'field': methods at the true L0, or as near
as they come. Experiment 'field_sweep': SAEs over a range of L0, with the sweep's seeds, on these, on TREE, and where
nothing can be absorbed: does a measure that knows no truth rank SAEs as the truth does, and is it silent without one?
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sae_lib.mechanisms import METHODS
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import LOUD, SHUFFLED, TREE, Toy
from sae_lib.metrics.toy.experiments import Cell, Group, cell_label, levels, match_l0, toy_rows
from sae_lib.metrics.toy.methods import toy_config
from sae_lib.metrics.toy.pool import ToyPool
from sae_lib.metrics.toy.recovery import train_and_recover
from sae_lib.metrics.toy.synthetic import FLAT, SIMILAR, SMALL, Synthetic
from sae_lib.util.errors import ArtifactError

COMPARED = (LOUD, SMALL)
RANKED = (TREE, LOUD, SMALL)
SILENT = (SHUFFLED, SIMILAR, FLAT)


def field(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """One row per SAE; none where the settings name no field. `folder` keeps what is finished."""
    if settings.field is None:
        return pd.DataFrame()
    known = [method for method in METHODS if METHODS[method].toy_rate is not None]
    if unknown := [method for method in settings.field.methods if method not in known]:
        raise ArtifactError(f"ablations.toy.field.methods: no toy for '{unknown[0]}'; known: {', '.join(known)}")
    with ToyPool(folder, workers) as pool:
        parts = [matched(pool, settings, toy) for toy in COMPARED]
        parts += [swept(pool, settings, toy) for toy in (*RANKED, *SILENT)]
    return pd.concat(parts, ignore_index=True)


def matched(pool: ToyPool, settings: ToyConfig, toy: Toy) -> pd.DataFrame:
    """Every method of the field at the true L0 of `toy`, with every seed."""
    sized = at_size(settings, toy)
    cells = field_cells(settings, toy)
    values = match_l0(pool, [*cells.values()], sized, train_and_recover)
    groups: list[Group] = [
        ({"method": method, "label": cell_label(cell, value)}, cell, value)
        for (method, cell), value in zip(cells.items(), values, strict=True)
    ]
    return toy_rows(pool, sized, "field", groups, sized.seeds, train_and_recover)


def swept(pool: ToyPool, settings: ToyConfig, toy: Toy) -> pd.DataFrame:
    """Every method of the field over a range of L0 on `toy`, with the seeds of the sweep."""
    sized = at_size(settings, toy)
    groups: list[Group] = [
        ({"method": method, "label": cell_label(cell, value)}, cell, value)
        for method, cell in field_cells(settings, toy).items()
        for value in levels(cell, sized)
    ]
    return toy_rows(pool, sized, "field_sweep", groups, sized.sweep_seeds, train_and_recover)


def field_cells(settings: ToyConfig, toy: Toy) -> dict[str, Cell]:
    """The methods of the field at the size of `toy`."""
    assert settings.field is not None
    sized, share = at_size(settings, toy), settings.field.rate if _is_large(toy) else 1.0
    rates = {method: share * (METHODS[method].toy_rate or 0.0) for method in settings.field.methods}
    return {
        method: Cell(toy, toy_config(method, toy, sized, {"optimizer": {"learning_rate": rate}}))
        for method, rate in rates.items()
    }


def at_size(settings: ToyConfig, toy: Toy) -> ToyConfig:
    """`settings` for `toy`: the synthetic data has steps and levels of its own."""
    if not _is_large(toy) or settings.field is None:
        return settings
    names = ("steps", "batch", "l1_levels", "k_levels")
    return settings.model_copy(update={name: getattr(settings.field, name) for name in names})


def _is_large(toy: Toy) -> bool:
    return isinstance(toy, Synthetic) and toy.width > 100


def rank_agreement(rows: pd.DataFrame, measure: str, truth: str = "excess_absorption") -> pd.Series:
    """Spearman correlation of a measure and the truth over the SAEs of each toy, and over all of them."""
    swept_rows = rows[(rows["experiment"] == "field_sweep") & rows[truth].notna()]
    found = {toy: part[measure].corr(part[truth], method="spearman") for toy, part in swept_rows.groupby("toy")}
    return pd.Series(found | {"all": swept_rows[measure].corr(swept_rows[truth], method="spearman")})
