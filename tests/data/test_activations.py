import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from sae_lib.data.activations import ActivationStore, WindowStream
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.util.errors import ArtifactError
from tests.tiny_models import random_tokens

D_IN = 6
TOKENS = random_tokens(23, 14, seed=3, eos_rate=0.15)


def fake_model(d_in: int = D_IN) -> LanguageModel:
    """A model whose activation at every position tells the token and the position."""

    def residual_stream(tokens):
        position = torch.arange(tokens.shape[1]).expand(tokens.shape)
        features = torch.stack([tokens, position, *[tokens * 0 + i for i in range(d_in - 2)]], dim=-1)
        return features.float()

    lm = LanguageModel.__new__(LanguageModel)
    lm.name, lm.identity, lm.layer, lm.d_in, lm.dtype = "fake", "f" * 64, 0, d_in, torch.float32
    lm.vocab_size, lm.special_ids, lm.device = 40, frozenset({0, 1, 2, 3}), torch.device("cpu")
    lm.max_positions = None
    lm.residual_stream = residual_stream  # type: ignore[method-assign]
    return lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    harvest(fake_model(), TOKENS, folder, shard_rows=32)
    return folder


@pytest.fixture(params=["mapped", "preloaded"])
def store(folder, request):
    store = ActivationStore.open(folder)
    if request.param == "preloaded":
        assert store.preload("cpu")
    return store


def all_rows() -> list[tuple[int, int]]:
    """(context, position) of every row, the slow way."""
    return [(c, p) for c in range(TOKENS.shape[0]) for p in range(TOKENS.shape[1]) if TOKENS[c, p] > 3]


def test_rows_in_any_order_and_shape(store):
    expected = all_rows()
    picked = np.random.default_rng(0).integers(0, store.n_rows, (7, 5))
    rows = store.rows(picked)
    assert rows.shape == (7, 5, D_IN) and rows.dtype == torch.float32
    for index, row in zip(picked.ravel(), rows.view(-1, D_IN), strict=True):
        context, position = expected[index]
        assert row.tolist() == [TOKENS[context, position], position, 0, 1, 2, 3]
    assert store.rows(picked, torch.bfloat16).dtype == torch.bfloat16
    assert store.rows(np.array([], dtype=int)).shape == (0, D_IN)
    for outside in (-1, store.n_rows):
        with pytest.raises(IndexError, match="asked for"):
            store.rows(np.array([0, outside]))


def test_mean_squared_norm(store):
    everything = store.rows(np.arange(store.n_rows)).numpy().astype(np.float64)
    assert store.mean_squared_norm(10**6) == pytest.approx((everything**2).sum(axis=1).mean())
    assert store.mean_squared_norm(1) == pytest.approx((everything[0] ** 2).sum())
    assert store.mean_squared_norm(2) == pytest.approx((everything[[0, -1]] ** 2).sum(axis=1).mean())


