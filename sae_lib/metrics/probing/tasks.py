"""From labelled texts to balanced binary tasks, one class against the others; and the sparse probe of a task."""

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sae_lib.util.errors import ArtifactError

Tokens = tuple[int, ...]


class LabelledTexts(NamedTuple):
    """The texts of a dataset, or of a part of it, by class, as token ids without BOS."""

    dataset: str
    train: dict[str, list[Tokens]]
    test: dict[str, list[Tokens]]
    tasks: tuple[str, ...]
    """Classes that are a task: the class against all the others."""


class ProbingTask(NamedTuple):
    """One binary task. `train` and `test` are numbers of texts, shuffled; half of each have a positive label."""

    dataset: str
    name: str
    train: Int[Tensor, " train"]
    train_labels: Bool[Tensor, " train"]
    test: Int[Tensor, " test"]
    test_labels: Bool[Tensor, " test"]


def tokenise(texts: Sequence[str], tokenizer: Any, context: int) -> list[Tokens]:
    """Token ids of each text without BOS, cut to a context of `context` tokens with it."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, truncation=True, max_length=context - 1, return_attention_mask=False
    )
    return [tuple(ids) for ids in encoded["input_ids"]]


def tasks_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Each class against the others; of two the first against the second. (SAEBench averages both, which are one probe
    with its sign turned.)"""
    return tuple(classes[:1] if len(classes) == 2 else classes)


def draw_tasks(datasets: Sequence[LabelledTexts], seed: int) -> tuple[list[Tokens], list[ProbingTask]]:
    """The distinct texts of `datasets`, and the tasks on them: all texts of a class, and as many drawn evenly from the
    others. The draws are SAEBench's own (`prepare_probe_data`), so `torch.manual_seed(seed)` in front of its
    `train_probe_on_activations` selects the same texts.

    Raises ArtifactError: the other classes hold too few texts; names the task.
    """
    number: dict[Tokens, int] = defaultdict(count().__next__)
    tasks = []
    for name, of_train, of_test, labels in datasets:
        generator = torch.Generator().manual_seed(seed)
        splits = {
            what: {label: torch.tensor([number[text] for text in texts]) for label, texts in classes.items()}
            for what, classes in (("training", of_train), ("test", of_test))
        }
        for label in labels:
            train, test = (
                _one_against_rest(classes, label, generator, f"{name}, task {label}, {what} texts")
                for what, classes in splits.items()
            )
            tasks.append(ProbingTask(name, label, *train, *test))
    return list(number), tasks


def _one_against_rest(
    classes: dict[str, Int[Tensor, " text"]], positive: str, generator: torch.Generator, where: str
) -> tuple[Int[Tensor, " drawn"], Bool[Tensor, " drawn"]]:
    positives = classes[positive]
    others = [texts for label, texts in classes.items() if label != positive]
    if not others:
        raise ArtifactError(f"probing: {where}: there is one class only, and a task needs two")
    each = _evenly(len(positives), [len(texts) for texts in others])
    negatives = torch.cat([texts[torch.randperm(len(texts), generator=generator)[:each]] for texts in others])
    negatives = negatives[torch.randperm(len(negatives), generator=generator)[: len(positives)]]
    if len(negatives) < len(positives):
        raise ArtifactError(
            f"probing: {where}: the other classes have {len(negatives)} texts, needed: {len(positives)}; "
            "lower probing.train_per_task and probing.test_per_task, or give more text"
        )
    texts = torch.cat([positives, negatives])
    labels = torch.arange(len(texts)) < len(positives)
    order = torch.randperm(len(texts), generator=generator)
    return texts[order], labels[order]


def _evenly(needed: int, sizes: list[int]) -> int:
    """How many to take from each class, at most, for `needed` together: SAEBench's ceil(needed / classes), and more of
    the large classes where a small one has fewer."""
    each = math.ceil(needed / len(sizes))
    while each < max(sizes) and sum(min(size, each) for size in sizes) < needed:
        each += 1
    return each


def require(have: int, need: int, where: str) -> None:
    """Raises ArtifactError where a class has too few texts."""
    if have < need:
        raise ArtifactError(
            f"probing: {where}: {have} texts, needed: {need}; "
            "lower probing.train_per_task or probing.test_per_task, or give more text"
        )


def top_dimensions(means: Float[Tensor, "text dim"], labels: Bool[Tensor, " text"], k: int) -> Int[Tensor, " k"]:
    """The k dimensions (all, where there are fewer) with the largest |mean over positives - mean over negatives|, the
    largest first. Source: SAEBench 0.6.0, `get_top_k_mean_diff_mask`."""
    difference = (means[labels].mean(dim=0) - means[~labels].mean(dim=0)).abs()
    return difference.topk(min(k, means.shape[1])).indices


def logistic_accuracy(means: Float[Tensor, "text dim"], task: ProbingTask, max_iter: int) -> float:
    """Test accuracy of scikit-learn's logistic regression with an L2 penalty, C = 1 and its default solver. Source:
    SAEBench 0.6.0, `train_sklearn_probe`."""
    with warnings.catch_warnings():
        # The limit on iterations is part of the metric, not an accident.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=1.0, max_iter=max_iter).fit(means[task.train].numpy(), task.train_labels.numpy())
    return float((probe.predict(means[task.test].numpy()) == task.test_labels.numpy()).mean())


def sparse_accuracies(
    means: Float[Tensor, "text dim"], task: ProbingTask, ks: tuple[int, ...], max_iter: int
) -> list[float]:
    """Test accuracy of the probe on the best k dimensions, for each k."""
    ranked = top_dimensions(means[task.train], task.train_labels, max(ks))
    return [logistic_accuracy(means[:, ranked[:k].sort().values], task, max_iter) for k in ks]
