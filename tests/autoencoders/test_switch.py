from typing import Any

import pytest
import torch

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.switch import Switch, at_width, encoder_flops
from sae_lib.metrics.toy.data import TREE
from sae_lib.metrics.toy.methods import toy_config
from tests.autoencoders.test_autoencoders import random_sae, rows
from tests.tiny_training import make_step


def config(**changes: Any) -> Any:
    return sae_config({"architecture": "switch", "d_sae": 4, "k": 1, "experts": 2, "auxk_coefficient": 0.0} | changes)


def by_hand(**changes: Any) -> Switch:
    """Two experts of two latents; the second one takes rows whose first input is under 1."""
    sae = build_autoencoder(config(**changes), d_in=2)
    assert isinstance(sae, Switch)
    sae.W_enc.data = torch.tensor([[1.0, 2.0, 1.0, -1.0], [0.0, 1.0, 1.0, 5.0]])
    sae.W_router.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    sae.b_router.data = torch.tensor([1.0, 0.0])
    return sae


def test_one_expert_codes_a_row_by_hand():
    sae, x = by_hand(), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    # Logits sqrt 2 (1, 0) and sqrt 2 (-1, 0): p of the chosen one 1 / (1 + e^-sqrt 2) both times.
    p = 1 / (1 + 2.718281828 ** -(2**0.5))
    torch.testing.assert_close(sae.route(x), torch.tensor([[p, 1 - p], [1 - p, p]]))
    # Pre-activations (2, 5, 3, 3) and (0, 1, 1, 5).
    torch.testing.assert_close(sae.encode(x), torch.tensor([[0.0, 5 * p, 0, 0], [0, 0, 0, 5 * p]]))
    step = make_step(torch.zeros(2, 4), x=x)
    torch.testing.assert_close(sae.encode_training(step).dense(), sae.encode(x), msg="the same in training")


def test_the_balance_of_the_experts_by_hand():
    sae, x = by_hand(balance_coefficient=3.0), torch.tensor([[2.0, 1.0], [0.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    step = make_step(torch.zeros(4, 4), x=x)
    sae.encode_training(step)
    loss = sae.auxiliary_loss(step)
    p = 1 / (1 + 2.718281828 ** -(2**0.5))
    first = (3 * p + 1 - p) / 4
    assert float(loss.detach()) == pytest.approx(3.0 * 2 * (0.75 * first + 0.25 * (1 - first)))
    loss.backward()
    # Less of the first expert, which is the busier one, and nothing else has a gradient.
    assert sae.W_router.grad is not None and sae.W_router.grad[0, 0] > 0 > sae.W_router.grad[0, 1]
    assert sae.W_enc.grad is None and sae.W_dec.grad is None


def test_the_router_learns_through_its_factor():
    sae, x = by_hand(), torch.tensor([[2.0, 1.0]])
    sae.encode_training(make_step(torch.zeros(1, 4), x=x)).dense().sum().backward()
    p = 1 / (1 + 2.718281828 ** -(2**0.5))
    # f = 5 p: d f / d logit = 5 p (1 - p), logit = sqrt 2 (x - b) W.
    assert sae.W_router.grad is not None
    expected = 5 * p * (1 - p) * 2**0.5
    torch.testing.assert_close(sae.W_router.grad, torch.tensor([[1.0, -1.0], [1.0, -1.0]]) * expected)


def test_the_first_batch_sets_both_offsets():
    sae = build_autoencoder(config(), d_in=2)
    sae.initialise(torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]]))
    assert isinstance(sae, Switch) and torch.equal(sae.b_router, sae.b_dec) and sae.b_dec.any()


def test_auxk_is_added_where_it_is_asked_for():
    x, dead = rows(), torch.arange(12) % 2 == 0
    values = []
    for coefficient in (0.0, 1.0):
        sae = random_sae("switch", auxk_coefficient=coefficient)
        step = make_step(torch.zeros(40, 12), x=x, dead=dead, any_dead=True)
        step.f = sae.encode_training(step)
        step.x_hat = sae.decode_training(step)
        loss = sae.auxiliary_loss(step)
        assert loss is not None
        values.append(float(loss.detach()))
    assert values[1] > values[0] + 0.1


@pytest.mark.parametrize(
    ("changes", "message"), [({"experts": 3}, "no multiple of experts = 3"), ({"k": 3}, "above the 2 latents of one")]
)
def test_experts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_experts_at_the_width_of_a_dictionary():
    found = {d_sae: at_width(d_sae)["experts"] for d_sae in (16, 20, 48, 128, 1024)}
    assert found == {16: 2, 20: 2, 48: 4, 128: 8, 1024: 8}
    assert toy_config("switch", TREE).get("experts") == 2


def test_flops_of_the_encoder():
    assert encoder_flops(768, 24576) == 2 * 768 * 24576, "TopK"
    assert encoder_flops(768, 24576, 8) == 2 * 768 * (3072 + 8)