@pytest.mark.parametrize(("window", "batch_rows"), [(1, 16), (4, 16), (5, 5), (8, 64)])
def test_every_window_once_per_epoch(store, window, batch_rows):
    stream = WindowStream(store, window, batch_rows, seed=0)
    per_batch, n_windows = batch_rows // window, store.n_rows // window
    drawn = np.concatenate([stream.windows(i) for i in range(-(-3 * n_windows // per_batch))])
    for epoch in range(3):
        assert sorted(drawn[epoch * n_windows : (epoch + 1) * n_windows]) == list(range(n_windows))
    assert not np.array_equal(drawn[:n_windows], drawn[n_windows : 2 * n_windows]), "epochs differ in order"


@pytest.mark.parametrize(("window", "batch_rows"), [(1, 16), (4, 16), (8, 64)])
def test_batches_are_windows_of_consecutive_rows(store, window, batch_rows):
    stream = WindowStream(store, window, batch_rows, seed=1)
    for number in (0, 3, 11):
        batch = stream.batch(number)
        rows = stream.windows(number)[:, None] * window + np.arange(window)
        assert batch.activations.shape == (batch_rows // window, window, D_IN)
        assert batch.activations.dtype == torch.float32 and batch.number == number
        assert torch.equal(batch.activations, store.rows(rows))


@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_has_predecessor_by_brute_force(store, window):
    """Against the definition: the step before is in the window, in the same context, one position earlier."""
    stream, rows = WindowStream(store, window, 3 * window, seed=2), all_rows()
    found = {True: 0, False: 0}
    for number in range(store.n_rows // (3 * window)):
        windows, batch = stream.windows(number), stream.batch(number)
        for i, j in enumerate(windows):
            for step in range(window):
                context, position = rows[j * window + step]
                expected = step > 0 and rows[j * window + step - 1] == (context, position - 1)
                assert bool(batch.has_predecessor[i, step]) == expected
                if expected:
                    assert batch.activations[i, step, 1] == batch.activations[i, step - 1, 1] + 1
                found[expected] += step > 0
    # Both cases occur inside windows: neighbours, and a context's end or an EOS between two rows.
    assert window == 1 or (found[True] > 0 and found[False] > 0)


def test_the_stream_depends_on_nothing_but_its_arguments(folder):
    store = ActivationStore.open(folder)
    one, other = WindowStream(store, 4, 16, seed=5), WindowStream(ActivationStore.open(folder), 4, 16, seed=5)
    forwards = [one.batch(i) for i in range(60)]
    torch.manual_seed(99)
    np.random.seed(99)
    backwards = [other.batch(i) for i in reversed(range(60))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert torch.equal(a.activations, b.activations) and torch.equal(a.has_predecessor, b.has_predecessor)
    different = WindowStream(store, 4, 16, seed=6)
    assert any(not np.array_equal(one.windows(i), different.windows(i)) for i in range(3))


def test_the_stream_is_pinned():
    """Another order would change every trained SAE: two epochs of 10 windows in batches of 4, seed 0."""
    store = ActivationStore.__new__(ActivationStore)
    store.n_rows, store.d_in = 21, 1
    store.contexts, store.positions = np.zeros(21, np.int32), np.arange(21, dtype=np.uint16)
    stream = WindowStream(store, 2, 8, seed=0)
    drawn = [window for number in range(5) for window in stream.windows(number)]
    assert drawn == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1, 9, 1, 3, 8, 7, 6, 0, 4, 2, 5]


def test_batch_size_that_does_not_fit(folder):
    store = ActivationStore.open(folder)
    with pytest.raises(ArtifactError, match=f"more than the {store.n_rows} rows"):
        WindowStream(store, 4, 4096, seed=0)
    with pytest.raises(IndexError, match="counted from 0"):
        WindowStream(store, 4, 16, seed=0).batch(-1)


def test_preload_only_where_it_fits(folder, monkeypatch):
    store = ActivationStore.open(folder)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=store.n_rows * D_IN * 2))
    assert not store.preload("cpu") and store.resident is None
    assert WindowStream(store, 4, 16, seed=0).batch(0).activations.shape == (4, 4, D_IN)


def test_opening_nothing_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="there are no activations in"):
        ActivationStore.open(tmp_path)


def test_a_preloaded_batch_is_gathered_in_about_a_millisecond(tmp_path):
    """1,024 rows of width 128: bounded far above the usual 0.2 ms, far below one Python step per row."""
    store = harvest(fake_model(128), random_tokens(400, 128), tmp_path)
    assert store.preload("cpu")
    stream = WindowStream(store, 8, 1024, seed=0)
    stream.batch(0)
    times = []
    for number in range(1, 41):
        start = time.perf_counter()
        stream.batch(number)
        times.append(time.perf_counter() - start)
    print(f"median {np.median(times) * 1e3:.3f} ms")
    assert np.median(times) < 2e-3
