"""The ground-truth study: what each method does where the true features are known. Each function gives tidy rows.

The toys' tokens come in sequences, so the temporal penalty has adjacent tokens on TREE as well; there rho is 0.

Columns of every row: experiment, toy, method, label, seed, rho, sparsity (the l1_coefficient, k or target_l0 it was
trained with), l0_ratio (l0 / true_l0: how close the match came), and the metrics of `score.toy_metrics` and
`training.train_and_score`; temporal_coefficient (NaN without a penalty). Of some: temporal, resampling and
gradient_scaling (factorial); importance and the part dropped from it ('nothing', None for other scores).

What absorption looks like: which latents fire on which inputs of a family, and where their decoder rows point.

Methods compared at one L0, the true one: the sparsity of each is chosen by a sweep with seeds of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import PAIR, RARE, TREE, Toy, chain
from sae_lib.metrics.toy.methods import at_level, crossing, toy_config, toy_methods, whole_l0
from sae_lib.metrics.toy.pool import ToyPool, Work
from sae_lib.metrics.toy.score import decoder_cosines, held_out, match_latents
from sae_lib.metrics.toy.training import ToyRun, train_and_score, train_toy


class Cell(NamedTuple):
    """What is matched: a configuration, whatever its sparsity, on a toy."""

    toy: Toy
    config: SAEConfig


def levels(cell: Cell, settings: ToyConfig) -> tuple[float, ...]:
    """The values of the cell's sparsity in the sweep."""
    if not _has_l1(cell):
        return settings.k_levels
    return tuple(cell.config.l1_scale * value for value in settings.l1_levels)


def runs_of(cell: Cell, value: float, seeds: Iterable[int], settings: ToyConfig) -> list[ToyRun]:
    """A cell at one sparsity, with each seed."""
    config = at_level(cell.config, value)
    return [ToyRun(cell.toy, config, seed, settings.steps, settings.batch) for seed in seeds]


def match_l0(pool: ToyPool, cells: Sequence[Cell], settings: ToyConfig, work: Work = train_and_score) -> list[float]:
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
        metrics = iter(pool.run([run for each in runs for run in each], "sweep", work))
        l0 = {place: float(np.mean([next(metrics)["l0"] for _ in settings.sweep_seeds])) for place in asked}
        for cell, values in tried.items():
            found = crossing(values, [l0[cell, value] for value in values], cell.toy.true_l0)
            chosen[cell] = round(found, 6)
            tried[cell] = sorted({*values, chosen[cell]})
    return [chosen[cell] if cell in chosen else _told(cell) for cell in cells]


def _has_l1(cell: Cell) -> bool:
    return cell.config.knob == "l1_coefficient"


def _told(cell: Cell) -> float:
    if cell.config.knob == "target_l0":
        return cell.toy.true_l0
    return whole_l0(cell.toy)


def train_and_picture(run: ToyRun) -> dict[str, float]:
    """Train; `family_picture` with "kind/row/latent" as the name of each value."""
    frame = family_picture(train_toy(run)[0], run.toy)
    return {"/".join(place): value for *place, value in frame.itertuples(index=False)}


@torch.no_grad()
def family_picture(sae: Autoencoder, toy: Toy) -> pd.DataFrame:
    """What the latents of one family do, mean over the families of the toy.

    Returns:
        kind, row, latent, value. kind 'activation': mean activation of the latent of feature `latent` on inputs of kind
        `row` ('parent only', 'parent + child 1' ... 'none'). kind 'cosine': cosine of the decoder row of the latent of
        feature `latent` and the direction of feature `row`.
    """
    x, activations = held_out(toy)
    f = sae.encode(x)
    latent = match_latents(f, activations)
    cosine = decoder_cosines(sae, toy.directions())[latent]
    rows: list[tuple[str, str, str, float]] = []
    for parent, children in toy.children.items():
        family = {"parent": parent} | {f"child {i + 1}": child for i, child in enumerate(children)}
        on = activations > 0
        inputs = {"parent only": on[:, parent] & ~on[:, children].any(dim=1)}
        inputs |= {f"parent + child {i + 1}": on[:, child] for i, child in enumerate(children)}
        inputs["none"] = ~on[:, parent]
        means = {row: f[chosen][:, latent].mean(dim=0) for row, chosen in inputs.items()}
        rows += [("activation", row, name, float(means[row][i])) for row in means for name, i in family.items()]
        rows += [("cosine", row, name, float(cosine[i, j])) for row, j in family.items() for name, i in family.items()]
    frame = pd.DataFrame(rows, columns=["kind", "row", "latent", "value"])
    return frame.groupby(["kind", "row", "latent"], sort=False, as_index=False)["value"].mean()


