"""Which latents stand for a letter: k-sparse probing, and the rule that counts feature splits."""

import math
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.errors import ArtifactError
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.probes import LinearProbes, f1_score, initial_probes, train_probes
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.vocabulary import LETTERS

# Rows that are encoded at a time.
ROWS = 2048


def main_latents(
    sae: Autoencoder, reference: AbsorptionReference, counted: list[int], config: AbsorptionConfig
) -> list[tuple[Int[Tensor, " main"], float]]:
    """For each counted letter its main latents and the F1 of the first alone."""
    ranking = _rank_latents(sae, reference, config)[counted]
    columns, slot = ranking.unique(return_inverse=True)

    def chosen(activations: Tensor) -> Tensor:
        return torch.cat([unit_latents(sae, chunk)[:, columns].cpu() for chunk in activations.split(ROWS)])

    train, test = chosen(reference.train_activations).numpy(), chosen(reference.test_activations).numpy()
    mains = []
    for row, letter in enumerate(counted):
        own = slot[row].cpu().numpy()
        f1_by_k = sparse_f1(
            train[:, own],
            test[:, own],
            (reference.train_labels == letter).numpy(),
            reference.test_labels == letter,
            config.logistic_max_iter,
        )
        accepted = accepted_f1(f1_by_k, config.f1_jump)
        mains.append((ranking[row, : len(accepted)], accepted[0]))
    return mains


def _rank_latents(
    sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig
) -> Int[Tensor, "letter k"]:
    """Train the sparse probes of all letters together; rank each letter's latents by signed weight.

    Latents that no training word turns on cannot change a logit: they are left out of the training, which
    gives the other weights the same values in less time.
    """
    activations = reference.train_activations.to(sae.device)
    labels = reference.train_labels.to(sae.device)
    keep = len(activations) * sae.d_sae * 4 <= config.latent_bytes
    live = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
    kept = []
    for chunk in activations.split(ROWS):
        latents = unit_latents(sae, chunk)
        live |= (latents != 0).any(dim=0)
        if keep:
            kept.append(latents)
    everything = torch.cat(kept)[:, live] if keep else None

    def rows(index: Int[Tensor, " batch"]) -> Float[Tensor, "batch live"]:
        if everything is not None:
            return everything[index]
        return unit_latents(sae, activations[index])[:, live]

    initial = initial_probes(sae.d_sae, len(LETTERS), config.seed)
    probes = train_probes(
        rows,
        labels,
        LinearProbes(initial.weight.to(sae.device)[:, live], initial.bias.to(sae.device)),
        epochs=config.probe_epochs,
        batch=steps_batch(len(labels), config.sparse_batch, config.sparse_min_steps),
        learning_rate=config.probe_learning_rate,
        final_learning_rate=config.probe_final_learning_rate,
        weight_decay=config.sparse_weight_decay,
        l1=config.sparse_l1,
        seed=config.seed,
    )
    return top_latents(probes.weight, live, min(config.k_max, sae.d_sae))


@torch.no_grad()
def unit_latents(sae: Autoencoder, rows: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
    """Latents as they are when every decoder row has unit norm and its former norm is in the activation."""
    latents = sae.encode(rows.to(sae.device, sae.dtype)).float() * sae.W_dec.float().norm(dim=1)
    if not latents.isfinite().all():
        raise ArtifactError(
            "sae: its latents hold NaN or infinite values; train it again from its last good checkpoint"
        )
    return latents


def steps_batch(rows: int, largest: int, min_steps: int) -> int:
    """The largest batch, up to `largest`, that leaves an epoch `min_steps` steps; at least one row."""
    return max(1, min(largest, rows // min_steps))


def accepted_f1(f1_by_k: Iterable[float], jump: float) -> list[float]:
    """F1 with one latent, and with one more for as long as that raises F1 by *more* than `jump`.

    The length is the number of latents that stand for the letter. Reads no further than the first k that
    fails: an iterator that fits a probe for each k fits no more than the rule needs.

    >>> accepted_f1([0.50, 0.60, 0.62, 0.90], jump=0.03)
    [0.5, 0.6]
    """
    accepted: list[float] = []
    for f1 in f1_by_k:
        if accepted and not f1 > accepted[-1] + jump:
            break
        accepted.append(f1)
    return accepted


def sparse_f1(
    train: Float[np.ndarray, "train k"],
    test: Float[np.ndarray, "test k"],
    train_truth: Bool[np.ndarray, " train"],
    test_truth: Bool[Tensor, " test"],
    max_iter: int,
) -> Iterator[float]:
    """Test F1 of a balanced logistic regression on the first 1, 2, ... latents, fitted when asked for.

    Args:
        train, test: activations of a letter's latents, the best first.
        train_truth, test_truth: which words begin with the letter.
    """
    for k in range(1, train.shape[1] + 1):
        with warnings.catch_warnings():
            # The limit on iterations is part of the metric, not an accident.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression = LogisticRegression(max_iter=max_iter, class_weight="balanced")
            regression.fit(train[:, :k], train_truth)
        scores = test[:, :k] @ regression.coef_[0] + regression.intercept_[0]
        yield f1_score(torch.from_numpy(scores > 0), test_truth)


def top_latents(weight: Float[Tensor, "letter live"], live: Bool[Tensor, " d_sae"], k: int) -> Int[Tensor, "letter k"]:
    """The k latents of each letter with the largest *signed* weights, best first.

    Args:
        weight: the sparse probe's weights on the latents that are ever on.
        live: which latents these are. The others can only fill up a ranking that would be too short.
        k: at most d_sae.
    """
    everywhere = weight.new_full((len(weight), len(live)), -math.inf)
    everywhere[:, live] = weight
    return everywhere.topk(k, dim=1).indices
