"""The ground-truth study: what each method does where the true features are known. Each function gives tidy rows.

Columns of every row: experiment, toy, method, label, seed, rho, sparsity (the l1_coefficient, k or target_l0 it was
trained with), l0_ratio (l0 / true_l0: how close the match came), temporal_coefficient (NaN without a penalty), and the
metrics of `training.train_and_score`, or, in the rest of the field, of `score.recovery_metrics`. Of some: temporal,
resampling and gradient_scaling (factorial); importance and the part dropped from it ('nothing', None for other scores);
idea (ideas).

Methods are compared at one L0, the true one: the sparsity of each is chosen by a sweep with seeds of its own.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lib.autoencoders.config import SAEConfig
from sae_lib.mechanisms import METHODS
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import LOUD, PAIR, RARE, TREE, Toy, chain
from sae_lib.metrics.toy.methods import at_level, crossing, toy_config, toy_methods
from sae_lib.metrics.toy.synthetic import SMALL, Synthetic
from sae_lib.metrics.toy.training import ToyPool, ToyRun, Work, train_and_picture, train_and_recover, train_and_score
from sae_lib.util.errors import ArtifactError

PAIR_METHODS = ("standard", "atm", "dropout")
TO_BEAT = ("matryoshka", "tree_4", "ortsae", "lista_matryoshka")
MECHANISMS = ("temporal", "resampling", "gradient_scaling")
# On tokens without order these are the same penalty as that on adjacent tokens: one L1 coefficient serves all three.
ORDERLESS = {"temporal_previous": "temporal_strong", "variance": "temporal_strong"}
# What the ideas change: see `ideas`.
ORDERS = ("index", "magnitude", "frequency", "presence")
ORDERED_K = 2  # a parent and its child
WEIGHTS = (0.0, 0.1, 1.0, 10.0)
INHIBITED = ("standard", "jumprelu", "batchtopk")
DISCOUNTS = (0.0, 0.5, 0.9)


class Cell(NamedTuple):
    """What is matched: a configuration, whatever its sparsity, on a toy."""

    toy: Toy
    config: SAEConfig


class Group(NamedTuple):
    """What is trained with every seed."""

    columns: dict[str, Any]
    """Of its rows. Without a label, that is the sparsity."""
    cell: Cell
    at: Cell | float
    """The sparsity, or what it is matched for: mostly the cell itself."""


def levels(cell: Cell, settings: ToyConfig) -> tuple[float, ...]:
    """The values of the cell's sparsity in the sweep."""
    if cell.config.knob != "l1_coefficient":
        return settings.k_levels
    return tuple(cell.config.l1_scale * value for value in settings.l1_levels)


def runs_of(cell: Cell, value: float, seeds: Iterable[int], settings: ToyConfig) -> list[ToyRun]:
    """A cell at one sparsity, with each seed."""
    config = at_level(cell.config, value)
    return [ToyRun(cell.toy, config, seed, settings.steps, settings.batch) for seed in seeds]


def match_l0(
    pool: ToyPool, asked: Sequence[Cell | float], settings: ToyConfig, work: Work = train_and_score
) -> list[float]:
    """For each cell the sparsity at which its L0 comes nearest to the true L0 of its toy; a number is taken as it is.

    Where that is an L1 coefficient, it is interpolated between the levels of the sweep (`crossing`), trained, added to
    the levels and interpolated again, `settings.refinements` times. The others are told it, as `toy_config` has it.
    """
    cells = [cell for cell in asked if isinstance(cell, Cell)]
    tried = {cell: list(levels(cell, settings)) for cell in cells if cell.config.knob == "l1_coefficient"}
    chosen: dict[Cell | float, float] = {cell: cell.config.get(cell.config.knob) for cell in cells}
    for _ in range(settings.refinements + 1):
        places = [(cell, value) for cell, values in tried.items() for value in values]
        runs = [run for cell, value in places for run in runs_of(cell, value, settings.sweep_seeds, settings)]
        metrics = iter(pool.run(runs, "sweep", work))
        l0 = {place: float(np.mean([next(metrics)["l0"] for _ in settings.sweep_seeds])) for place in places}
        for cell, values in tried.items():
            chosen[cell] = round(crossing(values, [l0[cell, value] for value in values], cell.toy.true_l0), 6)
            tried[cell] = sorted({*values, chosen[cell]})
    return [chosen[at] if isinstance(at, Cell) else at for at in asked]


