"""The control whose decoder stays near its start."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.mechanisms.soft_frozen import near
from sae_lib.training.trainer import Trainer
from tests.tiny_training import D_IN, DATA, tiny_config, tiny_store, tiny_training


def test_rows_that_left_the_cone_by_hand():
    start = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    # At a right angle, norm 2: 2 (.8, .6). Behind: the same side is kept. Within: left alone.
    rows = torch.tensor([[0.0, 2.0], [-3.0, -4.0], [3.0, 0.1]])
    expected = torch.tensor([[1.6, 1.2], [4.0, -3.0], [3.0, 0.1]])
    torch.testing.assert_close(near(rows, start, 0.8), expected)


def test_the_moved_row_is_the_nearest_one_with_that_cosine():
    generator = torch.Generator().manual_seed(0)
    start, row = F.normalize(torch.randn(2, 3, generator=generator), dim=1).unbind()
    moved = near(row[None], start[None], 0.9)[0]
    assert float(start @ moved) == pytest.approx(0.9) and float(moved.norm()) == pytest.approx(1)
    others = F.normalize(torch.randn(20000, 3, generator=generator), dim=1)
    others = others[others @ start >= 0.9]
    assert float((others @ row).max()) <= float(moved @ row) + 1e-6


def cosines(folder: Path, method: str, **changes: float) -> torch.Tensor:
    """Of each decoder row and its start, after 30 steps of a learning rate that turns rows far."""
    overrides = {"optimizer": {"learning_rate": 0.05, "warmup_steps": 0}}
    config = tiny_config(method, overrides | ({"soft_frozen": changes} if changes else {}))
    trainer = Trainer(config, tiny_store(folder), DATA, tiny_training(steps=30), 0, "cpu")
    start = build_autoencoder(config, D_IN, 0).W_dec.detach()
    for _ in range(30):
        trainer.step()
    return F.cosine_similarity(trainer.sae.W_dec.detach(), start)


def test_the_decoder_stays_near_its_start_and_learns_within(tmp_path: Path):
    free, frozen = (cosines(tmp_path, method) for method in ("topk", "soft_frozen"))
    assert free.min() < 0.7
    assert frozen.min() >= 0.8 - 1e-5 and (frozen < 0.81).any() and (frozen < 0.999).all()
    assert cosines(tmp_path, "soft_frozen", min_cosine=0.95).min() >= 0.95 - 1e-5
