"""The linear probes of the metric: one trainer, used on residual streams and on latents."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

# Rows of a batch, given their indices: a tensor's rows, or latents encoded when they are asked for.
Rows = Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch width"]]


class LinearProbes(NamedTuple):
    """One-vs-rest probes that share their input: logits = x W^T + b. A word is positive where its logit is
    above 0."""

    weight: Float[Tensor, "letter width"]
    bias: Float[Tensor, " letter"]

    def logits(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row letter"]:
        return F.linear(rows, self.weight, self.bias)


def initial_probes(width: int, letters: int, seed: int) -> LinearProbes:
    """Weights and biases uniform in +-1/sqrt(width), the initialisation of `torch.nn.Linear`, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(width)
    weight = torch.empty(letters, width).uniform_(-bound, bound, generator=generator)
    return LinearProbes(weight, torch.empty(letters).uniform_(-bound, bound, generator=generator))


def train_probes(
    rows: Rows,
    labels: Int[Tensor, " row"],
    initial: LinearProbes,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    final_learning_rate: float,
    weight_decay: float,
    l1: float = 0.0,
    seed: int,
) -> LinearProbes:
    """Train one-vs-rest probes with Adam, in float32, all letters at once.

        loss = BCEWithLogits(logits, one-hot labels; pos_weight = negatives / positives)
             + l1 * mean over letters of sum |w|

    Args:
        rows: gives the inputs of a batch, float32, on the device of `labels`.
        labels: the letter of each row.
        initial: starting weights, on the same device; not changed.
        epochs: passes over the rows; the learning rate falls by one factor after each, not after each step.
        l1: weight of the L1 term; 0 leaves it out.
        seed: orders the batches.

    Source: SAEBench 0.6.0, `train_multi_probe`.
    """
    probes = LinearProbes(*(tensor.clone().requires_grad_() for tensor in initial))
    letters = probes.bias.numel()
    targets = F.one_hot(labels, letters).float()
    positives = targets.sum(dim=0)
    # A letter without any word would have an infinite weight, and a NaN in everyone's loss.
    positive_weight = (len(labels) - positives) / positives.clamp(min=1)
    optimizer = torch.optim.Adam(list(probes), lr=learning_rate, weight_decay=weight_decay, fused=True)
    decay = torch.optim.lr_scheduler.ExponentialLR(
        optimizer, gamma=(final_learning_rate / learning_rate) ** (1 / epochs)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            for index in order.split(batch):
                logits = probes.logits(rows(index))
                loss = F.binary_cross_entropy_with_logits(logits, targets[index], pos_weight=positive_weight)
                if l1:
                    loss = loss + l1 * probes.weight.abs().sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            decay.step()
    return LinearProbes(*(tensor.detach() for tensor in probes))


def f1_score(predicted: Bool[Tensor, " row"], truth: Bool[Tensor, " row"]) -> float:
    """F1 = 2 TP / (2 TP + FP + FN); 0 where nothing is positive and nothing is predicted."""
    hits = int((predicted & truth).sum())
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * hits / total if total else 0.0


def letter_labels(words: Sequence[str], letters: str) -> Int[Tensor, " word"]:
    """The index in `letters` of each word's first letter."""
    return torch.tensor([letters.index(word.strip()[0].lower()) for word in words], dtype=torch.long)
