import math

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from tests.tiny_training import make_step


def by_hand(**config: object) -> Autoencoder:
    """Two inputs, three latents. Of (2, 1), x - b_dec is (1, 2) and u is (1, 4, 1)."""
    settings = {"architecture": "gated", "d_sae": 3, "subtract_b_dec": True} | config
    sae = build_autoencoder(sae_config(settings), d_in=2)
    weights = {
        "W_enc": torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]]),
        "b_gate": torch.tensor([0.5, -5.0, 1.0]),
        "b_mag": torch.tensor([1.0, 0.0, -9.0]),
        "r_mag": torch.tensor([math.log(3.0), 0.0, 0.0]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
        "b_dec": torch.tensor([1.0, -1.0]),
    }
    sae.load_state_dict(weights)
    return sae


X = torch.tensor([[2.0, 1.0]])


def test_gate_and_magnitude_by_hand():
    sae = by_hand()
    # Gates 1.5, -1 and 2; magnitudes 3 x 1 + 1, 4 and -8.
    torch.testing.assert_close(sae.encode(X), torch.tensor([[4.0, 0.0, 0.0]]))
    torch.testing.assert_close(sae(X), torch.tensor([[5.0, -1.0]]))
    torch.testing.assert_close(by_hand(subtract_b_dec=False).pre_activations(X), torch.tensor([[2.0, 2.0, -1.0]]))


def test_losses_by_hand():
    sae = by_hand(l1_coefficient=0.1, sparsity_warmup_steps=10)
    step = make_step(torch.zeros(1, 3), x=X, pre=sae.pre_activations(X), index=5)
    sae.activate_training(step)
    sparsity, auxiliary = sae.sparsity_loss(step), sae.auxiliary_loss(step)
    assert sparsity is not None and auxiliary is not None
    assert float(sparsity.detach()) == pytest.approx(0.5 * 0.1 * (1.5 + 2.0)), "the gate's activations, half warmed up"
    # The gate alone reconstructs 1.5 (1, 0) + 2 (.6, .8) + (1, -1) = (3.7, .6).
    assert float(auxiliary.detach()) == pytest.approx(1.7**2 + 0.4**2)
    (sparsity + auxiliary).backward()
    assert sae.W_dec.grad is None and sae.get_parameter("r_mag").grad is None
    assert sae.get_parameter("b_mag").grad is None, "the penalty does not shrink magnitudes"
    gate = sae.get_parameter("b_gate").grad
    # d/d gate_0 = 0.05 + 2 (1.7, -0.4).(1, 0), and with (.6, .8) for the third; the second is closed.
    assert gate is not None and gate.tolist() == pytest.approx([0.05 + 3.4, 0.0, 0.05 + 2 * (1.02 - 0.32)], rel=1e-5)


def test_b_dec_gets_no_gradient_from_the_frozen_decoder():
    """Only through the encoder, -W_enc summed over the open gates' gradients."""
    sae = by_hand()
    step = make_step(torch.zeros(1, 3), x=X, pre=sae.pre_activations(X))
    sae.activate_training(step)
    auxiliary = sae.auxiliary_loss(step)
    assert auxiliary is not None
    auxiliary.backward()
    through_gate = torch.tensor([3.4, 0.0, 1.4])
    assert sae.b_dec.grad is not None
    torch.testing.assert_close(sae.b_dec.grad, -sae.W_enc.detach() @ through_gate)
