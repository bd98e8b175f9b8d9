from typing import Any

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.latents import Latents
from tests.autoencoders.test_autoencoders import random_sae, rows
from tests.tiny_training import make_step, tiny_config


def config(prefixes: tuple[float, ...], d_sae: int = 12) -> Any:
    return sae_config({"architecture": "matryoshka", "d_sae": d_sae, "k": 1, "prefixes": prefixes})


def with_reconstruction(sae: Autoencoder, step: Step) -> Step:
    """What the trainer fills in after the activations."""
    step.x_hat = sae.decode_training(step)
    step.reconstruction = (step.x - step.x_hat).square().sum(dim=1).mean()
    return step


def test_mean_error_of_the_prefixes_by_hand():
    sae = build_autoencoder(config((1 / 3, 2 / 3, 1.0), d_sae=3), d_in=2)
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    sae.b_dec.data = torch.tensor([1.0, -1.0])
    f = torch.tensor([[2.0, 3.0, 5.0], [0.0, 1.0, 0.0]], requires_grad=True)
    step = with_reconstruction(sae, make_step(f, x=torch.tensor([[4.0, 4.0], [1.0, 1.0]])))
    torch.testing.assert_close(step.x_hat, torch.tensor([[6.0, 6.0], [1.0, 0.0]]))
    # First row: (3, -1), (3, 2), (6, 6) against (4, 4): 26, 5, 8. Second: (1, -1), (1, 0), (1, 0): 4, 1, 1.
    assert float(step.reconstruction.detach()) == (8 + 1) / 2, "the whole dictionary's, for explained variance"
    loss = sae.reconstruction_loss(step)
    assert float(loss.detach()) == pytest.approx((26 + 5 + 8 + 4 + 1 + 1) / 2 / 3)
    loss.backward()
    # The last latent is in one reconstruction only: 2 (2, 2).(.6, .8) / 2 rows / 3; the first in all three.
    assert f.grad is not None and float(f.grad[0, 2]) == pytest.approx(2.8 / 3)
    assert float(f.grad[0, 0]) == pytest.approx((-1 - 1 + 2) / 3)


def test_one_prefix_is_batchtopk():
    one, plain = (random_sae(a, k=3, **c) for a, c in (("matryoshka", {"prefixes": (1.0,)}), ("batchtopk", {})))
    losses = []
    for sae in (one, plain):
        pre = sae.pre_activations(rows())
        step = make_step(torch.zeros(40, 12), x=rows(), pre=pre)
        step.f = Latents(sae.activate_training(step))
        losses.append(sae.reconstruction_loss(with_reconstruction(sae, step)))
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    for mine, other in zip(one.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_levels_of_the_methods():
    sizes = {m: tiny_config(m, {"d_sae": 64}).prefix_sizes() for m in ("matryoshka_2", "matryoshka_4")}
    assert sizes == {"matryoshka_2": (16, 64), "matryoshka_4": (4, 12, 28, 64)}
    assert config((3 / 20, 8 / 20, 1.0), d_sae=20).prefix_sizes() == (3, 8, 20)


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ((), r"increasing fractions of d_sae that end in 1, not \(\)"),
        ((0.5, 0.25, 1.0), r"not \(0.5, 0.25, 1\)"),
        ((0.5, 0.5, 1.0), "increasing"),
        ((0.25, 0.5), "end in 1"),
        ((0.01, 1.0), r"d_sae = 12 are \(0, 12\) latents"),
        ((0.5, 0.52, 1.0), r"\(6, 6, 12\) latents.*leave one out or widen the SAE"),
        ((0.0, 1.0), "prefixes.0"),
        ((0.5, 1.5), "prefixes.1"),
    ],
)
def test_bad_prefixes(prefixes, message):
    with pytest.raises(ValueError, match=message):
        config(prefixes)
