"""A look at an SAE in the middle of its training."""

from __future__ import annotations

import pytest
import torch

from sae_lib.training.trainer import Trainer
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training


@pytest.mark.parametrize("method", ["standard", "temporal_sae", "atm"])
def test_a_snapshot_is_the_finished_sae_and_disturbs_nothing(tmp_path, method):
    store = tiny_store(tmp_path)
    looked, undisturbed = (Trainer(tiny_config(method), store, DATA, tiny_training(), 0, "cpu") for _ in range(2))
    for step in range(12):
        looked.step()
        undisturbed.step()
        if step == 5:
            half = looked.snapshot()
    last = looked.snapshot().state_dict()
    ends = [trainer.finish().state_dict() for trainer in (looked, undisturbed)]
    assert all(torch.equal(end[name], value) for end in ends for name, value in last.items())
    assert not torch.equal(half.state_dict()["W_enc"], last["W_enc"])
