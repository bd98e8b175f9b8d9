"""Methods compared at one L0, the true one: the sparsity of each is chosen by a sweep with seeds of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sae_lib.matched_l0 import crossing
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import Toy
from sae_lib.metrics.toy.methods import GATED_L1, at_level, sparsity_knob
from sae_lib.metrics.toy.pool import ToyPool
from sae_lib.metrics.toy.training import ToyRun
from sae_lib.sae_config import SAEConfig


class Cell(NamedTuple):
    """What is matched: a configuration, whatever its sparsity, on a toy."""

    toy: Toy
    config: SAEConfig


def levels(cell: Cell, settings: ToyConfig) -> tuple[float, ...]:
    """The values of the cell's sparsity in the sweep."""
    if not _has_l1(cell):
        return settings.k_levels
    factor = GATED_L1 if cell.config.architecture == "gated" else 1.0
    return tuple(factor * value for value in settings.l1_levels)


def runs_of(cell: Cell, value: float, seeds: Iterable[int], settings: ToyConfig) -> list[ToyRun]:
    """A cell at one sparsity, with each seed."""
    config = at_level(cell.config, value)
    return [ToyRun(cell.toy, config, seed, settings.steps, settings.batch) for seed in seeds]


def match_l0(pool: ToyPool, cells: Sequence[Cell], settings: ToyConfig) -> list[float]:
    """For each cell the sparsity at which its L0 comes nearest to the true L0 of its toy.

    Where that is an L1 coefficient, it is interpolated between the levels of the sweep (`crossing`), trained, added to
    the levels and interpolated again, `settings.refinements` times. JumpReLU is told the true L0. k is a whole number:
    it is the one nearest to the true L0, at least 1, and how near that is depends on the toy.
    """
    tried = {cell: list(levels(cell, settings)) for cell in cells if _has_l1(cell)}
    chosen: dict[Cell, float] = {}
    for _ in range(settings.refinements + 1):
        asked = [(cell, value) for cell, values in tried.items() for value in values]
        runs = [runs_of(cell, value, settings.sweep_seeds, settings) for cell, value in asked]
        metrics = iter(pool.run([run for each in runs for run in each], "sweep"))
        l0 = {place: float(np.mean([next(metrics)["l0"] for _ in settings.sweep_seeds])) for place in asked}
        for cell, values in tried.items():
            found = crossing(values, [l0[cell, value] for value in values], cell.toy.true_l0)
            chosen[cell] = round(found, 6)
            tried[cell] = sorted({*values, chosen[cell]})
    return [chosen[cell] if cell in chosen else _told(cell) for cell in cells]


def _has_l1(cell: Cell) -> bool:
    return sparsity_knob(cell.config) == "l1_coefficient"


def _told(cell: Cell) -> float:
    if sparsity_knob(cell.config) == "target_l0":
        return cell.toy.true_l0
    return max(1, round(cell.toy.true_l0))
