"""The ground-truth study: what each method does where the true features are known. Each function gives tidy rows.

Columns of every row: experiment, toy, method, label, seed, rho, sparsity (the l1_coefficient, k or target_l0 it was
trained with), l0_ratio (l0 / true_l0: how close the match came), temporal_coefficient (NaN without a penalty), and the
metrics of `training.train_and_score`, or, in the rest of the field, of `score.recovery_metrics`. Of some: temporal,
resampling and gradient_scaling (factorial); importance and the part dropped from it ('nothing', None for other scores).

Methods are compared at one L0, the true one: the sparsity of each is chosen by a sweep with seeds of its own.
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lib.autoencoders.config import SAEConfig
from sae_lib.mechanisms import METHODS
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import LOUD, PAIR, RARE, SHUFFLED, TREE, Toy, chain
from sae_lib.metrics.toy.methods import at_level, crossing, toy_config, toy_methods
from sae_lib.metrics.toy.synthetic import FLAT, SIMILAR, SMALL, Synthetic
from sae_lib.metrics.toy.training import ToyPool, ToyRun, Work, train_and_picture, train_and_recover, train_and_score
from sae_lib.util.errors import ArtifactError

PAIR_METHODS = ("standard", "atm", "dropout")
TO_BEAT = ("matryoshka", "tree_4", "ortsae", "lista_matryoshka")
MECHANISMS = ("temporal", "resampling", "gradient_scaling")
# On tokens without order these are the same penalty as that on adjacent tokens: one L1 coefficient serves all three.
ORDERLESS = {"temporal_previous": "temporal_strong", "variance": "temporal_strong"}


class Cell(NamedTuple):
    """What is matched: a configuration, whatever its sparsity, on a toy."""

    toy: Toy
    config: SAEConfig


Group = tuple[dict[str, Any], Cell, float]  # columns of its rows, what is trained, at which sparsity


def levels(cell: Cell, settings: ToyConfig) -> tuple[float, ...]:
    """The values of the cell's sparsity in the sweep."""
    if cell.config.knob != "l1_coefficient":
        return settings.k_levels
    return tuple(cell.config.l1_scale * value for value in settings.l1_levels)


def runs_of(cell: Cell, value: float, seeds: Iterable[int], settings: ToyConfig) -> list[ToyRun]:
    """A cell at one sparsity, with each seed."""
    config = at_level(cell.config, value)
    return [ToyRun(cell.toy, config, seed, settings.steps, settings.batch) for seed in seeds]


def match_l0(pool: ToyPool, cells: Sequence[Cell], settings: ToyConfig, work: Work = train_and_score) -> list[float]:
    """For each cell the sparsity at which its L0 comes nearest to the true L0 of its toy.

    Where that is an L1 coefficient, it is interpolated between the levels of the sweep (`crossing`), trained, added to
    the levels and interpolated again, `settings.refinements` times. The others are told it, as `toy_config` has it.
    """
    tried = {cell: list(levels(cell, settings)) for cell in cells if cell.config.knob == "l1_coefficient"}
    chosen: dict[Cell, float] = {}
    for _ in range(settings.refinements + 1):
        asked = [(cell, value) for cell, values in tried.items() for value in values]
        runs = [run for cell, value in asked for run in runs_of(cell, value, settings.sweep_seeds, settings)]
        metrics = iter(pool.run(runs, "sweep", work))
        l0 = {place: float(np.mean([next(metrics)["l0"] for _ in settings.sweep_seeds])) for place in asked}
        for cell, values in tried.items():
            chosen[cell] = round(crossing(values, [l0[cell, value] for value in values], cell.toy.true_l0), 6)
            tried[cell] = sorted({*values, chosen[cell]})
    return [chosen.get(cell, cell.config.get(cell.config.knob)) for cell in cells]


