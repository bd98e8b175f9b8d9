"""Latents held by their entries give what the matrix gives: values, losses, gradients, statistics."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_lib.autoencoders import kernels, latents
from sae_lib.autoencoders.base import Step
from sae_lib.autoencoders.latents import ActiveLatents, Encode, Entries, Latents, encoder_product, entries_above
from sae_lib.autoencoders.topk import strongest_of_batch
from sae_lib.data.activations import ActivationStore
from sae_lib.mechanisms import methods
from sae_lib.training.trainer import Trainer
from sae_lib.util.paths import ROOT
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

ROWS, LATENTS, D_IN = 40, 30, 6


@pytest.fixture
def f() -> torch.Tensor:
    """A tenth of the entries above zero; one row and one latent without any."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(ROWS, LATENTS, generator=generator)
    values *= torch.rand(ROWS, LATENTS, generator=generator) < 0.08
    values[7], values[:, 3] = 0.0, 0.0
    return values


def both_ways(f: torch.Tensor) -> tuple[ActiveLatents, torch.Tensor, Latents, torch.Tensor]:
    """The same latents by their entries and as a matrix, each with the leaf that its gradient reaches."""
    entries = entries_above(f, 0.0)
    assert entries is not None
    leaf = f[f > 0].clone().requires_grad_()
    matrix = f.clone().requires_grad_()
    return ActiveLatents(leaf, entries), leaf, Latents(matrix), matrix


def directions() -> torch.Tensor:
    return torch.randn(LATENTS, D_IN, generator=torch.Generator().manual_seed(1))


def strongest_of_rows(pre: torch.Tensor, k: int) -> Entries:
    return Entries(*kernels.strongest_of_rows(pre.numpy(), k), pre.shape[1])


def test_entries_by_hand():
    found = np.array([2.0, -3.0, 5.0], dtype=np.float32)
    entries = Entries(np.array([1, 1, 1]), found, np.array([0, 1, 2, 3]), 2)  # rows (0, 2), (0, -3), (0, 5)
    assert entries.shape == (3, 2) and entries.flat.tolist() == [1, 3, 5]
    order, row, starts = entries.by_latent
    assert order.tolist() == [0, 1, 2] and row.tolist() == [0, 1, 2] and starts.tolist() == [0, 0, 3]
    assert entries.sum_by_latent(torch.tensor([1.0, 2.0, 4.0])).tolist() == [0.0, 7.0]
    some = entries.where(entries.found > 0)
    assert some.flat.tolist() == [1, 5] and some.found.tolist() == [2.0, 5.0]
    assert some.row_starts.tolist() == [0, 1, 1, 2]


def test_too_many_are_left_to_the_matrix():
    values = torch.zeros(10, 10)
    values[0] = 1.0
    assert entries_above(values, 0.0) is not None
    values[1, 0] = 1.0
    assert entries_above(values, 0.0) is None
    assert entries_above(values, 0.0, share=0.2) is not None


@pytest.mark.parametrize("columns", [24, 27])
def test_entries_are_where_the_comparison_holds(columns: int):
    values = torch.randn(9, columns, generator=torch.Generator().manual_seed(5))
    values[0], values[1] = -1.0, 1.0  # none of the first eight, all of the next
    entries = entries_above(values, 0.5, share=1.0)
    assert entries is not None
    assert entries.flat.tolist() == (values > 0.5).flatten().nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("pieces", [2, 3, 50])
