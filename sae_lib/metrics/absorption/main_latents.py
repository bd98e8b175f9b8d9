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
from sae_lib.metrics.absorption.probes import LinearProbes, f1_score, initial_probes, train_probes
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


def latent_bytes(sae: Autoencoder, words: int) -> int:
    """Memory that the latents of so many words take."""
    return words * sae.d_sae * 4


class WordLatents:
    """Latents of words that are read in batches again and again; without `keep` they are encoded again each time. Those
    that some word turns on are `live`."""

    def __init__(self, sae: Autoencoder, activations: Float[Tensor, "word d_in"], keep: bool) -> None:
        self._sae, self._activations = sae, activations.to(sae.device)
        self.live = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
        kept = []
        for chunk in self._activations.split(ROWS):
            latents = unit_latents(sae, chunk)
            self.live |= latents.any(dim=0)
            if keep:
                kept.append(latents)
        self._kept: Tensor | csr_array | None = None
        active = sum(int(latents.count_nonzero()) for latents in kept)
        if keep and sae.device.type == "cpu" and active < _SPARSE_BELOW * len(activations) * sae.d_sae:
            self._kept = vstack([csr_array(latents[:, self.live].numpy()) for latents in kept], format="csr")
        elif keep:
            self._kept = torch.cat([latents[:, self.live] for latents in kept])

    def rows(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch live"] | csr_array:
        """The live latents of some words."""
        if self._kept is None:
            return unit_latents(self._sae, self._activations[index])[:, self.live]
        return self._kept.index_select(0, index) if isinstance(self._kept, Tensor) else self._kept[index.numpy()]

    def columns(self, latents: Int[Tensor, " chosen"]) -> Float[np.ndarray, "word chosen"]:
        """Some latents of every word."""
        kept = self._kept
        if kept is None:
            return latent_columns(self._sae, self._activations, latents)
        alive = self.live[latents]
        place = (self.live.cumsum(0) - 1)[latents[alive]]
        own = kept[:, place].cpu().numpy() if isinstance(kept, Tensor) else kept[:, place.numpy()].toarray()
        chosen = np.zeros((len(self._activations), len(latents)), dtype=np.float32)
        chosen[:, alive.cpu().numpy()] = own
        return chosen


def latent_columns(
    sae: Autoencoder, activations: Float[Tensor, "word d_in"], latents: Int[Tensor, " chosen"]
) -> Float[np.ndarray, "word chosen"]:
    """Some latents of every word, from the activations."""
    return torch.cat([unit_latents(sae, chunk)[:, latents].cpu() for chunk in activations.split(ROWS)]).numpy()


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
    keep = sum(latent_bytes(sae, words) for sae in saes) <= config.latent_bytes
    latents = [WordLatents(sae, reference.train_activations, keep) for sae in saes]
    initial = []
    for sae, own in zip(saes, latents, strict=True):
        weight, bias = (tensor.to(sae.device) for tensor in initial_probes(sae.d_sae, len(LETTERS), config.seed))
        initial.append(LinearProbes(weight[:, own.live], bias))
    probes = train_probes(
        [own.rows for own in latents], reference.train_labels.to(saes[0].device), initial, epochs=config.probe_epochs,
        batch=steps_batch(words, config.sparse_batch, config.sparse_min_steps),
        learning_rate=config.probe_learning_rate, final_learning_rate=config.probe_final_learning_rate,
        weight_decay=config.sparse_weight_decay, l1=config.sparse_l1, seed=config.seed,
    )  # fmt: skip
    found: list[MainLatents] = []
    for sae, own, probe in zip(saes, latents, probes, strict=True):
        ranking = top_latents(probe.weight, own.live, min(config.k_max, sae.d_sae))[counted]
        columns, slot = ranking.unique(return_inverse=True)
        train, test = own.columns(columns), latent_columns(sae, reference.test_activations, columns)
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


def top_latents(weight: Float[Tensor, "letter live"], live: Bool[Tensor, " d_sae"], k: int) -> Int[Tensor, "letter k"]:
    """The k latents of each letter with the largest *signed* weights, best first. `weight` is of those latents that are
    `live`; the others can only fill up a ranking that would be too short."""
    everywhere = weight.new_full((len(weight), len(live)), -math.inf)
    everywhere[:, live] = weight
    return everywhere.topk(k, dim=1).indices
