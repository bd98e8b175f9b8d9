"""The tidy tables of one profile, as the notebooks leave them, and which of their rows belong to which comparison."""

# `_table` gives a field, which is a default like any other.
# ruff: noqa: RUF009

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from sae_lib.mechanisms import methods
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.profiles.profile import Profile
from sae_lib.report.names import MECHANISMS, NOT_MEASURABLE, in_order
from sae_lib.report.statistics import Interval, difference, pair_values, seeds_of, t_interval
from sae_lib.util.errors import ArtifactError

Made = TypeVar("Made")

# SAEs within this factor of a common L0 stand at matched L0.
MATCHED_L0 = 1.25
# What is dropped from ATM's importance (column `dropped`) -> the name of the row.
DROPPED: dict[str, str] = {"nothing": "all parts"} | {part: f"without {part}" for part in COMPONENTS}
# The groups of methods at one L0 and of what they are held against.
BESIDE = ("main", "untrained", "control")
PAIR_METRICS = ("matched_cosine", "max_cosine", "share_matched")  # columns of seed_stability
# A table is one file, or one of each notebook that trains SAEs; toys are of the field, and of its challengers.
PARTS = ("", "_main", "_ablations", "_challengers")


def _table(*keys: str) -> Any:
    """A table with these columns at least: empty where it was not made."""
    return field(default_factory=lambda: pd.DataFrame(columns=list(keys)), metadata={"keys": keys})


@dataclass
class Results:
    """`evaluation`: one row per SAE; `letters`, `endings`: per SAE and first letter or ending of words; `density`:
    firing-rate histograms; `history`: training logs; `trajectory`: absorption at some of a run's steps; `toy`,
    `toy_summary`: SAEs on data with known features; `probe`: the language model's ground-truth probe by letter;
    `planted`: per SAE and share of words that were made absorbed; `carriers`: what taking latents out of words costs;
    `circuits`, `perturbation`: how much of spelling goes through n latents, what probes lose without them; `masked`: as
    `evaluation`, by the share of tokens that were hidden; `interpretation`: how well latents are told from examples."""

    evaluation: pd.DataFrame = _table("run", "group", "method", "label", "seed")
    letters: pd.DataFrame = _table("run", "group", "method", "label", "seed", "letter", "test_words")
    density: pd.DataFrame = _table("run", "method", "seed", "log10_rate_left", "count")
    history: pd.DataFrame = _table("run", "group", "method", "seed", "step")
    probing_tasks: pd.DataFrame = _table("run", "group", "method", "label", "seed", "dataset", "task", "k1")
    seed_stability: pd.DataFrame = _table("group", "method", "seed_a", "seed_b")
    toy: pd.DataFrame = _table("method", "seed", "kind", "row", "latent", "value")
    toy_summary: pd.DataFrame = _table("experiment", "toy", "method", "label", "seed")
    probe: pd.DataFrame = _table("letter", "test_words", "probe_f1")
    planted: pd.DataFrame = _table("group", "method", "seed", "planted")
    carriers: pd.DataFrame = _table("group", "method", "seed", "kind")
    circuits: pd.DataFrame = _table("group", "method", "seed", "n")
    layer_groups: pd.DataFrame = _table("layer", "group", "kind", "seed")
    perturbation: pd.DataFrame = _table("group", "method", "seed", "n")
    masked: pd.DataFrame = _table("run", "method", "seed", "masked")
    endings: pd.DataFrame = _table("group", "method", "seed", "ending")
    interpretation: pd.DataFrame = _table("group", "method", "seed")
    trajectory: pd.DataFrame = _table("run", "group", "method", "seed", "step")

    @classmethod
    def load(cls, folder: Path | str) -> Results:
        """Read each table in `folder`, parts one below the other. ArtifactError: no folder, no table, no key column."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ArtifactError(f"results: there is no folder {folder}; run `make paper` at this profile first")
        tables = {}
        for each in fields(cls):
            paths = [folder / f"{each.name}{part}.parquet" for part in PARTS]
            if parts := [_read(path, each.metadata["keys"]) for path in paths if path.is_file()]:
                tables[each.name] = pd.concat(parts, ignore_index=True)
        return cls(**tables)

    def into(self, make: Callable[..., Made], profile: Profile) -> Made:
        """What `make` gives for those of these tables, and of two settings, that its parameters name."""
        settings = {"compare_at": profile.sweep.compare_at, "least_f1": profile.evaluation.absorption.min_probe_f1}
        inputs = vars(self) | settings
        return make(**{name: inputs[name] for name in inspect.signature(make).parameters})

    def seeds(self, group: str, method: str, metric: str) -> pd.Series:
        """`metric` of one method by seed: from `evaluation`, or `seed_stability` if it belongs to pairs of seeds."""
        if metric in PAIR_METRICS:
            pairs = select(self.seed_stability, group, method)
            return pair_values(pairs, metric) if metric in pairs else pd.Series(dtype=float)
        return seeds_of(select(self.evaluation, group, method), metric)


def _read(path: Path, keys: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"results: {path} is no readable parquet table ({error}); remove it and run `make paper` again"
        ) from None
    missing = [column for column in keys if column not in table]
    if missing:
        raise ArtifactError(f"results: {path} has no column {', '.join(missing)}; run `make paper` again")
    return table


def l0_is_matched(values: Iterable[float]) -> bool:
    """Whether there is an L0 from which none of `values` is off by more than `MATCHED_L0`."""
    known = [float(value) for value in values if value > 0]
    return bool(known) and max(known) <= MATCHED_L0**2 * min(known)


def rows_of(table: pd.DataFrame, *groups: str, otherwise: str = "") -> pd.DataFrame:
    """The rows of `groups`. Raises ArtifactError, which says `otherwise`, when there are none."""
    rows = table[table["group"].isin(groups)]
    if rows.empty:
        missing = f"evaluation: no rows of group {' or '.join(groups)}; run notebooks 02 to 04 at this profile"
        raise ArtifactError(otherwise or missing)
    return rows


def select(frame: pd.DataFrame, group: str, method: str) -> pd.DataFrame:
    """The rows of one method in one group; in group `sequence`, method is the paper's run, 'run_1' to 'run_4'."""
    rows, column = frame[frame["group"] == group], "paper_run" if group == "sequence" else "method"
    return rows[rows[column] == method] if column in rows else rows.iloc[:0]


