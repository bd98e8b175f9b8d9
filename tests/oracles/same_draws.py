"""SAEBench's probe trainer with our draws: it seeds neither its initial weights nor the order of its batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sae_bench.evals.absorption import probing
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from sae_lib.metrics.absorption.probes import initial_probes


class SeededOrder(Sampler[int]):
    """A new permutation for each epoch, all from one seed."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.rows, generator=self.generator).tolist())


def share_draws(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every probe that SAEBench trains from here on starts and is fed as ours with this seed."""

    def loader(dataset: TensorDataset, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
        assert shuffle
        return DataLoader(dataset, batch_size=batch_size, sampler=SeededOrder(len(dataset), seed))

    def begin(self: nn.Module, input_dim: int, num_outputs: int = 1) -> None:
        nn.Module.__init__(self)
        self.fc = nn.Linear(input_dim, num_outputs)
        initial = initial_probes(input_dim, num_outputs, seed)
        with torch.no_grad():
            self.fc.weight.copy_(initial.weight)
            self.fc.bias.copy_(initial.bias)

    monkeypatch.setattr(probing, "DataLoader", loader)
    monkeypatch.setattr(probing.LinearProbe, "__init__", begin)
