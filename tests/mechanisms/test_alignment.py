"""Encoder rows that follow the decoder's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.mechanisms.alignment import Alignment, AlignmentConfig
from sae_lib.training.trainer import Trainer
from tests.tiny_training import DATA, make_step, tiny_config, tiny_store, tiny_training


def by_hand() -> Autoencoder:
    """Decoder rows e_1 and e_2 of R^2; encoder rows (1, 2) and (-1, 1); their gradients (3, 5) and (1, 2)."""
    sae = build_autoencoder(tiny_config("batchtopk", {"d_sae": 2, "k": 1}), d_in=2)
    sae.W_dec.data, sae.W_dec.grad = torch.eye(2), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    sae.W_enc.data = torch.tensor([[1.0, 2.0], [-1.0, 1.0]]).T
    sae.W_enc.grad = torch.tensor([[3.0, 5.0], [1.0, 2.0]]).T
    return sae


def changed(kind: str) -> tuple[Autoencoder, Alignment]:
    sae = by_hand()
    mechanism = Alignment(AlignmentConfig.model_validate({"kind": kind}), 2)
    mechanism.before_update(sae, make_step(torch.zeros(1, 2)))
    return sae, mechanism


def test_the_gradients_of_aligned_rows_by_hand():
    sae, _ = changed("aligned")
    # g - (g.d) o with o = (0, 2) and (-1, 0): (3, 5) - 3 (0, 2) and (1, 2) - 2 (-1, 0), added.
    assert sae.W_dec.grad is not None and sae.W_dec.grad.tolist() == [[13, 19], [33, 42]]
    assert sae.W_enc.grad is not None and sae.W_enc.grad.T.tolist() == [[0, 5], [1, 0]]


def test_the_gradients_are_those_of_the_parametrisation():
    sae, _ = changed("aligned")
    d, o = torch.eye(2, requires_grad=True), torch.tensor([[0.0, 2.0], [-1.0, 0.0]], requires_grad=True)
    e = d + o - (o * d).sum(dim=1, keepdim=True) * d
    of_d, of_o = torch.autograd.grad((e * torch.tensor([[3.0, 5.0], [1.0, 2.0]])).sum(), (d, o))
    assert sae.W_dec.grad is not None and sae.W_enc.grad is not None
    torch.testing.assert_close(sae.W_dec.grad, torch.tensor([[10.0, 20.0], [30.0, 40.0]]) + of_d)
    torch.testing.assert_close(sae.W_enc.grad.T, of_o)


def test_tied_rows_are_moved_by_both_gradients():
    sae, mechanism = changed("tied")
    sae.W_enc.data = torch.eye(2)
    assert sae.W_enc.grad is not None and not sae.W_enc.grad.any()
    sae.W_dec.data = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    mechanism.after_update(sae, torch.optim.SGD(sae.parameters()), make_step(torch.zeros(1, 2)))
    torch.testing.assert_close(sae.W_enc.T, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_aligned_rows_keep_what_stands_at_a_right_angle():
    sae, mechanism = changed("aligned")
    # The decoder turns by 90 degrees; what was added to (1, 0) was (0, 3), now along the row: nothing is left of it.
    sae.W_dec.data = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    sae.W_enc.data = torch.tensor([[1.0, 3.0], [-4.0, 1.5]]).T
    mechanism.after_update(sae, torch.optim.SGD(sae.parameters()), make_step(torch.zeros(1, 2)))
    torch.testing.assert_close(sae.W_enc.T, torch.tensor([[0.0, 1.0], [-4.0, 1.0]]))


def trained(folder: Path, method: str) -> tuple[Tensor, Tensor]:
    """Rows of encoder and decoder."""
    trainer = Trainer(tiny_config(method), tiny_store(folder), DATA, tiny_training(), 0, "cpu")
    for _ in range(40):
        trainer.step()
    sae = trainer.finish()
    return sae.W_enc.detach().T, sae.W_dec.detach()


def test_what_holds_after_training(tmp_path: Path):
    e, d = trained(tmp_path, "tied")
    torch.testing.assert_close(e, d)
    e, d = trained(tmp_path, "aligned")
    torch.testing.assert_close((e * d).sum(dim=1), torch.ones(16), rtol=0, atol=1e-4)
    assert (e - d).norm(dim=1).max() > 0.05
    e, d = trained(tmp_path, "batchtopk")
    assert ((e * d).sum(dim=1) - 1).abs().max() > 0.05, "else the constraint is none"


def test_rows_that_do_not_begin_together_are_refused():
    with pytest.raises(ValueError, match="alignment needs unit_norm_decoder: true, tied_init: true"):
        tiny_config("standard", {"alignment": {}})
    assert tiny_config("standard", {"alignment": {}, "encoder_init_norm": 1.0}).get("alignment").kind == "aligned"
