"""k that falls while training."""

from pathlib import Path

import pytest
import torch

from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.topk import KAnnealingConfig
from sae_lib.training.trainer import Trainer
from tests.autoencoders.test_autoencoders import random_sae
from tests.tiny_training import DATA, make_step, tiny_config, tiny_store, tiny_training


def test_k_by_hand():
    whole, half = KAnnealingConfig(), KAnnealingConfig(start=3.0, share=0.5)
    assert [whole.k_at(25, time) for time in (0.0, 0.5, 1.0)] == [60.0, 42.5, 25]
    assert [half.k_at(10, time) for time in (0.0, 0.25, 0.5, 0.9)] == [30.0, 20.0, 10, 10]


@pytest.mark.parametrize(("index", "kept"), [(0, 18), (25, 12), (30, 10), (31, 10), (50, 6), (99, 6)])
def test_a_batch_keeps_what_is_due(index, kept):
    """k = 3 from three times that over half the run: 9, 6, 5.4 (10.8 of two rows), 5.28, 3."""
    sae = random_sae("batchtopk", k=3, k_annealing={"start": 3.0, "share": 0.5})
    pre = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) + 0.1
    f = sae.activate_training(make_step(pre, pre=pre, index=index, total=100))
    assert int((f > 0).sum()) == kept
    threshold = sae.get_buffer("threshold").fill_(0.5)
    assert torch.equal(sae.activate(pre), pre * (pre >= threshold)), "evaluation knows the threshold alone"


def test_a_row_keeps_the_whole_part():
    sae = random_sae("topk", k=2, k_annealing={"start": 2.5})
    pre = torch.rand(7, 12, generator=torch.Generator().manual_seed(0)) + 0.1
    counts = [(sae.activate_training(make_step(pre, pre=pre, index=i)) > 0).sum(dim=1).tolist() for i in (0, 40, 99)]
    assert counts == [[5] * 7, [3] * 7, [2] * 7]  # 5, 3.8, 2.03
    assert (sae.activate(pre) > 0).sum(dim=1).tolist() == [2] * 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "standard", "k_annealing": {}}, "k_annealing is for the TopK family, not for standard"),
        ({"architecture": "switch", "k": 2, "experts": 2, "k_annealing": {}}, "not for switch; leave it out"),
        ({"architecture": "topk", "k": 5, "k_annealing": {"start": 4}}, "4 times k = 5 is above d_sae = 16; lower it"),
        ({"architecture": "topk", "k": 5, "k_annealing": {"start": 0.5}}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        sae_config({"d_sae": 16} | values)


def test_a_configuration_without_it_is_what_it_was():
    assert "k_annealing" not in tiny_config("batchtopk").model_dump(mode="json")
    assert tiny_config("batchtopk_annealed").model_dump()["k_annealing"] == {"start": 2.4, "share": 1.0}


@pytest.mark.parametrize("method", ["topk", "batchtopk"])
def test_training_falls_to_k(tmp_path: Path, method: str):
    config = tiny_config(method, {"k": 1, "k_annealing": {"start": 5.0, "share": 0.5}})
    trainer = Trainer(config, tiny_store(tmp_path), DATA, tiny_training(steps=40, log_every=10), 0, "cpu")
    for _ in range(40):
        trainer.step()
    l0 = [row["l0"] for row in trainer.history]
    assert l0 == pytest.approx([5.0, 3.0, 1.0, 1.0, 1.0], abs=0.1)