def toy_rows(
    pool: ToyPool,
    settings: ToyConfig,
    experiment: str,
    groups: Sequence[Group],
    seeds: Sequence[int] = (),
    work: Work = train_and_score,
) -> pd.DataFrame:
    """Train every group with every seed of the settings, or with `seeds`; one row each."""
    values = match_l0(pool, [group.at for group in groups], settings, work)
    jobs = [
        (columns, run, value)
        for (columns, cell, _), value in zip(groups, values, strict=True)
        for run in runs_of(cell, value, seeds or settings.seeds, settings)
    ]
    rows = []
    for (columns, run, value), metrics in zip(jobs, pool.run([j[1] for j in jobs], experiment, work), strict=True):
        temporal, knob = run.config.get("temporal"), run.config.knob.replace("l1_coefficient", "l1")
        rows.append(
            {"experiment": experiment, "toy": run.toy.name, "seed": run.seed, "rho": run.toy.rho, "sparsity": value}
            | columns
            | {"label": columns.get("label", f"{knob}={value:g}")}
            | metrics
            | {"l0_ratio": metrics["l0"] / metrics["true_l0"]}
            | {"temporal_coefficient": temporal.coefficient if temporal else np.nan}
        )
    return pd.DataFrame(rows)


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
    groups = [
        Group({"method": method}, *(_cell(pool, settings, toy, m) for m in (method, ORDERLESS.get(method, method))))
        for toy, methods in ((TREE, toy_methods()), (PAIR, PAIR_METHODS))
        for method in methods
    ]
    above = [group._replace(at=2.0) for group in groups if group.cell.config.knob == "k"]
    asked = {"matched": groups, "next_k": above}
    return pd.concat([toy_rows(pool, settings, *each) for each in asked.items()], ignore_index=True)


