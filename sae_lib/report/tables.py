"""Tables of the paper.

Each builder takes the rows of results/evaluation.parquet (or letters.parquet) and returns a `Table`.
Absorption never stands alone: L0, explained variance and CE score are columns of every table that shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sae_lib.profile import Profile
from sae_lib.report.groups import DROPPED, drop_effect, dropped_part, rows_of, sequence_numbers
from sae_lib.report.intervals import Interval, by_seed, main_effects, t_interval
from sae_lib.report.names import MAIN_METHODS, MECHANISMS, METRICS, in_order, method_name
from sae_lib.report.table_files import Table

MAIN_COLUMNS = (
    "l0", "explained_variance", "cosine", "mse", "ce_score", "kl_score",
    "absorption_fraction", "absorption_full", "num_split_features", "dead_fraction", "letters",
)  # fmt: skip
SHORT_COLUMNS = (
    "l0",
    "explained_variance",
    "ce_score",
    "absorption_fraction",
    "absorption_full",
    "dead_fraction",
)
ARROW_NOTE = "↑ higher is better, ↓ lower is better, – neither"


def profile_note(profile: Profile) -> str:
    """Where the numbers of a table or figure come from, in one line."""
    training, data = profile.training, profile.data
    return (
        f"Profile {profile.name}: {profile.model.name}, layer {profile.model.layer}, "
        f"{data.train_tokens / 1e6:.3g} M tokens, {training.steps} steps of {data.batch_tokens} tokens, "
        f"d_sae {training.d_sae}, seeds {', '.join(map(str, training.seeds))}."
    )


def main_table(evaluation: pd.DataFrame) -> Table:
    """Every method at matched L0, and the untrained SAE as a floor."""
    rows = rows_of(evaluation, "main", "untrained")
    main = rows[rows["group"] == "main"]
    named = {method_name(m): main[main["method"] == m] for m in in_order([*main["method"]]) if m in MAIN_METHODS}
    floor = rows[rows["group"] == "untrained"]
    for method in in_order([*floor["method"]]):
        label = "Untrained" if method == "untrained" else f"Untrained ({method_name(method)})"
        named[label] = floor[floor["method"] == method]
    return _table("method", named, MAIN_COLUMNS, f"Methods at matched L0; mean ± sd over seeds. {ARROW_NOTE}.")


def as_written_table(evaluation: pd.DataFrame) -> Table:
    """The papers' own coefficients, whatever they lead to."""
    rows = rows_of(evaluation, "as_written")
    named = {_written_name(part): part for _, part in _split(rows, "method")}
    caption = f"The papers' coefficients as written; mean ± sd over seeds. {ARROW_NOTE}."
    return _table("method", named, (*MAIN_COLUMNS, "final_loss"), caption)


def factorial_table(evaluation: pd.DataFrame) -> Table:
    """The 2x2x2 factorial of TemporalSAE's mechanisms, then the main effect of each with its 95 % t interval."""
    rows = rows_of(evaluation, "factorial")
    factors = list(MECHANISMS)
    named = {}
    for cell, part in rows.groupby(factors, sort=True):
        present = [MECHANISMS[factor] for factor, on in zip(factors, cell, strict=True) if on]
        named[" + ".join(present) or "none"] = part
    caption = (
        "TemporalSAE's mechanisms, every combination: mean ± sd over seeds; below, the main effect of each "
        f"mechanism [95 % t interval over seeds]. {ARROW_NOTE}."
    )
    cells = _table("mechanisms", named, SHORT_COLUMNS, caption)
    columns = [column for column in SHORT_COLUMNS if column in rows]
    effects = {column: main_effects(rows, column, factors) for column in columns}
    return _with_effects(
        cells,
        {f"effect of {MECHANISMS[f]}": {column: effects[column][f] for column in columns} for f in factors},
    )


def sequence_table(evaluation: pd.DataFrame) -> Table:
    """The paper's own sequence of runs, each adding a part to the one before."""
    rows = rows_of(evaluation, "sequence")
    titles = {
        1: "Run 1: temporal penalty",
        2: "Run 2: lower clip norm and coefficient",
        3: "Run 3: + resampling",
        4: "Run 4: + gradient scaling",
    }
    numbers = sequence_numbers(rows)
    named = {title: rows[numbers == number] for number, title in titles.items() if (numbers == number).any()}
    caption = f"TemporalSAE's four runs, section 6.2; mean ± sd over seeds. {ARROW_NOTE}."
    return _table("run", named, (*SHORT_COLUMNS, "num_split_features", "final_loss"), caption)


def sensitivity_table(evaluation: pd.DataFrame) -> Table:
    """TemporalSAE at other values of the two numbers that the paper calls sensitive."""
    rows = rows_of(evaluation, "sensitivity")
    values = ["temporal_coefficient", "resampling_threshold"]
    order = rows.groupby("label")[values].first().reset_index()
    order["varied"] = order["label"].str.startswith("resampling")
    named = {label: rows[rows["label"] == label] for label in order.sort_values(["varied", *values])["label"]}
    caption = f"TemporalSAE with one value changed; mean ± sd over seeds. {ARROW_NOTE}."
    return _table("changed", named, SHORT_COLUMNS, caption)


