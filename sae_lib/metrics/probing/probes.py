"""The choice of the k dimensions that a sparse probe reads, and the probe."""

import warnings

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor


def top_dimensions(means: Float[Tensor, "text dim"], labels: Bool[Tensor, " text"], k: int) -> Int[Tensor, " k"]:
    """The k dimensions with the largest |mean over positives - mean over negatives|, the largest first; all of
    them where there are fewer than k.

    Source: SAEBench 0.6.0, `get_top_k_mean_diff_mask`.
    """
    difference = (means[labels].mean(dim=0) - means[~labels].mean(dim=0)).abs()
    return difference.topk(min(k, means.shape[1])).indices


def logistic_accuracy(
    train: Float[np.ndarray, "train dim"],
    train_labels: Bool[np.ndarray, " train"],
    test: Float[np.ndarray, "test dim"],
    test_labels: Bool[np.ndarray, " test"],
    max_iter: int,
) -> float:
    """Test accuracy of scikit-learn's logistic regression with an L2 penalty, C = 1 and its default solver.

    Source: SAEBench 0.6.0, `train_sklearn_probe`.
    """
    with warnings.catch_warnings():
        # The limit on iterations is part of the metric, not an accident.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(C=1.0, max_iter=max_iter).fit(train, train_labels)
    return float((probe.predict(test) == test_labels).mean())


def sparse_accuracies(
    train: Float[Tensor, "train dim"],
    train_labels: Bool[Tensor, " train"],
    test: Float[Tensor, "test dim"],
    test_labels: Bool[Tensor, " test"],
    ks: tuple[int, ...],
    max_iter: int,
) -> list[float]:
    """Test accuracy of the probe on the best k dimensions, for each k. All tensors are on the CPU."""
    ranked = top_dimensions(train, train_labels, max(ks))
    accuracies = []
    for k in ks:
        chosen = ranked[:k].sort().values
        accuracies.append(
            logistic_accuracy(
                train[:, chosen].numpy(), train_labels.numpy(), test[:, chosen].numpy(), test_labels.numpy(), max_iter
            )
        )
    return accuracies
