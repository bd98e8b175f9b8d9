"""From labelled texts to balanced tasks, and the probe on them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.tasks import (
    LabelledTexts,
    ProbingTask,
    draw_tasks,
    logistic_accuracy,
    sparse_accuracies,
    tokenise,
    top_dimensions,
)
from sae_lib.util.errors import ArtifactError


def numbered(**sizes: int) -> dict[str, list[tuple[int, ...]]]:
    """Classes of distinct one-token texts: class c of size n has tokens 100 c, 100 c + 1, ..."""
    return {label: [(100 * c + i,) for i in range(n)] for c, (label, n) in enumerate(sizes.items())}


def test_a_task_has_all_of_its_class_and_as_many_drawn_evenly_from_the_others():
    datasets = [LabelledTexts("letters", numbered(a=12, b=12, c=12, d=12), numbered(a=5, b=5, c=5, d=5), ("a", "d"))]
    texts, tasks = draw_tasks(datasets, seed=0)
    assert [(task.dataset, task.name) for task in tasks] == [("letters", "a"), ("letters", "d")]
    # The same tokens in training and test texts are one text.
    assert len(texts) == len(set(texts)) == 48
    for task, positive in zip(tasks, (0, 3), strict=True):
        classes = torch.tensor([text[0] // 100 for text in texts])
        for drawn, labels, size in ((task.train, task.train_labels, 12), (task.test, task.test_labels, 5)):
            assert torch.equal(labels, classes[drawn] == positive)
            assert labels.sum() == size and len(drawn) == 2 * size == len(drawn.unique())
        # 12 negatives of three classes: four of each.
        counts = torch.bincount(classes[task.train][~task.train_labels], minlength=4).tolist()
        assert sorted(counts) == [0, 4, 4, 4]
        # Shuffled: not all positives first.
        assert not task.train_labels[:12].all()


def test_the_seed_decides_the_negatives():
    datasets = [LabelledTexts("letters", numbered(a=10, b=50), numbered(a=4, b=20), ("a",))]
    (first,), (again,), (other,) = (draw_tasks(datasets, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first.train, again.train) and torch.equal(first.test, again.test)
    assert set(first.train.tolist()) != set(other.train.tolist())


def test_a_small_class_gives_what_it_has_and_the_large_ones_the_rest():
    train = numbered(a=10, b=2, c=50)
    texts, (task,) = draw_tasks([LabelledTexts("letters", train, train, ("a",))], seed=0)
    classes = torch.tensor([text[0] // 100 for text in texts])[task.train]
    assert torch.bincount(classes).tolist() == [10, 2, 8]


def test_too_few_texts_of_the_others_name_the_task():
    few = [LabelledTexts("letters", numbered(a=10, b=3, c=4), numbered(a=1, b=1), ("a",))]
    with pytest.raises(ArtifactError, match="task a, training texts: the other classes have 7 texts, needed: 10"):
        draw_tasks(few, seed=0)
    alone = [LabelledTexts("letters", numbered(a=10), numbered(a=1), ("a",))]
    with pytest.raises(ArtifactError, match="letters, task a, training texts: there is one class only"):
        draw_tasks(alone, seed=0)


def test_texts_leave_room_for_bos(tokenizer):
    long, short = tokenise(["ban ben bin bon bun " * 20, "ban"], tokenizer, context=8)
    assert len(long) == 7 and len(short) <= 3
    assert list(long) == tokenizer("ban ben bin bon bun " * 20, add_special_tokens=False)["input_ids"][:7]
    assert tokenise([], tokenizer, context=8) == []


def test_dimensions_are_ranked_by_the_difference_of_means():
    labels = torch.tensor([True, True, False, False])
    means = torch.tensor([[1.0, 0, 5, 0], [3, 0, 5, 1], [1, 4, 5, 0], [1, 2, 5, 0]])
    # Differences: 2 - 1, 0 - 3, 5 - 5, 0.5 - 0.
    assert top_dimensions(means, labels, 3).tolist() == [1, 0, 3]
    assert sorted(top_dimensions(means, labels, 9).tolist()) == [0, 1, 2, 3]


def test_one_dimension_that_holds_the_label_is_enough():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2 == 0
    means = torch.rand(80, 6, generator=generator)
    means[:, 4] += 5 * labels
    train, test = torch.arange(60), torch.arange(60, 80)
    task = ProbingTask("letters", "a", train, labels[train], test, labels[test])
    assert sparse_accuracies(means, task, (1, 2), 1000) == [1.0, 1.0]
    # A label that was turned round in the test texts is never predicted.
    assert sparse_accuracies(means, task._replace(test_labels=~labels[test]), (1,), 1000) == [0.0]


def test_the_probe_is_the_minimum_of_the_regularised_loss():
    """Against Newton's method, written out: w minimises |w|^2 / 2 + sum of log(1 + exp(-y (w x + b)))."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    y = x[:, 0] - 0.5 * x[:, 1] + rng.normal(size=200) > 0.2
    rows = np.c_[x.astype(np.float64), np.ones(200)]
    penalty = np.diag([1.0, 1.0, 1.0, 0.0])
    w = np.zeros(4)
    for _ in range(30):
        p = 1 / (1 + np.exp(-rows @ w))
        w -= np.linalg.solve(rows.T @ (rows * (p * (1 - p))[:, None]) + penalty, rows.T @ (p - y) + penalty @ w)
    test = rng.normal(size=(100, 3)).astype(np.float32)
    expected = test @ w[:3] + w[3] > 0
    means, train = torch.from_numpy(np.concatenate([x, test])), torch.arange(200)
    task = ProbingTask("d", "t", train, torch.from_numpy(y), torch.arange(200, 300), torch.from_numpy(expected))
    assert logistic_accuracy(means, task, 1000) >= 0.99
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(fitted.coef_[0], w[:3], atol=1e-2)


def test_configuration():
    with pytest.raises(ValidationError, match=r"needs probing\.files"):
        ProbingConfig(source="files")
    for ks in ((0,), (1, 1)):
        with pytest.raises(ValidationError, match="ks must be distinct"):
            ProbingConfig(ks=ks)
    with pytest.raises(ValidationError, match="multiple of 2"):
        ProbingConfig(train_per_task=5)