def sweep(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """Every method over a range of L0 on TREE, with the seeds of the sweep: does a denser SAE absorb less?"""
    cells = {method: _cell(pool, settings, TREE, method) for method in toy_methods() if method not in ORDERLESS}
    groups = [Group({"method": method}, cell, at) for method, cell in cells.items() for at in levels(cell, settings)]
    return toy_rows(pool, settings, "sweep", groups, settings.sweep_seeds)


def rho_sweep(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """The temporal penalty on tokens whose features persist with rho: adjacent tokens against the previous batch and
    against the variance penalty that the latter amounts to, each at the true L0. Only the first can change with rho.

    Label 'strong' is `settings.temporal_coefficient`, 'published' the paper's 1e-4. The two that do not see the order
    are matched at rho = 0, where they are the penalty on adjacent tokens; adjacent tokens are matched at each rho.
    """
    strong = toy_config("temporal_strong", TREE, settings)
    published = toy_config("standard", TREE, settings, {"temporal": {}})
    groups = []
    for toy in map(chain, settings.rhos):
        for label, config in (("strong", strong), ("published", published)):
            groups.append(Group({"method": "temporal_strong", "label": label}, Cell(toy, config), Cell(toy, config)))
        for method in ORDERLESS:
            cell = Cell(toy, toy_config(method, TREE, settings))
            groups.append(Group({"method": method, "label": "strong"}, cell, Cell(TREE, strong)))
    return toy_rows(pool, settings, "rho", groups)


def factorial(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """TemporalSAE's three mechanisms, each on or off, on TREE with the temporal coefficient at which it matters.

    All cells have the L1 coefficient at which the full method meets the true L0: what a mechanism does to L0 is part of
    its effect.
    """
    full = toy_config("temporal_sae", TREE, settings, {"temporal": {"coefficient": settings.temporal_coefficient}})
    groups = []
    for switches in itertools.product((False, True), repeat=len(MECHANISMS)):
        on = dict(zip(MECHANISMS, switches, strict=True))
        config = full.model_copy(update={name: None for name, used in on.items() if not used})
        label = " + ".join(name.replace("_", " ") for name, used in on.items() if used) or "none"
        groups.append(Group({"method": "temporal_sae", "label": label, **on}, Cell(TREE, config), Cell(TREE, full)))
    return toy_rows(pool, settings, "factorial", groups)


def importance(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """ATM's importance score on TREE: its three parts, each part dropped, and their product instead of their mean; and,
    as `dropout`, uniform masking as often as ATM's. Each at the true L0."""
    variants: dict[str, tuple[dict[str, Any], str | None]] = {"+".join(COMPONENTS): ({}, "nothing")}
    for part in COMPONENTS:
        kept = tuple(other for other in COMPONENTS if other != part)
        variants["+".join(kept)] = ({"components": kept}, part)
    variants["product"] = ({"combine": "product"}, None)
    cells = {
        ("atm", name, dropped): Cell(TREE, toy_config("atm", TREE, settings, {"masking": change}))
        for name, (change, dropped) in variants.items()
    }
    cells["dropout", "uniform", None] = _cell(pool, settings, TREE, "dropout")
    groups = [
        Group({"method": method, "label": name, "importance": name, "dropped": dropped}, cell, cell)
        for (method, name, dropped), cell in cells.items()
    ]
    return toy_rows(pool, settings, "importance", groups)


def rare(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """The Standard SAE at the true L0 where families are rare (RARE): is what is rare absorbed less? And, as experiment
    'resampling', the same with TemporalSAE's resampling: 0.005 as published is above the 0.002 of RARE's children, so
    that latents that do their work are restarted; 1e-5 restarts the dead alone."""
    cell = _cell(pool, settings, RARE, "standard")
    restarted = []
    for threshold in (None, 1e-5, 0.005):
        change = {"resampling": {"threshold": threshold} if threshold else None}
        label = "none" if threshold is None else f"threshold={threshold:g}"
        changed = Cell(RARE, toy_config("standard", RARE, settings, change))
        restarted.append(Group({"method": "standard", "label": label}, changed, cell))
    asked = {"rare": [Group({"method": "standard"}, cell, cell)], "resampling": restarted}
    return pd.concat([toy_rows(pool, settings, *each) for each in asked.items()], ignore_index=True)


def field(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """The rest of the field, one row per toy SAE; none where the settings name no field. Experiment 'field': methods at
    the true L0, or as near as they come, on a tree whose children are loud, and on synthetic data in SynthSAEBench's
    shape."""
    if settings.field is None:
        return pd.DataFrame()
    asked = dict.fromkeys((LOUD, SMALL), settings.field.methods)
    return _of_field("methods", asked, folder, settings, workers)


def challengers(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """The settings' challengers on both toys of `field`, and on TREE beside the methods of `TO_BEAT`: more rows of
    experiment 'field'."""
    if settings.field is None or not settings.field.challengers:
        return pd.DataFrame()
    ours = settings.field.challengers
    asked = {LOUD: ours, SMALL: ours, TREE: (*TO_BEAT, *ours)}
    return _of_field("challengers", asked, folder, settings, workers)


def _of_field(
    name: str, asked: Mapping[Toy, Sequence[str]], folder: Path | str, settings: ToyConfig, workers: int
) -> pd.DataFrame:
    known = [method for method in METHODS if METHODS[method].toy_rate is not None]
    if unknown := [method for methods in asked.values() for method in methods if method not in known]:
        raise ArtifactError(f"ablations.toy.field.{name}: no toy for '{unknown[0]}'; known: {', '.join(known)}")
    with ToyPool(folder, workers) as pool:
        return pd.concat([field_matched(pool, settings, *each) for each in asked.items()], ignore_index=True)


def field_matched(pool: ToyPool, settings: ToyConfig, toy: Toy, methods: Sequence[str]) -> pd.DataFrame:
    """Methods of the field at the true L0 of `toy`, with every seed. The synthetic data has steps, levels and learning
    rates of its own."""
    share, own = 1.0, settings.field
    if own is not None and isinstance(toy, Synthetic):
        names = ("steps", "batch", "l1_levels", "k_levels")
        share, settings = own.rate, settings.model_copy(update={name: getattr(own, name) for name in names})
    groups = []
    for method in methods:
        rate = share * (METHODS[method].toy_rate or 0.0)
        cell = Cell(toy, toy_config(method, toy, settings, {"optimizer": {"learning_rate": rate}}))
        groups.append(Group({"method": method}, cell, cell))
    return toy_rows(pool, settings, "field", groups, work=train_and_recover)


def ideas(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """Ideas against absorption, each with what would refute it; one row per toy SAE, none where the settings name no
    field. Experiment 'ideas' has the metrics of `score.recovery_metrics`, the method that an idea changes, and the
    change as label:

    - order: what fills the prefixes of a LISTA-Matryoshka, two latents a row. Where children are loud, firing and
      magnitude should put them first and presence their parents; if firing does as well, presence is not needed.
    - consistency: the weight of the penalty on inhibited encoders. It should end absorption where an encoder does it
      (L1, JumpReLU) at no cost; if it helps BatchTopK as much, which absorbs by selection, that is not why.
    - onset: what lasting latents are let off. It should help the more the longer parents last, and not without order.
    """
    if settings.field is None:
        return pd.DataFrame()
    changed = [*_changed(settings)]
    with ToyPool(folder, workers) as pool:
        values = match_l0(pool, [group.at for group in changed], settings)
        groups = [group._replace(at=value) for group, value in zip(changed, values, strict=True)]
        return toy_rows(pool, settings, "ideas", groups, work=train_and_recover)


def _changed(settings: ToyConfig) -> Iterator[Group]:
    def group(idea: str, toy: Toy, method: str, label: str, change: dict[str, Any]) -> Group:
        cell = Cell(toy, toy_config(method, toy, settings, change))
        return Group({"idea": idea, "method": method, "label": label}, cell, cell)

    for toy in (TREE, LOUD):
        for order in ORDERS:
            yield group("order", toy, "lista_matryoshka", order, {"order": order, "k": ORDERED_K})
        for method in INHIBITED:
            for weight in WEIGHTS:
                penalty = {"encoder_consistency": {"coefficient": weight} if weight else None}
                yield group("consistency", toy, method, f"{weight:g}", penalty)
    for rho in settings.rhos:
        for discount in DISCOUNTS:
            yield group("onset", chain(rho), "onset_priced", f"{discount:g}", {"discount": discount})
