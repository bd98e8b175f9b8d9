"""The library's step on a few rows, and which profile a notebook opens."""

import pytest
import torch

from sae_lib.study.by_hand import WINDOW, InLibrary, follows
from sae_lib.study.experiment import Experiment


def rows() -> torch.Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(3))


def test_the_first_row_of_each_window_has_no_predecessor() -> None:
    assert (~follows(3 * WINDOW)).nonzero().squeeze(1).tolist() == [0, WINDOW, 2 * WINDOW]


def test_biases_are_seen() -> None:
    tried = InLibrary(rows(), architecture="standard", l1_coefficient=0.1)
    W_enc, b_enc, _, b_dec = tried.weights
    torch.testing.assert_close(tried.f, torch.relu(rows() @ W_enc + b_enc))
    assert (b_enc != 0).all() and (b_dec != 0).all()
    assert set(tried.terms) == {"reconstruction", "sparsity"}


def test_mechanisms_act_after_the_gradients_without_an_update() -> None:
    tried = InLibrary(rows(), architecture="standard", masking={"warmup_steps": 1})
    before = tried.weights
    tried.backward()
    assert all(torch.equal(old, new) for old, new in zip(before, tried.weights, strict=True))
    unmasked = tried.f
    tried.forward(rows())
    gone = (tried.f == 0).all(dim=0) & (unmasked > 0).any(dim=0)
    assert 0 < gone.sum() < 16


def test_the_environment_overrides_a_notebooks_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAE_LIB_PROFILE", raising=False)
    assert Experiment.of_notebook("pocket").profile.name == "pocket"
    monkeypatch.setenv("SAE_LIB_PROFILE", "smoke")
    assert Experiment.of_notebook("pocket").profile.name == "smoke"
    assert Experiment.open("pocket").profile.name == "pocket"
