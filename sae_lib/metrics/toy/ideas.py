"""Ideas against absorption, each with what would refute it. Experiment 'ideas' has the metrics of
`score.recovery_metrics`, the method that an idea changes, and the change as label:

- order: what fills the prefixes of a LISTA-Matryoshka, two latents a row. Where children are loud, firing and magnitude
  should put them first and presence their parents; if firing does as well, presence is not needed.
- consistency: the weight of the penalty on inhibited encoders. It should end absorption where an encoder does it (L1,
  JumpReLU) at no cost; if it helps BatchTopK as much, which absorbs by selection, that is not why.
- onset: what lasting latents are let off. It should help the more the longer parents last, and not without order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import LOUD, TREE, Toy, chain
from sae_lib.metrics.toy.experiments import Cell, Group, match_l0, toy_rows
from sae_lib.metrics.toy.methods import toy_config
from sae_lib.metrics.toy.training import ToyPool, train_and_recover

ORDERS = ("index", "magnitude", "frequency", "presence")
ORDERED_K = 2  # a parent and its child
WEIGHTS = (0.0, 0.1, 1.0, 10.0)
INHIBITED = ("standard", "jumprelu", "batchtopk")
DISCOUNTS = (0.0, 0.5, 0.9)


def ideas(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """One row per toy SAE; none where the settings name no field."""
    if settings.field is None:
        return pd.DataFrame()
    with ToyPool(folder, workers) as pool:
        changed = [*_changed(settings)]
        values = match_l0(pool, [cell for _, cell in changed], settings)
        groups: list[Group] = [(*each, value) for each, value in zip(changed, values, strict=True)]
        return toy_rows(pool, settings, "ideas", groups, settings.seeds, train_and_recover)


def _changed(settings: ToyConfig) -> Iterator[tuple[dict[str, str], Cell]]:
    def cell(idea: str, toy: Toy, method: str, label: str, change: dict[str, Any]) -> tuple[dict[str, str], Cell]:
        columns = {"idea": idea, "method": method, "label": label}
        return columns, Cell(toy, toy_config(method, toy, settings, change))

    for toy in (TREE, LOUD):
        for order in ORDERS:
            yield cell("order", toy, "lista_matryoshka", order, {"order": order, "k": ORDERED_K})
        for method in INHIBITED:
            for weight in WEIGHTS:
                penalty = {"encoder_consistency": {"coefficient": weight} if weight else None}
                yield cell("consistency", toy, method, f"{weight:g}", penalty)
    for rho in settings.rhos:
        for discount in DISCOUNTS:
            yield cell("onset", chain(rho), "onset_priced", f"{discount:g}", {"discount": discount})
