"""The penalty on encoders that are inhibited along similar decoder rows."""

from __future__ import annotations

import pytest
import torch

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.mechanisms.encoder_consistency import ConsistencyConfig, EncoderConsistency, inhibition
from tests.tiny_training import D_IN, make_step, tiny_config

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
