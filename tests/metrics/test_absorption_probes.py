"""The probe trainer and the choice of a letter's latents."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from sae_lib.metrics.absorption.main_latents import accepted_f1, sparse_f1, steps_batch, top_latents
from sae_lib.metrics.absorption.probes import (
    LinearProbes,
    f1_score,
    initial_probes,
    train_probes,
)
from sae_lib.metrics.absorption.reference import AbsorptionReference
from tests.metrics.tiny_saes import train_one

TRAINING: dict[str, Any] = {
    "epochs": 6, "batch": 16, "learning_rate": 0.05, "final_learning_rate": 0.001, "weight_decay": 1e-3, "l1": 0.02,
    "seed": 3,
}  # fmt: skip


def adam_by_hand(x, y, weight, bias, *, epochs, batch, learning_rate, final_learning_rate, weight_decay, l1, seed):
    """The same training in numpy: gradients and Adam written out."""
    x, weight, bias = x.astype(np.float64), weight.astype(np.float64), bias.astype(np.float64)
    targets = np.eye(len(bias))[y]
    positive_weight = (len(y) - targets.sum(0)) / targets.sum(0)
    parameters = [weight, bias]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for epoch in range(epochs):
        rate = learning_rate * (final_learning_rate / learning_rate) ** (epoch / epochs)
        order = torch.randperm(len(y), generator=generator).numpy()
        for start in range(0, len(y), batch):
            rows = order[start : start + batch]
            logits = x[rows] @ parameters[0].T + parameters[1]
            sigmoid = 1 / (1 + np.exp(-logits))
            # d/dz of -(w t log s + (1 - t) log(1 - s)), mean over rows and letters
            gradient = (1 - targets[rows]) * sigmoid - positive_weight * targets[rows] * (1 - sigmoid)
            gradient /= gradient.size
            gradients = [
                gradient.T @ x[rows] + l1 * np.sign(parameters[0]) / len(bias),
                gradient.sum(0),
            ]
            step += 1
            for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                g = g + weight_decay * p
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g**2
                corrected = first[i] / (1 - 0.9**step)
                scale = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
                parameters[i] = p - rate * corrected / scale
    return parameters


@pytest.mark.parametrize("l1", [0.0, 0.05])
def test_training_is_adam_with_one_decay_per_epoch(l1):
    torch.manual_seed(0)
    x, y = torch.randn(10, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
    initial = initial_probes(5, 3, seed=1)
    options = TRAINING | {"l1": l1, "batch": 4, "epochs": 4, "seed": 7}
    trained = train_one(lambda index: x[index], y, initial, **options)
    weight, bias = adam_by_hand(x.numpy(), y.numpy(), initial.weight.numpy(), initial.bias.numpy(), **options)
    np.testing.assert_allclose(trained.weight.numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(trained.bias.numpy(), bias, atol=1e-5)


def test_probe_separates_what_is_separable_and_generalises():
    torch.manual_seed(0)
    labels = torch.randint(0, 26, (1500,))
    x = torch.randn(26, 40)[labels] * 2 + 0.3 * torch.randn(1500, 40)
    options = TRAINING | {"epochs": 20, "batch": 64, "learning_rate": 0.01, "l1": 0.0}
    trained = train_one(lambda index: x[:1200][index], labels[:1200], initial_probes(40, 26, seed=0), **options)
    found = trained.logits(x[1200:]) > 0
    f1 = [f1_score(found[:, letter], labels[1200:] == letter) for letter in range(26)]
    assert min(f1) > 0.95


def test_a_letter_without_words_does_no_harm():
    x, y = torch.eye(3), torch.tensor([0, 1, 1])
    options = TRAINING | {"epochs": 30, "learning_rate": 0.1, "weight_decay": 0.0, "l1": 0.0}
    trained = train_one(lambda index: x[index], y, initial_probes(3, 4, seed=0), **options)
    assert trained.weight.isfinite().all()
    assert (trained.logits(x) > 0).tolist() == [[i == label for i in range(4)] for label in y.tolist()]


def test_silent_latents_do_not_change_the_training_of_the_others():
    torch.manual_seed(0)
    x, y = torch.randn(40, 6).relu(), torch.arange(40) % 3
    x[:, [1, 4]] = 0
    live = torch.tensor([True, False, True, True, False, True])
    initial = initial_probes(6, 3, seed=0)
    everything = train_one(lambda index: x[index], y, initial, **TRAINING)
    only_live = LinearProbes(initial.weight[:, live], initial.bias)
    restricted = train_one(lambda index: x[index][:, live], y, only_live, **TRAINING)
    torch.testing.assert_close(restricted.weight, everything.weight[:, live])
    torch.testing.assert_close(restricted.bias, everything.bias)


def some_latents(width: int, share: float) -> torch.Tensor:
    """Sixty words, of which a share turns each latent on."""
    generator = torch.Generator().manual_seed(width)
    values = torch.rand(60, width, generator=generator)
    return values * (torch.rand(60, width, generator=generator) < share)


def test_trained_together_each_input_gets_the_probes_it_gets_alone():
    labels = torch.arange(60) % 5
    inputs = [some_latents(width, 0.5) for width in (12, 7, 20)]
    rows = [lambda index, x=x: x[index] for x in inputs]
    initial = [initial_probes(x.shape[1], 5, seed=1) for x in inputs]
    together = train_probes(rows, labels, initial, **TRAINING)
    for own_rows, start, probes in zip(rows, initial, together, strict=True):
        alone = train_one(own_rows, labels, start, **TRAINING)
        torch.testing.assert_close(probes.weight, alone.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(probes.bias, alone.bias, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(probes.weight, start.weight, atol=1e-2)


def test_sparse_rows_train_the_probes_of_dense_rows():
    labels, x = torch.arange(60) % 5, some_latents(30, 0.1)
    sparse, initial = csr_array(x.numpy()), initial_probes(30, 5, seed=1)
    one = train_one(lambda index: x[index], labels, initial, **TRAINING)
    other = train_one(lambda index: sparse[index.numpy()], labels, initial, **TRAINING)
    torch.testing.assert_close(other.weight, one.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.bias, one.bias, rtol=1e-5, atol=1e-6)


def test_f1_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        predicted = torch.rand(50, generator=generator) < share
        truth = torch.rand(50, generator=generator) < 0.3
        expected = metrics.f1_score(truth.numpy(), predicted.numpy(), zero_division=0)
        assert f1_score(predicted, truth) == pytest.approx(expected)
    nothing = torch.zeros(5, dtype=torch.bool)
    assert f1_score(nothing, nothing) == 0


def test_an_epoch_has_at_least_eight_steps():
    # 3,160 words in batches of 4,096 are one step an epoch; 395 make eight.
    assert steps_batch(3160, largest=4096, min_steps=8) == 395
    assert steps_batch(80_000, largest=4096, min_steps=8) == 4096
    assert steps_batch(5, largest=4096, min_steps=8) == 1
    for rows in range(8, 200):
        assert -(-rows // steps_batch(rows, 4096, 8)) >= 8


def test_latents_are_ranked_by_signed_weight():
    live = torch.tensor([False, True, True, False, True])
    weight = torch.tensor([[-9.0, 2.0, 1.0], [0.5, -0.1, 0.7]])
    # Latents 1, 2 and 4 are live. A large negative weight never comes first; silent latents come last of all.
    ranking = top_latents(weight, live, k=3)
    assert ranking.tolist() == [[2, 4, 1], [4, 1, 2]]
    assert set(top_latents(weight, live, k=5)[0, 3:].tolist()) == {0, 3}


def test_splits_need_a_jump_that_is_strictly_larger():
    assert accepted_f1([0.0, 0.02, 0.9], jump=0.03) == [0.0]  # k = 1 always counts
    assert 0.5 + 0.03 == 0.53
    assert accepted_f1([0.5, 0.53, 0.9], jump=0.03) == [0.5]
    assert accepted_f1([0.5, 0.54, 0.58, 0.60, 0.99], jump=0.03) == [0.5, 0.54, 0.58]
    assert accepted_f1([0.9, 0.2], jump=0.03) == [0.9]


@pytest.mark.parametrize(
    "f1, accepted, tried", [([0.5, 0.6, 0.61, 0.9], [0.5, 0.6], 3), ([0.5, 0.98, 1.0], [0.5, 0.98], 2)]
)
def test_no_probe_is_fitted_beyond_the_first_failure_or_where_an_f1_of_one_would_be_no_split(f1, accepted, tried):
    waiting = iter(f1)
    assert accepted_f1(waiting, jump=0.03) == accepted
    assert len(list(waiting)) == len(f1) - tried


def test_sparse_f1_is_that_of_the_balanced_regression():
    generator = np.random.default_rng(0)
    truth = generator.random(300) < 0.1
    active = generator.random((300, 3)) < np.where(truth, 0.7, 0.05)[:, None]
    activations = (active * generator.random((300, 3))).astype(np.float32)
    test, test_truth = activations[::2] + np.float32(0.01), truth[::2]
    expected = []
    for k in (1, 2, 3):
        regression = LogisticRegression(max_iter=500, class_weight="balanced").fit(activations[:, :k], truth)
        expected.append(metrics.f1_score(test_truth, regression.predict(test[:, :k])))
    assert list(sparse_f1(activations, test, truth, torch.from_numpy(test_truth), max_iter=500)) == expected
    assert len(set(expected)) == 3


def test_sparse_f1_of_one_and_two_latents():
    # Latent 0 is on for the first half of the letter's words, latent 1 for the second half: one latent finds
    # half of the words (precision 1, recall 1/2, F1 2/3), both find all.
    first = np.array([1, 1, 0, 0] + [0] * 12, dtype=np.float32)
    second = np.array([0, 0, 1, 1] + [0] * 12, dtype=np.float32)
    activations = np.stack([first, second], axis=1) * 10
    truth = np.array([1] * 4 + [0] * 12, dtype=bool)
    f1 = list(sparse_f1(activations, activations, truth, torch.from_numpy(truth), max_iter=500))
    assert f1 == pytest.approx([2 / 3, 1])


def test_labels_look_past_the_leading_space():
    assert [AbsorptionReference.class_of(word) for word in (" Apple", "bee", "Z")] == [0, 1, 25]
