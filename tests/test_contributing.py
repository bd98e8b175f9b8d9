"""The worked example of CONTRIBUTING.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.study.experiment import Experiment
from tests.tiny_training import DATA, tiny_store, tiny_training

LONGEST = 40


def example() -> str:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return str(block)


def test_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    source = example()
    assert len(source.splitlines()) < LONGEST
    store = tiny_store(tmp_path)
    profile = SimpleNamespace(data=DATA, training=tiny_training(schedule_scale=0.01))
    monkeypatch.setattr(Experiment, "open", lambda name: SimpleNamespace(store=lambda: store, profile=profile))
    names: dict[str, Any] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    trainer, sae = names["trainer"], names["sae"]
    assert trainer.index == profile.training.steps and "'penalty'" in capsys.readouterr().out
    assert isinstance(sae, Autoencoder) and torch.isfinite(sae(store.rows(np.arange(10)))).all()


def test_the_penalty_acts(tmp_path: Path):
    names: dict[str, Any] = {}
    exec(example().split("experiment = ")[0], names)
    f = torch.tensor([[0.0, 0.5], [2.0, 0.0]])
    penalty = names["TanhPenalty"](coefficient=3.0, width=0.5)
    value = penalty.loss(SimpleNamespace(f=SimpleNamespace(dense=lambda: f)))
    assert float(value) == pytest.approx(3.0 * (0.7615942 + 0.9993293) / 2, rel=1e-5)  # tanh 1, tanh 4
