from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.training.trainer import Trainer
from tests.tiny_training import DATA, make_step, tiny_config, tiny_store, tiny_training


def by_hand(k: int, **changes: Any) -> Autoencoder:
    """Directions (1, 0), (.6, .8) and (0, 1); b_dec (1, 1)."""
    config = {"architecture": "matching_pursuit", "d_sae": 3, "k": k} | changes
    sae = build_autoencoder(sae_config(config), d_in=2)
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    sae.b_dec.data = torch.ones(2)
    return sae


# Less b_dec (4, 3): products 4, 4.8, 3, and what is left of 4.8 (.6, .8) is (1.12, -.84): products 1.12, 0, -.84, and
# what is left of that is (0, -.84), to which no product is positive.
X = torch.tensor([[5.0, 4.0]])


@pytest.mark.parametrize(("k", "expected"), [(1, [0, 4.8, 0]), (2, [1.12, 4.8, 0]), (3, [1.12, 4.8, 0])])
def test_rounds_by_hand(k, expected):
    sae = by_hand(k)
    torch.testing.assert_close(sae.encode(X), torch.tensor([expected], dtype=torch.float32))
    torch.testing.assert_close(sae.encode(X[0]), sae.encode(X)[0])
    torch.testing.assert_close(sae.encode(X.expand(2, 3, 2)), sae.encode(X).expand(2, 3, 3))
    torch.testing.assert_close(sae.encode_training(make_step(torch.zeros(1, 3), x=X)).dense(), sae.encode(X))


def test_a_row_ends_where_little_is_left():
    # After the first round 1.4 is left, after the second .84.
    assert by_hand(3, residual_threshold=1.5).encode(X).count_nonzero() == 1
    assert by_hand(3, residual_threshold=1.0).encode(X).count_nonzero() == 2
    rows = torch.cat([X, torch.tensor([[3.0, 1.0]])])
    together = by_hand(2, residual_threshold=1.0).encode(rows)
    torch.testing.assert_close(together, torch.tensor([[1.12, 4.8, 0], [2, 0, 0]]), msg="each row for itself")


def test_a_round_that_comes_back_to_a_latent_is_the_last():
    sae = by_hand(4, d_sae=4)
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [-0.8, 0.6], [0.0, -1.0], [0.0, -1.0]])
    # (1, 2): products 1 and .4; the first leaves (0, 2), the second's 1.2 of that (.96, 1.28), and the first's .96
    # again (0, 1.28): there it ends, though the second would have .768.
    torch.testing.assert_close(sae.encode(torch.tensor([[2.0, 3.0]])), torch.tensor([[1.96, 1.2, 0.0, 0.0]]))


def test_the_gradient_is_that_of_all_rounds():
    sae = by_hand(2)
    sae.encode(X).sum().backward()
    d, e = sae.W_dec.detach()[1], sae.W_dec.detach()[0]
    r = X[0] - 1
    # v = r.d and w = (r - v d).e: d/dd (v + w) = r - v e - (d.e) r, d/de = r - v d, and -(1 - d.e) d - e for b_dec.
    v = r @ d
    assert sae.W_dec.grad is not None and sae.b_dec.grad is not None
    expected = torch.stack([r - v * d, r - v * e - (d @ e) * r, torch.zeros(2)])
    torch.testing.assert_close(sae.W_dec.grad, expected)
    torch.testing.assert_close(sae.b_dec.grad, -(1 - d @ e) * d - e)


def test_the_encoder_is_the_decoder_after_each_step(tmp_path: Path):
    trainer = Trainer(tiny_config("matching_pursuit"), tiny_store(tmp_path), DATA, tiny_training(), 0, "cpu")
    start = trainer.sae.W_dec.detach().clone()
    for _ in range(3):
        trainer.step()
    assert torch.equal(trainer.sae.W_enc.T, trainer.sae.W_dec) and not torch.equal(trainer.sae.W_dec, start)