def test_pieces_change_nothing(pieces: int, monkeypatch: pytest.MonkeyPatch):
    pre = torch.randn(41, 75, generator=torch.Generator().manual_seed(3))
    found = [entries_above(pre, 1.0, share=1.0), strongest_of_rows(pre, 5)]
    kept = torch.get_num_threads()
    monkeypatch.setattr(kernels, "use_threads", lambda: pieces)
    cut = [entries_above(pre, 1.0, share=1.0), strongest_of_rows(pre, 5)]
    for whole, mine in zip(found, cut, strict=True):
        assert whole is not None and mine is not None
        for name in ("latent", "found", "row_starts"):
            assert torch.equal(getattr(mine, name), getattr(whole, name)), name
    torch.set_num_threads(kept)  # Numba's threads change it as they start
    few = int((pre > 1.0).sum())
    assert kernels.above(pre.numpy(), np.ones(75, np.float32), few) is not None
    assert kernels.above(pre.numpy(), np.ones(75, np.float32), few - 1) is None


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pytorch_keeps_its_number_of_threads(threads: int):
    code = f"""
import torch
from sae_lib.autoencoders.kernels import strongest_of_rows
from sae_lib.autoencoders.latents import entries_above
torch.set_num_threads({threads})
pre = torch.rand(99, 80)
strongest_of_rows(pre.numpy(), 5), entries_above(pre, 0.99)
print(torch.get_num_threads())
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.split() == [
        str(threads).encode()
    ]


def test_numbers_that_are_none_are_not_among_the_strongest():
    pre = torch.rand(4, 40, generator=torch.Generator().manual_seed(3))
    pre[0, 3], pre[1], pre[2, 5] = torch.nan, torch.nan, torch.inf
    entries = strongest_of_rows(pre, 3)
    assert entries.row_starts.tolist() == [0, 3, 3, 6, 9]
    assert 3 not in entries.latent[:3].tolist() and 5 in entries.latent[3:6].tolist()


def test_statistics(f: torch.Tensor):
    held, _, dense, _ = both_ways(f)
    error = torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(held.dense(), f)
    for name in ("rate", "mean", "mean_square"):
        torch.testing.assert_close(getattr(held, name)(), getattr(dense, name)())
    torch.testing.assert_close(held.mean_product(error), dense.mean_product(error))


LOSSES = {
    "l1": lambda z: z.l1(),
    "decode": lambda z: z.decode(directions()).square().sum(),
    "groups": lambda z: sum(
        p.square().sum() * (i + 1) for i, p in enumerate(z.decode_groups(directions(), (4, 6, 20)))
    ),
    "change": lambda z: z.change(torch.arange(ROWS) % 4 != 0, both=True),
    "change of one": lambda z: z.change(torch.arange(ROWS) % 4 != 0, both=False),
    "change everywhere": lambda z: z.change(torch.ones(ROWS, dtype=torch.bool), both=True),
    "mask": lambda z: z.times(torch.arange(LATENTS) % 2 / 1.0).decode(directions()).square().sum(),
    "mask of entries": lambda z: z.times((torch.arange(ROWS * LATENTS) % 3).float().view(ROWS, LATENTS)).l1(),
    "dense": lambda z: z.dense().var(dim=0).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients(name: str, f: torch.Tensor):
    held, leaf, dense, matrix = both_ways(f)
    mine, expected = LOSSES[name](held), LOSSES[name](dense)
    torch.testing.assert_close(mine, expected)
    mine.backward()
    expected.backward()
    assert leaf.grad is not None and matrix.grad is not None
    torch.testing.assert_close(leaf.grad, matrix.grad[f > 0])


def test_gradient_of_the_decoder(f: torch.Tensor):
    held, _, dense, _ = both_ways(f)
    ours, expected = directions().requires_grad_(), directions().requires_grad_()
    held.decode(ours).square().sum().backward()
    dense.decode(expected).square().sum().backward()
    torch.testing.assert_close(ours.grad, expected.grad)


@pytest.mark.parametrize(("k", "n"), [(5, 400), (5, 80), (5, 84), (5, 81), (30, 80), (80, 80)])
def test_strongest_of_rows(k: int, n: int):
    pre = torch.randn(50, n, generator=torch.Generator().manual_seed(3))
    pre[4, 4:] = -1.0  # fewer than k above zero
    pre[5] -= 9.0  # none
    pre[6, :: n // 8] += 9.0  # the largest are in one group
    pre[7:] += torch.linspace(0.1, 5.0, 43)[:, None]
    entries = strongest_of_rows(pre, k)
    expected = (pre >= pre.sort(descending=True).values[:, k - 1 : k]) & (pre > 0)
    assert entries.flat.tolist() == expected.flatten().nonzero().squeeze(1).tolist()
    assert not expected[5].any() and int(expected[4].sum()) <= 4


@pytest.mark.parametrize("guess", [0.0, 0.5, 1.5, 2.2, 9.0])
def test_strongest_of_batch_whatever_the_guess(guess: float):
    pre = torch.randn(50, 80, generator=torch.Generator().manual_seed(3))
    batch, smallest = strongest_of_batch(pre, 200, guess)
    assert batch is not None and float(smallest) == float(pre.flatten().sort(descending=True).values[199])
    assert batch.flat.tolist() == (pre >= smallest).flatten().nonzero().squeeze(1).tolist()


@pytest.mark.parametrize(("k", "n"), [(5, 400), (5, 81), (30, 80)])
def test_of_equal_values_the_first_are_kept(k: int, n: int):
    pre = torch.randn(50, n, generator=torch.Generator().manual_seed(3)).mul(4).round() / 4
    pre[0] = 1.0
    order = pre.sort(descending=True, stable=True).indices[:, :k]
    expected = torch.zeros_like(pre).scatter_(1, order, 1.0).bool() & (pre > 0)
    assert int((pre == pre.gather(1, order[:, -1:])).sum()) > 100  # many share the last place
    assert strongest_of_rows(pre, k).flat.tolist() == expected.flatten().nonzero().squeeze(1).tolist()


def test_product_as_a_matrix_has_memory_and_gradients_of_its_own():
    generator = torch.Generator().manual_seed(4)
    x, W_enc, bias = (torch.randn(size, generator=generator) for size in ((8, 3), (3, 5), (5,)))
    leaves = [tensor.clone().requires_grad_() for tensor in (W_enc, bias)]
    first = Encode.apply(x, *leaves, encoder_product(x, *leaves), None)
    encoder_product(-x, *leaves)  # takes over the memory
    torch.testing.assert_close(first, x @ W_enc + bias)
    first.square().sum().backward()
    expected = [tensor.clone().requires_grad_() for tensor in (W_enc, bias)]
    (x @ expected[0] + expected[1]).square().sum().backward()
    for mine, theirs in zip(leaves, expected, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def trained(method: str, folder: Path, steps: int = 12) -> tuple[Trainer, bool]:
    """A run of a few steps, and whether its last step held latents by their entries."""
    own = {"jumprelu": {"initial_threshold": 0.5}, "topk": {}, "batchtopk": {}, "matryoshka_2": {}, "matryoshka_4": {}}
    config = tiny_config(method, {"d_sae": 64, **own.get(method, {"l1_coefficient": 0.3})})
    trainer = Trainer(config, tiny_store(folder), DATA, tiny_training(d_sae=64), 0, "cpu")
    kinds: list[type[Latents]] = []
    encode = trainer.sae.encode_training

    def noted(step: Step) -> Latents:
        latents = encode(step)
        kinds.append(type(latents))
        return latents

    trainer.sae.encode_training = noted  # type: ignore[method-assign]
    for _ in range(steps):
        trainer.step()
    return trainer, kinds[-1] is ActiveLatents


@pytest.mark.parametrize("method", methods("main", "as written"))
def test_training_is_the_same(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dense, held = trained(method, tmp_path)
    assert not held, "a small batch is a matrix"
    monkeypatch.setattr(latents, "SMALLEST_BATCH", 0)
    monkeypatch.setattr(latents, "LARGEST_SHARE", 1.0)
    by_entries, held = trained(method, tmp_path)
    assert held
    for name, tensor in dense.sae.state_dict().items():
        torch.testing.assert_close(by_entries.sae.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    for mine, expected in zip(by_entries.mechanisms, dense.mechanisms, strict=True):
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    assert [set(row) for row in by_entries.history] == [set(row) for row in dense.history]


def trained_weights(store: ActivationStore, method: str) -> dict[str, torch.Tensor]:
    """Weights after some steps whose latents are held by their entries."""
    config = tiny_config(method, {"d_sae": 1024, "l1_coefficient": 0.3})
    trainer = Trainer(config, store, DATA, tiny_training(d_sae=1024, steps=25), 0, "cpu")
    for _ in range(25):
        trainer.step()
    return trainer.finish().state_dict()


def test_two_threads_that_train_get_the_weights_of_one_after_the_other(tmp_path: Path):
    store, names = tiny_store(tmp_path), ("standard", "atm", "standard", "temporal_sae")
    alone = [trained_weights(store, method) for method in names]
    with ThreadPoolExecutor(len(names)) as pool:
        at_once = [*pool.map(lambda method: trained_weights(store, method), names)]
    for one, other in zip(alone, at_once, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_threads_share_a_threading_layer_that_takes_one_call_at_a_time():
    code = """
import numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from sae_lib.autoencoders import kernels
torch.set_num_threads(2)
pre = [np.random.default_rng(i).standard_normal((400, 900), np.float32) for i in range(4)]
bound = np.ones(900, np.float32)
def found(i):
    return [kernels.above(pre[i], bound, pre[i].size)[0] for _ in range(20)]
with ThreadPoolExecutor(4) as pool:
    for i, each in enumerate(pool.map(found, range(4))):
        assert all(np.array_equal(latent, np.nonzero(pre[i] > bound)[1]) for latent in each)
"""
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