def by_method(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> its rows, in the order of every table."""
    return {method: rows[rows["method"] == method] for method in in_order([*rows["method"]])}


def main_rows(evaluation: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Method -> its rows at matched L0, for the methods of the main table; then those of the controls."""
    rows = rows_of(evaluation, *BESIDE)
    return by_method(rows[rows["method"].isin(methods("main", "field", "control"))])


def toy_rows(toy_summary: pd.DataFrame, experiment: str, toy: str | None = None, otherwise: str = "") -> pd.DataFrame:
    """The rows of an experiment on toy data. Raises ArtifactError without any, where there is something to do."""
    rows = toy_summary[toy_summary["experiment"] == experiment]
    rows = rows if toy is None else rows[rows["toy"] == toy]
    if rows.empty and otherwise:
        raise ArtifactError(f"toy_summary: no rows of experiment '{experiment}'; {otherwise}")
    return rows


def means(rows: pd.DataFrame, keys: list[str], metrics: Iterable[str]) -> pd.DataFrame:
    """One row per group, as they appear, and metric: `keys`, metric, and the interval over seeds."""
    return pd.DataFrame(
        dict(zip(keys, group, strict=True)) | {"metric": metric} | t_interval(seeds_of(part, metric))._asdict()
        for group, part in rows.groupby(keys, sort=False)
        for metric in metrics
    )


def why_empty(rows: pd.DataFrame, metric: str) -> str:
    """What is shown for a `metric` without values, "" with some: not measurable without letters, or not run."""
    if metric in rows and rows[metric].notna().any():
        return ""
    knows_none = "letters" in rows and len(rows) and (pd.to_numeric(rows["letters"]) == 0).all()
    return NOT_MEASURABLE if knows_none else "not run"


def drop_effect(parts: pd.DataFrame, column: str, part: str) -> Interval:
    """`column` without `part` of ATM's importance, minus with all parts, seed by seed; empty without such a column."""
    dropped = parts["dropped"] if "dropped" in parts else pd.Series(None, index=parts.index)
    return difference(seeds_of(parts[dropped == part], column), seeds_of(parts[dropped == "nothing"], column))


def main_effect(rows: pd.DataFrame, column: str, factor: str) -> Interval:
    """Main effect of one of `MECHANISMS` in their full factorial, over seeds: of one seed, the mean of `column` over
    the cells with the mechanism minus that over the cells without it. A seed with a missing cell is left out, since
    its effects would mix; without such columns it is empty."""
    factors = [*MECHANISMS]
    if rows.empty or not {column, *factors} <= set(rows.columns):
        return t_interval([])
    numbers = rows.assign(**{column: pd.to_numeric(rows[column])})
    cells = numbers.groupby(["seed", *factors])[column].mean().unstack(factors)
    cells = cells.dropna() if cells.shape[1] == 2 ** len(factors) else cells.iloc[:0]
    on = cells.columns.get_level_values(factor).astype(bool)
    return t_interval(cells.loc[:, on].mean(axis=1) - cells.loc[:, ~on].mean(axis=1))


def bare(factorial: pd.DataFrame) -> pd.DataFrame:
    """The rows of the factorial's cell in which all of `MECHANISMS` are off."""
    return factorial[~factorial.reindex(columns=[*MECHANISMS]).astype(bool).any(axis=1)]
