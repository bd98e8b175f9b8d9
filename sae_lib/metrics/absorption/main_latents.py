"""An SAE's latents on the words, and which of them stand for a letter: k-sparse probing, and the rule of splits."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sklearn
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.probes import LinearProbes, Rows, f1_score, initial_probes, train_probes
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.stored_reference import require_finite

ROWS = 2048  # encoded at a time
# On a CPU, products with the probes' few columns are faster in compressed rows up to this share of active latents.
_SPARSE_BELOW = 0.08


@torch.no_grad()
def unit_latents(sae: Autoencoder, rows: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
    """Latents as they are when every decoder row has unit norm and its former norm is in the activation. Raises
    ArtifactError: some latent is NaN or infinite."""
    latents = sae.encode(rows.to(sae.device, sae.dtype)).float() * sae.W_dec.float().norm(dim=1)
    require_finite(latents)
    return latents


def live_latents(
    sae: Autoencoder, activations: Float[Tensor, "word d_in"], keep: bool
) -> tuple[Bool[Tensor, " d_sae"], Rows]:
    """Which latents some word turns on, and what gives these latents of some words again and again; without `keep` they
    are encoded again each time."""
    activations, kept = activations.to(sae.device), []
    live = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
    for chunk in activations.split(ROWS):
        latents = unit_latents(sae, chunk)
        live |= latents.any(dim=0)
        if keep:
            kept.append(latents)
    if not keep:
        return live, lambda index: unit_latents(sae, activations[index])[:, live]
    active = sum(int(latents.count_nonzero()) for latents in kept)
    if sae.device.type == "cpu" and active < _SPARSE_BELOW * len(activations) * sae.d_sae:
        rows = vstack([csr_array(latents[:, live].numpy()) for latents in kept], format="csr")
        return live, lambda index: rows[index.numpy()]
    dense = torch.cat([latents[:, live] for latents in kept])
    return live, lambda index: dense.index_select(0, index)


def latent_bytes(saes: Iterable[Autoencoder], words: int) -> int:
    """Memory that the latents of so many words take."""
    return sum(words * sae.d_sae * 4 for sae in saes)


MainLatents = dict[int, tuple[Int[Tensor, "..."], list[float]]]
"""For each letter that counts its main latents, the best first, and the F1 of the first alone, of the first two, ..."""


def main_latents(sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig) -> MainLatents:
    """As many of each letter's best latents as the split rule accepts."""
    return main_latents_of_many([sae], reference, config)[0]


def main_latents_of_many(
    saes: Sequence[Autoencoder], reference: AbsorptionReference, config: AbsorptionConfig
) -> list[MainLatents]:
    """`main_latents` of several SAEs on one device. A letter's latents are ranked by their signed weights in sparse
    probes of all letters and SAEs, which are trained together, without latents that no training word turns on: they
    cannot change a logit, and the others get the same weights in less time."""
    counted, words = reference.counted(config.min_probe_f1), len(reference.train_words)
    if not counted:
        return [{} for _ in saes]
    keep = latent_bytes(saes, words) <= config.latent_bytes
    lives, rows = zip(*(live_latents(sae, reference.train_activations, keep) for sae in saes), strict=True)
    initial = []
    for sae, live in zip(saes, lives, strict=True):
        weight, bias = (tensor.to(sae.device) for tensor in initial_probes(sae.d_sae, len(LETTERS), config.seed))
        initial.append(LinearProbes(weight[:, live], bias))
    probes = train_probes(
        rows, reference.train_labels.to(saes[0].device), initial, epochs=config.probe_epochs,
        batch=steps_batch(words, config.sparse_batch, config.sparse_min_steps),
        learning_rate=config.probe_learning_rate, final_learning_rate=config.probe_final_learning_rate,
        weight_decay=config.sparse_weight_decay, l1=config.sparse_l1, seed=config.seed,
    )  # fmt: skip
    found: list[MainLatents] = []
    for sae, live, probe in zip(saes, lives, probes, strict=True):
        weight = probe.weight.new_full((len(LETTERS), sae.d_sae), -math.inf)  # what is not live comes last
        weight[:, live] = probe.weight
        ranking = weight.topk(min(config.k_max, sae.d_sae), dim=1).indices[counted]
        columns, slot = ranking.unique(return_inverse=True)
        train, test = (
            torch.cat([unit_latents(sae, chunk)[:, columns].cpu() for chunk in activations.split(ROWS)]).numpy()
            for activations in (reference.train_activations, reference.test_activations)
        )
        mains: MainLatents = {}
        for letter, best, places in zip(counted, ranking, slot.cpu().numpy(), strict=True):
            train_truth, test_truth = (reference.train_labels == letter).numpy(), reference.test_labels == letter
            f1_by_k = sparse_f1(train[:, places], test[:, places], train_truth, test_truth, config.logistic_max_iter)
            accepted = accepted_f1(f1_by_k, config.f1_jump)
            mains[letter] = best[: len(accepted)], accepted
        found.append(mains)
    return found


def steps_batch(rows: int, largest: int, min_steps: int) -> int:
    """The largest batch, up to `largest`, that leaves an epoch `min_steps` steps; at least one row."""
    return max(1, min(largest, rows // min_steps))


def accepted_f1(f1_by_k: Iterable[float], jump: float) -> list[float]:
    """F1 with one latent, and with one more for as long as that raises F1 by *more* than `jump`: as many as stand for
    the letter. Reads no further than the first k that fails, and not even that where an F1 of 1 would fail: an iterator
    that fits a probe for each k fits no more than the rule needs.

    >>> accepted_f1([0.50, 0.60, 0.62, 0.90], jump=0.03)
    [0.5, 0.6]
    """
    accepted: list[float] = []
    for f1 in f1_by_k:
        if accepted and not f1 > accepted[-1] + jump:
            break
        accepted.append(f1)
        if f1 + jump >= 1:
            break
    return accepted


def sparse_f1(
    train: Float[np.ndarray, "train k"],
    test: Float[np.ndarray, "test k"],
    train_truth: Bool[np.ndarray, " train"],
    test_truth: Bool[Tensor, " test"],
    max_iter: int,
) -> Iterator[float]:
    """Test F1 of a balanced logistic regression on the first 1, 2, ... latents of a letter, fitted when asked for; of
    activations, the best latent's first, and of which words begin with the letter."""
    # class_weight="balanced", computed once: each class weighs as much as the other.
    words = np.bincount(train_truth, minlength=2)
    weight = (len(train_truth) / (2 * np.maximum(words, 1))).astype(np.float32)[train_truth.astype(int)]
    for k in range(1, train.shape[1] + 1):
        # The limit on iterations is part of the metric. What is not checked here is known to be right.
        with warnings.catch_warnings(), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression = LogisticRegression(max_iter=max_iter).fit(train[:, :k], train_truth, sample_weight=weight)
        scores = test[:, :k] @ regression.coef_[0] + regression.intercept_[0]
        yield f1_score(torch.from_numpy(scores > 0), test_truth)