def toy_rows(
    pool: ToyPool,
    settings: ToyConfig,
    experiment: str,
    groups: Iterable[Group],
    seeds: Iterable[int],
    work: Work = train_and_score,
) -> pd.DataFrame:
    """Train every group with every seed; one row each."""
    jobs = [(columns, run, value) for columns, cell, value in groups for run in runs_of(cell, value, seeds, settings)]
    rows = []
    for (columns, run, value), metrics in zip(jobs, pool.run([j[1] for j in jobs], experiment, work), strict=True):
        temporal = run.config.get("temporal")
        rows.append(
            {"experiment": experiment, "toy": run.toy.name, "seed": run.seed, "rho": run.toy.rho, "sparsity": value}
            | columns
            | metrics
            | {"l0_ratio": metrics["l0"] / metrics["true_l0"]}
            | {"temporal_coefficient": temporal.coefficient if temporal else np.nan}
        )
    return pd.DataFrame(rows)


def _labelled(cells: Iterable[tuple[tuple[str, Cell], float]]) -> list[Group]:
    """What is trained, from methods with their cells and the sparsity of each."""
    return [
        ({"method": method, "label": f"{cell.config.knob.replace('l1_coefficient', 'l1')}={value:g}"}, cell, value)
        for (method, cell), value in cells
    ]


def _over_levels(cells: dict[str, Cell], settings: ToyConfig) -> list[Group]:
    """Every cell at every level of its sparsity."""
    return _labelled((item, value) for item in cells.items() for value in levels(item[1], settings))


def _cell(pool: ToyPool, settings: ToyConfig, toy: Toy, method: str) -> Cell:
    """A method on a toy; uniform dropout masks as often as ATM does at its matched sparsity."""
    if method != "dropout":
        return Cell(toy, toy_config(method, toy, settings))
    atm = Cell(toy, toy_config("atm", toy, settings))
    (value,) = match_l0(pool, [atm], settings)
    found = pool.run(runs_of(atm, value, settings.sweep_seeds, settings), "mask rate")
    rate = float(np.mean([metrics["mask_rate"] for metrics in found]))
    return Cell(toy, toy_config(method, toy, settings, {"dropout": {"probability": round(rate, 3)}}))


