"""OrtSAE's penalty."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.mechanisms.orthogonality import Orthogonality, OrthogonalityConfig, closest
from sae_lib.metrics.toy.data import TREE
from sae_lib.metrics.toy.methods import toy_config, toy_methods
from sae_lib.training.trainer import Trainer
from tests.tiny_training import D_IN, DATA, make_step, tiny_config, tiny_store, tiny_training

# Cosines: rows 0 and 1 .6, 0 and 2 0, 1 and 2 .8, 3 with 0 -1, with 1 -.6, with 2 0. The norm does not count.
ROWS = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])


def test_the_closest_other_row_by_hand():
    together = (0.6**2 + 0.8**2 + 0.8**2 + 0.0**2) / 4
    assert float(closest(ROWS, torch.arange(4), 1)) == pytest.approx(together)
    # In pairs (0, 1) and (2, 3), then (0, 3) and (1, 2).
    assert float(closest(ROWS, torch.arange(4), 2)) == pytest.approx((2 * 0.6**2 + 2 * 0.0**2) / 4)
    assert float(closest(ROWS, torch.tensor([0, 3, 1, 2]), 2)) == pytest.approx((2 * 1.0 + 2 * 0.8**2) / 4)


def test_its_gradient_is_that_of_all_cosines():
    W = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (found,) = torch.autograd.grad(closest(W, torch.arange(12), 1), W)
    unit = functional.normalize(W, dim=1)
    cosines = unit @ unit.T - 2 * torch.eye(12)
    (expected,) = torch.autograd.grad(cosines.amax(dim=1).square().mean(), W)
    torch.testing.assert_close(found, expected)


def added(index: int, **settings: float) -> Tensor:
    """What it adds to a gradient of ones."""
    sae = build_autoencoder(tiny_config("batchtopk"), D_IN, seed=1)
    sae.W_dec.grad = torch.ones_like(sae.W_dec)
    mechanism = Orthogonality(OrthogonalityConfig.model_validate(settings), sae.d_sae)
    with torch.no_grad():
        mechanism.before_update(sae, make_step(torch.zeros(4, 16), index=index))
    return sae.W_dec.grad - 1


def test_it_is_added_to_the_gradient_on_each_nth_step_n_times():
    once = added(1)
    assert once.abs().max() > 0
    torch.testing.assert_close(added(1, coefficient=1.0), 4 * once, rtol=1e-3, atol=1e-6)
    assert added(4, interval=5).any() == 0
    torch.testing.assert_close(added(5, interval=5), 5 * once, rtol=1e-3, atol=1e-6)


def test_chunks_are_drawn_anew_at_each_step():
    sae = build_autoencoder(tiny_config("batchtopk"), D_IN, seed=1)
    mechanism, step = Orthogonality(OrthogonalityConfig(chunk=4), sae.d_sae), make_step(torch.zeros(4, 16))
    values = set()
    for _ in range(5):
        mechanism.before_update(sae, step)
        values.add(mechanism.log()["orthogonality"])
    whole = Orthogonality(OrthogonalityConfig(), sae.d_sae)
    whole.before_update(sae, step)
    assert len(values) == 5 and max(values) < whole.log()["orthogonality"], "fewer pairs are compared"


def test_trained_rows_point_apart(tmp_path: Path):
    largest = []
    for coefficient in (0.0, 10.0):
        config = tiny_config("ortsae", {"orthogonality": {"coefficient": coefficient}})
        trainer = Trainer(config, tiny_store(tmp_path), DATA, tiny_training(), 0, "cpu")
        for _ in range(40):
            trainer.step()
        largest.append(float(closest(trainer.sae.W_dec.detach(), torch.arange(16), 1)))
        assert trainer.history[-1]["orthogonality"] == pytest.approx(coefficient * largest[-1], rel=0.1)
    assert largest[1] < 0.7 * largest[0]


def test_the_ground_truth_study_trains_no_method_of_the_field():
    assert "ortsae" not in toy_methods() and "batchtopk" in toy_methods()
    assert toy_config("ortsae", TREE).get("orthogonality") is not None, "which can be asked for by name"
