"""The linear probes of the metric: one trainer, used on residual streams and on latents."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, sparray
from torch import Tensor
from torch.nn import functional as F

# Rows of a batch, given their indices; sparse where most latents are silent.
Rows = Callable[[Int[Tensor, " batch"]], Float[Tensor, "batch width"] | csr_array]


class LinearProbes(NamedTuple):
    """One-vs-rest probes: logits = x W^T + b. A word is positive where its logit is above 0."""

    weight: Float[Tensor, "letter width"]
    bias: Float[Tensor, " letter"]

    def logits(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row letter"]:
        return F.linear(rows, self.weight, self.bias)


def initial_probes(width: int, letters: int, seed: int) -> LinearProbes:
    """Uniform in +-1/sqrt(width), as `torch.nn.Linear` begins."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(width)
    weight = torch.empty(letters, width).uniform_(-bound, bound, generator=generator)
    return LinearProbes(weight, torch.empty(letters).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def train_probes(
    rows: Sequence[Rows],
    labels: Int[Tensor, " row"],
    initial: Sequence[LinearProbes],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    final_learning_rate: float,
    weight_decay: float,
    l1: float = 0.0,
    seed: int,
) -> list[LinearProbes]:
    """Train one-vs-rest probes with Adam, in float32: all letters, and several inputs of the same words, at once.

        loss = BCEWithLogits(logits, one-hot labels; pos_weight = negatives / positives)
             + l1 * mean over letters of sum |w|

    with the gradient written out (s the sigmoid, t the target, w the positive weight):

        d BCE / d logit = ((1 - t + w t) s(logit) - w t) / (batch * letters)

    Narrower inputs are filled up with weights that are 0 and stay 0: an input's probes are those it gets alone.

    `rows`: for each input, a function that gives a batch in float32; `labels`: the letter of each row; `initial`: for
    each input the starting weights, not changed; all on one device. The learning rate falls by one factor after each
    epoch, not each step; `seed` orders the batches, for all inputs alike.

    Source: SAEBench 0.6.0, `train_multi_probe`.
    """
    letters, device = initial[0].bias.numel(), labels.device
    widths = [probes.weight.shape[1] for probes in initial]
    parameters = torch.zeros(len(rows), max(widths) + 1, letters, device=device)  # W^T, and b as its last row
    for own, probes, width in zip(parameters, initial, widths, strict=True):
        own[:width], own[-1] = probes.weight.T, probes.bias
    parameters.grad = gradient = torch.zeros_like(parameters)
    targets = F.one_hot(labels, letters).float()
    positives = targets.sum(dim=0)
    # A letter without any word would have an infinite weight, and a NaN in everyone's loss.
    weighted = targets * ((len(labels) - positives) / positives.clamp(min=1))
    slope = 1 - targets + weighted
    optimizer = torch.optim.Adam([parameters], lr=learning_rate, weight_decay=weight_decay, fused=True)
    decay = torch.optim.lr_scheduler.ExponentialLR(
        optimizer, gamma=(final_learning_rate / learning_rate) ** (1 / epochs)
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(device)
        for index in order.split(batch):
            step_slope, step_weighted = slope[index], weighted[index]
            for own, own_gradient, of_input, width in zip(parameters, gradient, rows, widths, strict=True):
                x = of_input(index)
                error = _product(x, own[:width]).add_(own[-1]).sigmoid_()
                error.mul_(step_slope).sub_(step_weighted).div_(error.numel())
                own_gradient[:width] = _product(x.T, error)
                own_gradient[-1] = error.sum(dim=0)
            if l1:
                gradient[:, :-1].add_(parameters[:, :-1].sign(), alpha=l1 / letters)
            optimizer.step()
        decay.step()
    return [
        LinearProbes(own[:width].T.contiguous(), own[-1].clone()) for own, width in zip(parameters, widths, strict=True)
    ]


def _product(x: Tensor | sparray, y: Tensor) -> Tensor:
    return x @ y if isinstance(x, Tensor) else torch.from_numpy(x @ y.numpy())


def f1_score(predicted: Bool[Tensor, " row"], truth: Bool[Tensor, " row"]) -> float:
    """F1 = 2 TP / (2 TP + FP + FN); 0 where nothing is positive and nothing is predicted."""
    hits = int((predicted & truth).sum())
    total = int(predicted.sum()) + int(truth.sum())
    return 2 * hits / total if total else 0.0
