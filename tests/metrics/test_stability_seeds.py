"""Two sets of directions, matched one to one."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sae_lib.metrics.stability import seeds
from sae_lib.metrics.stability.seeds import COLUMNS, compare_directions, match_exactly, match_greedily, seed_stability
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae


def at_degrees(*angles: float) -> torch.Tensor:
    """Unit vectors of the plane."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def random_directions(n: int, d_in: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_two_latents_that_share_a_nearest_neighbour():
    found = compare_directions(at_degrees(0, 20), at_degrees(10, 90))
    # Both of a are nearest to 10 degrees; one to one, 20 has to take 90.
    assert found["matched_cosine"] == pytest.approx((cosine(10) + cosine(70)) / 2, abs=1e-6)
    of_a, of_b = cosine(10), (cosine(10) + cosine(70)) / 2
    assert found["max_cosine"] == pytest.approx((of_a + of_b) / 2, abs=1e-6)
    assert found["share_matched"] == 0.5
    assert (found["latents"], found["matching"]) == (2, "exact")


def test_greedy_takes_the_closest_pair_even_where_that_costs_more(monkeypatch):
    a, b = at_degrees(0, 40), at_degrees(35, 85)
    # 40-35 is the closest pair and leaves 0-85; crossing over gives 0-35 and 40-85.
    assert match_greedily(a, b).tolist() == pytest.approx([cosine(5), cosine(85)], abs=1e-6)
    assert sorted(match_exactly(a, b).tolist()) == pytest.approx(sorted([cosine(35), cosine(45)]), abs=1e-6)
    monkeypatch.setattr(seeds, "EXACT_UP_TO", 1)
    found = compare_directions(a, b)
    assert found["matching"] == "greedy"
    assert found["matched_cosine"] == pytest.approx((cosine(5) + cosine(85)) / 2, abs=1e-6)


@pytest.mark.parametrize(("m", "n"), [(6, 6), (4, 6), (6, 4)])
def test_exact_is_the_best_of_all_matchings(m: int, n: int):
    a, b = random_directions(m, 3, 0), random_directions(n, 3, 1)
    small, large = (a, b) if m <= n else (b, a)
    table = (small @ large.T).numpy()
    chosen = itertools.permutations(range(len(large)), len(small))
    best = max(sum(table[i, j] for i, j in enumerate(columns)) for columns in chosen)
    assert match_exactly(a, b).sum().item() == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("m", "n", "elements"), [(40, 40, 2**24), (40, 25, 100), (25, 40, 100)])
def test_greedy_is_one_pair_after_the_other(m: int, n: int, elements: int, monkeypatch):
    monkeypatch.setattr(seeds, "_CHUNK_ELEMENTS", elements)
    a, b = random_directions(m, 5, 2), random_directions(n, 5, 3)
    table, expected = (a.double() @ b.double().T).numpy(), []
    for _ in range(min(m, n)):
        i, j = np.unravel_index(table.argmax(), table.shape)
        expected.append(table[i, j])
        table[i], table[:, j] = -2, -2
    assert sorted(match_greedily(a, b).tolist(), reverse=True) == pytest.approx(expected, abs=1e-6)


def test_greedy_ends_where_all_directions_are_the_same():
    same = at_degrees(30).expand(7, 2)
    assert match_greedily(same, same).tolist() == pytest.approx([1.0] * 7)


def test_the_order_the_scale_and_nothing_else_of_the_decoder_is_free():
    first = make_sae(architecture="standard", d_sae=30, d_in=8, seed=1)
    second = make_sae(architecture="standard", d_sae=30, d_in=8, seed=1)
    with torch.no_grad():
        second.W_dec.copy_(second.W_dec.flip(0) * torch.linspace(0.5, 3, 30)[:, None])
    row = seed_stability({1: first, 2: second}).iloc[0]
    assert row["matched_cosine"] == pytest.approx(1, abs=1e-6) == row["max_cosine"]
    assert row["share_matched"] == 1 and row["latents"] == 30
    with torch.no_grad():
        second.W_dec.neg_()
    assert seed_stability({1: first, 2: second})["share_matched"].item() < 0.5  # a direction and its opposite differ


def test_every_pair_of_seeds_and_what_chance_gives():
    saes = {seed: make_sae(architecture="topk", k=4, d_sae=200, d_in=64, seed=seed) for seed in (44, 42, 43)}
    table = seed_stability(saes)
    assert list(table.columns) == COLUMNS
    assert list(zip(table["seed_a"], table["seed_b"], strict=True)) == [(42, 43), (42, 44), (43, 44)]
    # Random directions: near neighbours, but none above the threshold.
    assert table["matched_cosine"].between(0.2, 0.4).all() and (table["share_matched"] == 0).all()
    assert (table["max_cosine"] > table["matched_cosine"]).all()
    assert seed_stability({42: saes[42]}).empty and list(seed_stability({}).columns) == COLUMNS


def test_dead_latents_are_left_out():
    saes = {seed: make_sae(architecture="standard", d_sae=3, d_in=2) for seed in (1, 2)}
    with torch.no_grad():
        saes[1].W_dec.copy_(at_degrees(0, 90, 45))
        saes[2].W_dec.copy_(at_degrees(90, 200, 5))
    alive = {1: torch.tensor([True, True, False]), 2: torch.tensor([True, True, True])}
    row = seed_stability(saes, alive).iloc[0]
    # 0 takes 5, 90 takes 90; 200 is left over.
    assert row["latents"] == 2 and row["matched_cosine"] == pytest.approx((1 + cosine(5)) / 2, abs=1e-6)
    none = seed_stability(saes, alive | {1: torch.zeros(3, dtype=torch.bool)}).iloc[0]
    assert none["latents"] == 0 and math.isnan(none["matched_cosine"]) and math.isnan(none["share_matched"])


def test_a_decoder_that_is_not_finite_is_refused():
    saes = {seed: make_sae(architecture="standard", d_sae=4, d_in=8) for seed in (1, 2)}
    with torch.no_grad():
        saes[2].W_dec[0, 0] = math.nan
    with pytest.raises(ArtifactError, match="decoder of seed 2"):
        seed_stability(saes)
