"""OrtSAE's penalty, and that on encoders that are inhibited along similar decoder rows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.mechanisms.pair_penalties import (
    ConsistencyConfig,
    EncoderConsistency,
    Orthogonality,
    OrthogonalityConfig,
    closest,
    inhibition,
)
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


S = 0.5**0.5
DECODER = torch.tensor([[1.0, 0.0], [S, S]])  # a parent, and a child that has absorbed it


def test_absorption_by_hand():
    """e_p = p - c reads nothing off the child: cos (cos - 0) = 1/2, for one of two rows. The norm does not count."""
    absorbing = torch.tensor([[3.0, -3.0], [S, S]])
    assert float(inhibition(absorbing, 2 * DECODER)) == pytest.approx(0.5 / 2)
    # Half of the inhibition: e_p . d_c = 0.5 S.
    assert float(inhibition(torch.tensor([[1.0, -0.5], [S, S]]), DECODER)) == pytest.approx(S * 0.5 * S / 2)


def test_encoders_that_follow_the_decoder_or_read_more_cost_nothing():
    assert float(inhibition(DECODER, DECODER)) == pytest.approx(0.0, abs=1e-7)
    assert float(inhibition(torch.tensor([[1.0, 0.5], [S, S]]), DECODER)) == pytest.approx(0.0, abs=1e-7)
    # Latents that point elsewhere may inhibit one another.
    apart = torch.tensor([[1.0, 0.0], [-S, S]])
    assert float(inhibition(torch.tensor([[1.0, -1.0], [-S, S]]), apart)) == 0.0


def test_the_encoder_alone_is_moved_and_by_its_weight():
    sae = build_autoencoder(tiny_config("standard"), D_IN, seed=1)
    with torch.no_grad():
        sae.W_enc.sub_(0.3 * sae.W_dec.roll(1, 0).T)
    gradients = []
    for weight in (1.0, 3.0):
        sae.W_enc.grad, sae.W_dec.grad = torch.ones_like(sae.W_enc), torch.ones_like(sae.W_dec)
        mechanism = EncoderConsistency(ConsistencyConfig(coefficient=weight), sae.d_sae)
        with torch.no_grad():
            mechanism.before_update(sae, make_step(torch.zeros(4, 16)))
        assert torch.equal(sae.W_dec.grad, torch.ones_like(sae.W_dec))
        gradients.append(sae.W_enc.grad - 1)
        assert mechanism.log()["encoder_consistency"] == pytest.approx(weight * float(mechanism.value))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], 3 * gradients[0], rtol=1e-3, atol=1e-6)