PAIR_METHODS = ("standard", "atm", "dropout")
MECHANISMS = ("temporal", "resampling", "gradient_scaling")
# On tokens without order these are the same penalty as that on adjacent tokens: one L1 coefficient serves all three.
ORDERLESS = {"temporal_previous": "temporal_strong", "variance": "temporal_strong"}
Group = tuple[dict[str, Any], Cell, float]  # columns of its rows, what is trained, at which sparsity


def ground_truth(folder: Path | str, settings: ToyConfig, workers: int = 1) -> pd.DataFrame:
    """All experiments, one row per toy SAE. `folder` keeps what is finished: a second call trains nothing."""
    with ToyPool(folder, workers) as pool:
        experiments = (sweep, matched, rho_sweep, factorial, importance, rare)
        parts = [experiment(pool, settings) for experiment in experiments]
    return pd.concat(parts, ignore_index=True)


def absorption_picture(
    folder: Path | str,
    settings: ToyConfig,
    workers: int = 1,
    methods: Sequence[str] = ("standard", "atm", "dropout"),
) -> pd.DataFrame:
    """What the latents and decoder rows of the SAEs of `matched` on TREE have become: method, seed and the columns of
    `picture.family_picture`."""
    with ToyPool(folder, workers) as pool:
        cells = [_cell(pool, settings, TREE, method) for method in methods]
        values = match_l0(pool, cells, settings)
        runs = [runs_of(cell, value, settings.seeds, settings) for cell, value in zip(cells, values, strict=True)]
        found = iter(pool.run([run for each in runs for run in each], "picture", train_and_picture))
    rows = [
        (method, seed, *place.split("/"), value)
        for method in methods
        for seed in settings.seeds
        for place, value in next(found).items()
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "kind", "row", "latent", "value"])


