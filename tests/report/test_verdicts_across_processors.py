"""Verdicts hold on any processor: from the same run on another one, and with every row moved by the difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from sae_lib.profiles.profile import load_profile
from sae_lib.report.claims.file import load_claims
from sae_lib.report.claims.ledger import VERDICT_COLUMNS, evaluate_claims
from sae_lib.report.results import Results
from sae_lib.util.files import read_json
from sae_lib.util.paths import ROOT

POCKET = load_profile("pocket")
FIGURES = ROOT / "figures"
OTHER = ROOT.parent / "shared" / "cross" / "pocket-amd-epyc"
# What was chosen before a run, so no processor moves it.
SETTINGS = {"c", "r", "rho", "temporal_coefficient", "resampling_threshold", "k", "target_l0", "l1_coefficient"}
# The difference between the two processors as a share of the spread over seeds: root mean squares over the SAEs of the
# claims; of `history`, of the log loss itself.
DIFFERENCE = {
    "absorption_fraction": 0.40, "absorption_full": 0.43, "explained_variance": 0.09, "ce_score": 0.29, "cosine": 0.31,
    "probing_k1": 0.45, "probing_k5": 0.35, "num_split_features": 0.58, "context_firing": 0.49, "dead_fraction": 0.17,
    "l0": 0.11, "l1": 0.14,
}  # fmt: skip
# On toy data hardly any SAE but TemporalSAE's was another.
ON_TOYS = {
    "parent_silent_rate": 0.45, "cos_child_parent": 0.05, "cos_parent_parent": 0.05, "explained_variance": 0.007,
    "top_share": 0.08, "alpha_loss_correlation": 0.39,
}  # fmt: skip
LOG_LOSS = {True: 0.023, False: 0.013}  # of TemporalSAE, whose latents start again; of the others


def moved_columns(table: pd.DataFrame) -> Iterator[str]:
    yield from (name for name in table if table[name].dtype == np.float64 and name not in SETTINGS)


def places(table: pd.DataFrame) -> pd.MultiIndex:
    """What a row is about, and the how manieth of its kind it is."""
    keys = [name for name in ("experiment", "group", "method", "label", "seed", "step", "letter") if name in table]
    of_row = table[keys].astype(str)
    number = of_row.groupby(keys).cumcount() if len(of_row) else 0
    return pd.MultiIndex.from_frame(of_row.assign(number=number))


def verdicts(results: Results) -> pd.DataFrame:
    # Claims that the paper's own numbers decide are the same on any processor.
    claims = [claim for claim in load_claims() if claim.data_check or claim.toy_check]
    return evaluate_claims(POCKET, results, claims).set_index("id")[list(VERDICT_COLUMNS)]


@pytest.fixture(scope="module")
def committed() -> Results:
    return Results.load(FIGURES / "results")


@pytest.fixture(scope="module")
def expected() -> pd.DataFrame:
    content = read_json(FIGURES / "verdicts_pocket.json")["verdicts"]
    table = pd.DataFrame(content).T[list(VERDICT_COLUMNS)]
    return table.loc[[claim.id for claim in load_claims() if claim.data_check or claim.toy_check]].rename_axis("id")


@pytest.mark.skipif(not OTHER.is_dir(), reason="the run on another make of processor is not here")
@pytest.mark.parametrize(("ours", "other"), [(0.0, 1.0), (2.0, -1.0), (-1.0, 2.0)])
def test_the_same_verdicts_from_another_processor(
    committed: Results, expected: pd.DataFrame, ours: float, other: float
) -> None:
    """From the other one's rows, from ours moved away from them by the difference, and from theirs moved away; without
    the SAEs that the other run did not have."""
    theirs, mixed = Results.load(OTHER), {}
    for each in fields(Results):
        mine, table = getattr(committed, each.name).copy(), getattr(theirs, each.name)
        place, there = places(mine), places(table)
        both = place.isin(there)
        assert both.sum() >= 0.9 * len(table), "another order of rows"
        table = table.set_index(there).reindex(place[both])
        for name in (name for name in moved_columns(mine) if name in table):
            mine.loc[both, name] = ours * mine.loc[both, name] + other * table[name].to_numpy()
        mixed[each.name] = mine
    pd.testing.assert_frame_equal(verdicts(Results(**mixed)), expected)


def test_the_same_verdicts_with_as_much_noise(committed: Results, expected: pd.DataFrame) -> None:
    """Without the other run: noise of the size that the difference had, in every SAE. A verdict may turn in one draw of
    twenty, as an interval of 95 % may miss."""
    turned = sum(
        (verdicts(noisy(committed, np.random.default_rng(draw))) != expected).astype(int) for draw in range(20)
    )
    assert (turned <= 1).all(axis=None), turned[(turned > 1).any(axis=1)]


def noisy(committed: Results, rng: np.random.Generator) -> Results:
    evaluation, toys, history = committed.evaluation.copy(), committed.toy_summary.copy(), committed.history.copy()
    for table, shares, cell in (
        (evaluation, DIFFERENCE, ["group", "method", "label"]),
        (toys, ON_TOYS, ["experiment", "toy", "method", "temporal", "resampling", "gradient_scaling", "dropped"]),
    ):
        for name, share in shares.items():
            spread = table.groupby(cell, dropna=False)[name].transform("std").fillna(0.0)
            moved = 1.0 if table is evaluation else table["method"] == "temporal_sae"
            table[name] += share * spread * moved * rng.standard_normal(len(table))
    restarted = (history["method"] == "temporal_sae").map(LOG_LOSS)
    history["reconstruction"] *= np.exp(restarted * rng.standard_normal(len(history)))
    pairs = committed.seed_stability.copy()
    pairs["matched_cosine"] += 0.0004 * rng.standard_normal(len(pairs))
    state = {**vars(committed), "evaluation": evaluation, "toy_summary": toys, "history": history}
    return Results(**state | {"seed_stability": pairs})
