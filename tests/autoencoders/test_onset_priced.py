"""What lasts costs less than what begins."""

import pytest
import torch

from sae_lib.autoencoders.build import build_autoencoder
from tests.tiny_training import D_IN, make_step, tiny_config


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_the_penalty_is_l1_less_the_discount_of_what_lasts(discount: float):
    """Latent 0 lasts over rows 0 to 2, latent 1 begins in row 2; row 3 opens another window."""
    f = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 8.0], [16.0, 32.0]], requires_grad=True)
    config = tiny_config("onset_priced", {"l1_coefficient": 2.0, "sparsity_warmup_steps": 0, "discount": discount})
    step = make_step(f, has_predecessor=torch.tensor([False, True, True, False]))
    loss = build_autoencoder(config, D_IN).sparsity_loss(step)
    assert loss is not None and float(loss.detach()) == pytest.approx(2.0 * (63.0 - discount * 6.0) / 4)
    loss.backward()
    # The gradient reaches what lasts, not what was before it.
    assert f.grad is not None and (2 * f.grad).tolist() == [[1, 1], [1 - discount, 1], [1 - discount, 1], [1, 1]]