def matched(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """Every method at the true L0 of the toy, as near as it can come: on TREE, and a few on PAIR.

    The true L0 of TREE (1.12) lies between two whole numbers k: the rows of experiment 'matched' have k = 1, and those
    of experiment 'next_k' k = 2.
    """
    groups: list[Group] = []
    for toy, methods in ((TREE, toy_methods()), (PAIR, PAIR_METHODS)):
        cells = {method: _cell(pool, settings, toy, method) for method in methods}
        stands_for = [_cell(pool, settings, toy, ORDERLESS.get(method, method)) for method in methods]
        for (method, cell), value in zip(cells.items(), match_l0(pool, stands_for, settings), strict=True):
            groups.append(({"method": method, "label": cell_label(cell, value)}, cell, value))
    above = [(c | {"label": "k=2"}, cell, 2.0) for c, cell, _ in groups if cell.config.knob == "k"]
    frames = [
        toy_rows(pool, settings, "matched", groups, settings.seeds),
        toy_rows(pool, settings, "next_k", above, settings.seeds),
    ]
    return pd.concat(frames, ignore_index=True)


def sweep(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """Every method over a range of L0 on TREE, with the seeds of the sweep: does a denser SAE absorb less?"""
    cells = {method: _cell(pool, settings, TREE, method) for method in toy_methods() if method not in ORDERLESS}
    groups: list[Group] = [
        ({"method": method, "label": cell_label(cell, value)}, cell, value)
        for method, cell in cells.items()
        for value in levels(cell, settings)
    ]
    return toy_rows(pool, settings, "sweep", groups, settings.sweep_seeds)


def rho_sweep(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """The temporal penalty on tokens whose features persist with rho: adjacent tokens against the previous batch and
    against the variance penalty that the latter amounts to, each at the true L0. A penalty that uses the order of the
    tokens changes with rho on adjacent tokens, and not on the others.

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

    All cells have the L1 coefficient at which the full method meets the true L0: what a mechanism does to sparsity is
    part of its effect, and L0 stands beside it.
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
    variants: dict[str, dict[str, Any]] = {"+".join(COMPONENTS): {}}
    dropped = {"+".join(COMPONENTS): "nothing"}
    for part in COMPONENTS:
        kept = tuple(other for other in COMPONENTS if other != part)
        variants["+".join(kept)] = {"components": kept}
        dropped["+".join(kept)] = part
    variants["product"] = {"combine": "product"}
    cells = {name: Cell(TREE, toy_config("atm", TREE, settings, {"masking": m})) for name, m in variants.items()}
    cells["uniform"] = _cell(pool, settings, TREE, "dropout")
    groups: list[Group] = [
        (
            {
                "method": "dropout" if name == "uniform" else "atm", "label": name, "importance": name,
                "dropped": dropped.get(name),
            },
            cell,
            value,
        )
        for (name, cell), value in zip(cells.items(), match_l0(pool, [*cells.values()], settings), strict=True)
    ]  # fmt: skip
    return toy_rows(pool, settings, "importance", groups, settings.seeds)


def rare(pool: ToyPool, settings: ToyConfig) -> pd.DataFrame:
    """The Standard SAE at the true L0 where families are rare (RARE): is what is rare absorbed less? And, as experiment
    'resampling', the same with TemporalSAE's resampling: 0.005 as published is above the 0.002 of RARE's children, so
    that latents that do their work are restarted; 1e-5 restarts the dead alone."""
    cell = _cell(pool, settings, RARE, "standard")
    (value,) = match_l0(pool, [cell], settings)
    alone: list[Group] = [({"method": "standard", "label": cell_label(cell, value)}, cell, value)]
    restarted: list[Group] = []
    for threshold in (None, 1e-5, 0.005):
        change = {"resampling": {"threshold": threshold} if threshold else None}
        changed = Cell(RARE, toy_config("standard", RARE, settings, change))
        label = "none" if threshold is None else f"threshold={threshold:g}"
        restarted.append(({"method": "standard", "label": label}, changed, value))
    frames = [
        toy_rows(pool, settings, "rare", alone, settings.seeds),
        toy_rows(pool, settings, "resampling", restarted, settings.seeds),
    ]
    return pd.concat(frames, ignore_index=True)


def cell_label(cell: Cell, value: float) -> str:
    return f"{cell.config.knob.replace('l1_coefficient', 'l1')}={value:g}"


def _cell(pool: ToyPool, settings: ToyConfig, toy: Toy, method: str) -> Cell:
    """A method on a toy; uniform dropout masks as often as ATM does at its matched sparsity."""
    if method != "dropout":
        return Cell(toy, toy_config(method, toy, settings))
    atm = Cell(toy, toy_config("atm", toy, settings))
    (value,) = match_l0(pool, [atm], settings)
    found = pool.run(runs_of(atm, value, settings.sweep_seeds, settings), "mask rate")
    rate = float(np.mean([metrics["mask_rate"] for metrics in found]))
    return Cell(toy, toy_config(method, toy, settings, {"dropout": {"probability": round(rate, 3)}}))


def toy_rows(
    pool: ToyPool,
    settings: ToyConfig,
    experiment: str,
    groups: list[Group],
    seeds: Iterable[int],
    work: Work = train_and_score,
) -> pd.DataFrame:
    """Train every group with every seed; one row each."""
    jobs = [(columns, run, value) for columns, cell, value in groups for run in runs_of(cell, value, seeds, settings)]
    found = pool.run([run for _, run, _ in jobs], experiment, work)
    rows = []
    for (columns, run, value), metrics in zip(jobs, found, strict=True):
        temporal = run.config.get("temporal")
        rows.append(
            {"experiment": experiment, "toy": run.toy.name, "seed": run.seed, "rho": run.toy.rho, "sparsity": value}
            | columns
            | metrics
            | {"l0_ratio": metrics["l0"] / metrics["true_l0"]}
            | {"temporal_coefficient": temporal.coefficient if temporal else np.nan}
        )
    return pd.DataFrame(rows)