def atm_table(evaluation: pd.DataFrame) -> Table:
    """ATM with one part of the importance dropped, and over the grid of c and r."""
    rows = rows_of(evaluation, "atm_importance", "atm_grid")
    parts = rows[rows["group"] == "atm_importance"]
    dropped = parts["importance"].map(dropped_part)
    named = {label: parts[dropped == part] for part, label in DROPPED.items() if (dropped == part).any()}
    if (parts["importance"] == "product").any():
        named["product of the parts"] = parts[parts["importance"] == "product"]
    for (c, r), part in rows[rows["group"] == "atm_grid"].groupby(["c", "r"], sort=True):
        named[f"c = {c:g}, r = {r:g}"] = part
    caption = f"ATM's importance score and its c and r; mean ± sd over seeds. {ARROW_NOTE}."
    table = _table("ATM", named, SHORT_COLUMNS, caption)
    columns = [column for column in SHORT_COLUMNS if column in rows]
    effects = {
        f"{label} − all parts": {column: drop_effect(parts, column, part) for column in columns}
        for part, label in DROPPED.items()
        if part and (dropped == part).any() and (dropped == "").any()
    }
    return _with_effects(table, effects)


def letters_table(letters: pd.DataFrame) -> Table:
    """Absorption (fraction) of each letter and method at matched L0, with the number of evaluated words.

    Empty where no letter passed the gate of the ground-truth probe: the language model does not spell.
    """
    main = letters[letters["group"] == "main"]
    words = main.groupby("letter")["true_positives"].mean()
    data, shown = [], {}
    for letter in sorted(words.index):
        of_letter = main[main["letter"] == letter]
        line = {"words": f"{words[letter]:.0f}", "probe F1": f"{of_letter['probe_f1'].mean():.2f}"}
        for method, part in _split(of_letter, "method"):
            interval = t_interval(by_seed(part, "absorption_fraction"))
            line[method_name(method)] = cell(interval, 3)
            data.append(_record(f"{letter}: {method_name(method)}", "absorption_fraction", interval))
        shown[letter] = line
    frame = pd.DataFrame([{"letter": letter, **line} for letter, line in shown.items()]).fillna("–")
    caption = "Absorption (fraction, ↓ lower is better) per letter at matched L0; mean ± sd over seeds."
    return Table(frame, pd.DataFrame(data), caption)


def cell(interval: Interval, decimals: int) -> str:
    """'0.123 ± 0.004', the mean alone for one seed, '–' for none."""
    if interval.n == 0:
        return "–"
    text = f"{interval.mean:.{decimals}f}"
    return text if interval.n == 1 else f"{text} ± {interval.sd:.{decimals}f}"


def _table(first: str, named: dict[str, pd.DataFrame], columns: Iterable[str], caption: str) -> Table:
    """One row for each named set of SAEs, one column for each metric."""
    shown, data = [], []
    for name, part in named.items():
        seeds = part["seed"].nunique()
        line: dict[str, Any] = {first: name, "seeds": str(seeds)}
        for column in columns:
            values = by_seed(part, column) if column in part else []
            interval = t_interval(values)
            line[METRICS[column].header] = cell(interval, METRICS[column].decimals)
            data.append(_record(name, column, interval))
        shown.append(line)
    return Table(pd.DataFrame(shown), pd.DataFrame(data), caption)


def _with_effects(table: Table, effects: dict[str, dict[str, Interval]]) -> Table:
    """`table` with rows of differences below."""
    lines, data = [], []
    for name, of_column in effects.items():
        line = {table.shown.columns[0]: name, "seeds": str(max((i.n for i in of_column.values()), default=0))}
        for column, interval in of_column.items():
            line[METRICS[column].header] = _effect_cell(interval, METRICS[column].decimals)
            data.append(_record(name, column, interval))
        lines.append(line)
    shown = pd.concat([table.shown, pd.DataFrame(lines)], ignore_index=True).fillna("–") if lines else table.shown
    return Table(shown, pd.concat([table.data, pd.DataFrame(data)], ignore_index=True), table.caption)


def _effect_cell(interval: Interval, decimals: int) -> str:
    if interval.n == 0:
        return "–"
    text = f"{interval.mean:+.{decimals}f}"
    return text if interval.n == 1 else f"{text} [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"


def _record(row: str, column: str, interval: Interval) -> dict[str, Any]:
    direction = METRICS[column].direction
    return {"row": row, "n": interval.n, "metric": column, "better": direction, "mean": interval.mean,
            "sd": interval.sd, "low": interval.low, "high": interval.high}  # fmt: skip


def _split(rows: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    return [(value, rows[rows[column] == value]) for value in in_order([*rows[column]])]


def _written_name(part: pd.DataFrame) -> str:
    """A method's name with the sparsity it was given."""
    method = str(part["method"].iloc[0])
    for column, symbol in (("k", "k"), ("target_l0", "target L0"), ("l1_coefficient", "λ1")):
        value = part[column].iloc[0] if column in part else np.nan
        if pd.notna(value) and value > 0:
            return f"{method_name(method)}, {symbol} = {value:g}"
    return method_name(method)