def ground_truth(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """All experiments, one row per toy SAE. `folder` keeps what is finished: a second call trains nothing."""
    with ToyPool(folder, workers) as pool:
        parts = [experiment(pool, settings) for experiment in (sweep, matched, rho_sweep, factorial, importance, rare)]
    return pd.concat(parts, ignore_index=True)


def absorption_picture(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """What the latents and decoder rows of the SAEs of `matched` on TREE have become: method, seed and the columns of
    `score.family_picture`."""
    with ToyPool(folder, workers) as pool:
        cells = [_cell(pool, settings, TREE, method) for method in PAIR_METHODS]
        matches = zip(cells, match_l0(pool, cells, settings), strict=True)
        runs = [run for cell, value in matches for run in runs_of(cell, value, settings.seeds, settings)]
        found = pool.run(runs, "picture", train_and_picture)
    rows = [
        (method, seed, *place.split("/"), value)
        for (method, seed), picture in zip(itertools.product(PAIR_METHODS, settings.seeds), found, strict=True)
        for place, value in picture.items()
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "kind", "row", "latent", "value"])


def matched(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """Every method at the true L0 of the toy, as near as it can come: on TREE, and a few on PAIR. The true L0 of TREE
    (1.12) lies between two whole numbers k: rows of experiment 'matched' have k = 1, those of 'next_k' k = 2."""
    groups: list[Group] = []
    for toy, methods in ((TREE, toy_methods()), (PAIR, PAIR_METHODS)):
        cells = {method: _cell(pool, settings, toy, method) for method in methods}
        stands_for = [_cell(pool, settings, toy, ORDERLESS.get(method, method)) for method in methods]
        groups += _labelled(zip(cells.items(), match_l0(pool, stands_for, settings), strict=True))
    above = [(c | {"label": "k=2"}, cell, 2.0) for c, cell, _ in groups if cell.config.knob == "k"]
    asked = {"matched": groups, "next_k": above}
    return pd.concat([toy_rows(pool, settings, *each, settings.seeds) for each in asked.items()], ignore_index=True)


def sweep(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """Every method over a range of L0 on TREE, with the seeds of the sweep: does a denser SAE absorb less?"""
    cells = {method: _cell(pool, settings, TREE, method) for method in toy_methods() if method not in ORDERLESS}
    return toy_rows(pool, settings, "sweep", _over_levels(cells, settings), settings.sweep_seeds)


def rho_sweep(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """The temporal penalty on tokens whose features persist with rho: adjacent tokens against the previous batch and
    against the variance penalty that the latter amounts to, each at the true L0. Only the first can change with rho.

    Label 'strong' is `settings.temporal_coefficient`, 'published' the paper's 1e-4. The two that do not see the order
    are matched at rho = 0, where they are the penalty on adjacent tokens; adjacent tokens are matched at each rho.
    """
    strong = toy_config("temporal_strong", TREE, settings)
    published = toy_config("standard", TREE, settings, {"temporal": {}})
    groups: list[Group] = []
    for rho in settings.rhos:
        adjacent = Cell(chain(rho), strong), Cell(chain(rho), published), Cell(TREE, strong)
        at_rho, published_at, at_zero = match_l0(pool, adjacent, settings)
        groups.append(({"method": "temporal_strong", "label": "strong"}, adjacent[0], at_rho))
        groups.append(({"method": "temporal_strong", "label": "published"}, adjacent[1], published_at))
        for method in ORDERLESS:
            cell = Cell(chain(rho), toy_config(method, TREE, settings))
            groups.append(({"method": method, "label": "strong"}, cell, at_zero))
    return toy_rows(pool, settings, "rho", groups, settings.seeds).assign(toy="chain")


def factorial(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """TemporalSAE's three mechanisms, each on or off, on TREE with the temporal coefficient at which it matters.

    All cells have the L1 coefficient at which the full method meets the true L0: what a mechanism does to L0 is part of
    its effect.
    """
    full = toy_config("temporal_sae", TREE, settings, {"temporal": {"coefficient": settings.temporal_coefficient}})
    (value,) = match_l0(pool, [Cell(TREE, full)], settings)
    groups: list[Group] = []
    for switches in itertools.product((False, True), repeat=len(MECHANISMS)):
        on = dict(zip(MECHANISMS, switches, strict=True))
        config = full.model_copy(update={name: None for name, used in on.items() if not used})
        label = " + ".join(name.replace("_", " ") for name, used in on.items() if used) or "none"
        groups.append(({"method": "temporal_sae", "label": label, **on}, Cell(TREE, config), value))
    return toy_rows(pool, settings, "factorial", groups, settings.seeds)


def importance(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """ATM's importance score on TREE: its three parts, each part dropped, and their product instead of their mean; and,
    as `dropout`, uniform masking as often as ATM's. Each at the true L0."""
    variants: dict[str, tuple[dict[str, Any], str | None]] = {"+".join(COMPONENTS): ({}, "nothing")}
    for part in COMPONENTS:
        kept = tuple(other for other in COMPONENTS if other != part)
        variants["+".join(kept)] = ({"components": kept}, part)
    variants["product"] = ({"combine": "product"}, None)
    cells = [Cell(TREE, toy_config("atm", TREE, settings, {"masking": change})) for change, _ in variants.values()]
    cells.append(_cell(pool, settings, TREE, "dropout"))
    named = [("atm", name, dropped) for name, (_, dropped) in variants.items()] + [("dropout", "uniform", None)]
    groups: list[Group] = [
        ({"method": method, "label": name, "importance": name, "dropped": dropped}, cell, value)
        for (method, name, dropped), cell, value in zip(named, cells, match_l0(pool, cells, settings), strict=True)
    ]
    return toy_rows(pool, settings, "importance", groups, settings.seeds)


def rare(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """The Standard SAE at the true L0 where families are rare (RARE): is what is rare absorbed less? And, as experiment
    'resampling', the same with TemporalSAE's resampling: 0.005 as published is above the 0.002 of RARE's children, so
    that latents that do their work are restarted; 1e-5 restarts the dead alone."""
    cell = _cell(pool, settings, RARE, "standard")
    (value,) = match_l0(pool, [cell], settings)
    restarted: list[Group] = []
    for threshold in (None, 1e-5, 0.005):
        change = {"resampling": {"threshold": threshold} if threshold else None}
        changed = Cell(RARE, toy_config("standard", RARE, settings, change))
        label = "none" if threshold is None else f"threshold={threshold:g}"
        restarted.append(({"method": "standard", "label": label}, changed, value))
    asked = {"rare": _labelled([(("standard", cell), value)]), "resampling": restarted}
    return pd.concat([toy_rows(pool, settings, *each, settings.seeds) for each in asked.items()], ignore_index=True)


def field(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """The rest of the field, one row per toy SAE; none where the settings name no field. Experiment 'field': methods at
    the true L0, or as near as they come, on a tree whose children are loud, and on synthetic data in SynthSAEBench's
    shape. 'field_sweep': over a range of L0, with the sweep's seeds, on these, on TREE, and where nothing can be
    absorbed: does a measure that knows no truth rank SAEs as the truth does, and is it silent without?
    """
    if settings.field is None:
        return pd.DataFrame()
    methods = _with_toys("methods", settings.field.methods)
    with ToyPool(folder, workers) as pool:
        parts = [field_matched(pool, settings, toy, methods) for toy in (LOUD, SMALL)]
        ranked = (TREE, LOUD, SMALL, SHUFFLED, SIMILAR, FLAT) if settings.field.ranked else ()
        parts += [field_sweep(pool, settings, toy) for toy in ranked]
    return pd.concat(parts, ignore_index=True)


def challengers(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """The settings' challengers on both toys of `field`, and on TREE beside the methods of `TO_BEAT`: more rows of
    experiment 'field'."""
    if settings.field is None or not settings.field.challengers:
        return pd.DataFrame()
    ours = _with_toys("challengers", settings.field.challengers)
    asked = {LOUD: ours, SMALL: ours, TREE: (*TO_BEAT, *ours)}
    with ToyPool(folder, workers) as pool:
        parts = [field_matched(pool, settings, toy, methods) for toy, methods in asked.items()]
    return pd.concat(parts, ignore_index=True)


def _with_toys(name: str, asked: tuple[str, ...]) -> tuple[str, ...]:
    known = [method for method in METHODS if METHODS[method].toy_rate is not None]
    if unknown := [method for method in asked if method not in known]:
        raise ArtifactError(f"ablations.toy.field.{name}: no toy for '{unknown[0]}'; known: {', '.join(known)}")
    return asked


def field_matched(pool: ToyPool, settings: ToyConfig, toy: Toy, methods: Sequence[str]) -> pd.DataFrame:
    """Methods of the field at the true L0 of `toy`, with every seed."""
    sized, cells = at_size(settings, toy), _field_cells(settings, toy, methods)
    values = match_l0(pool, [*cells.values()], sized, train_and_recover)
    groups = _labelled(zip(cells.items(), values, strict=True))
    return toy_rows(pool, sized, "field", groups, sized.seeds, train_and_recover)


def field_sweep(pool: ToyPool, settings: ToyConfig, toy: Toy) -> pd.DataFrame:
    """Every method of the field over a range of L0 on `toy`, with the seeds of the sweep."""
    assert settings.field is not None
    sized = at_size(settings, toy)
    groups = _over_levels(_field_cells(settings, toy, settings.field.methods), sized)
    return toy_rows(pool, sized, "field_sweep", groups, sized.sweep_seeds, train_and_recover)


def _field_cells(settings: ToyConfig, toy: Toy, methods: Sequence[str]) -> dict[str, Cell]:
    sized, share = at_size(settings, toy), settings.field.rate if settings.field and _is_large(toy) else 1.0
    rates = {method: share * (METHODS[method].toy_rate or 0.0) for method in methods}
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
