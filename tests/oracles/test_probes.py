"""The probe trainer against SAEBench's, from the same start and in the same order of batches."""

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import numpy as np
import pandas as pd
import torch
from sae_bench.evals.absorption.k_sparse_probing import train_sparse_multi_probe
from sae_bench.evals.absorption.probing import gen_probe_stats, train_linear_probe_for_task
from torch.nn import functional as F

from sae_lib.metrics.absorption.probes import f1_score, initial_probes
from tests.metrics.tiny_saes import train_one
from tests.oracles.same_draws import share_draws
from tests.oracles.word_data import word_data

SEED, EPOCHS = 11, 10
DATA = word_data(words=400, d_in=24, noise=1.0)


def test_the_ground_truth_probe_has_the_weights_of_saebench(monkeypatch: pytest.MonkeyPatch) -> None:
    share_draws(monkeypatch, SEED)
    x, y = DATA.activations[:320], DATA.labels[:320]
    frame = pd.DataFrame({"answer_class": y.numpy()})
    theirs, _ = train_linear_probe_for_task(
        frame, frame, torch.device("cpu"), x.numpy(), x.numpy(), batch_size=64, num_epochs=EPOCHS, lr=1e-2
    )
    ours = train_one(
        lambda index: x[index], y, initial_probes(24, 26, SEED), epochs=EPOCHS, batch=64, learning_rate=0.01,
        final_learning_rate=1e-5, weight_decay=1e-4, seed=SEED,
    )  # fmt: skip
    torch.testing.assert_close(ours.weight, theirs.weights.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.bias, theirs.biases.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [320, 100])
def test_the_sparse_probe_has_the_weights_of_saebench(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    share_draws(monkeypatch, SEED)
    x, y = DATA.activations[:320].relu(), DATA.labels[:320]
    theirs = train_sparse_multi_probe(
        x, F.one_hot(y, 26), device=torch.device("cpu"), batch_size=batch, num_epochs=EPOCHS, show_progress=False
    )
    ours = train_one(
        lambda index: x[index], y, initial_probes(24, 26, SEED), epochs=EPOCHS, batch=batch, learning_rate=0.01,
        final_learning_rate=1e-5, weight_decay=1e-6, l1=0.01, seed=SEED,
    )  # fmt: skip
    torch.testing.assert_close(ours.weight, theirs.weights.detach(), rtol=1e-5, atol=1e-5)


def test_the_probe_f1_is_that_of_saebench(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAEBench's own statistics take a probability for a threshold; the evaluation counts logits above 0."""
    share_draws(monkeypatch, SEED)
    x, y = DATA.activations, DATA.labels
    theirs = train_sparse_multi_probe(
        x[:320], F.one_hot(y[:320], 26), device=torch.device("cpu"), num_epochs=EPOCHS, show_progress=False
    )
    stats = gen_probe_stats(theirs, x[320:], y[320:], threshold=0.0, device=torch.device("cpu"))
    found = theirs(x[320:]) > 0
    ours = [f1_score(found[:, letter], y[320:] == letter) for letter in range(26)]
    np.testing.assert_allclose(ours, [row.f1 for row in stats], rtol=1e-12)
