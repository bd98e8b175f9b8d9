"""Absorption of an SAE: the scores of its words, averaged over a letter and over letters."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.latents import ROWS, latent_bytes, unit_latents
from sae_lib.metrics.absorption.main_latents import MainLatents, main_latents_of_many
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.vocabulary import LETTERS
from sae_lib.metrics.absorption.word_scores import Letters, WordScores, score_words, score_words_of_letters
from sae_lib.metrics.width import require_width

__all__ = [
    "LETTER_COLUMNS",
    "AbsorptionResult",
    "WordScores",
    "evaluate_absorption",
    "evaluate_absorption_many",
    "score_words",
]

LETTER_COLUMNS = [
    "letter",
    "probe_f1",
    "test_words",
    "true_positives",
    "absorption_fraction",
    "absorption_full",
    "absorption_unthresholded",
    "num_split_features",
    "k1_f1",
]


@dataclass(frozen=True)
class AbsorptionResult:
    """Absorption of one SAE.

    `summary`: absorption_fraction, absorption_full, absorption_unthresholded and num_split_features are means
    over the letters that count (NaN if none does), `letters` is how many those are, `words` their evaluated
    words, `probe_f1` the ground-truth probe's mean F1 over all letters that have test words.
    `letters`: one row for each letter that counts.
    `notes`: lines that say why the numbers should be read with care; which letters are missing and which words are left
    out.
    """

    summary: dict[str, float]
    letters: pd.DataFrame
    notes: tuple[str, ...]
    main_latents: dict[str, list[int]]
    """For each letter that counts, the latents that stand for it, the most important one first."""

    @property
    def note(self) -> str:
        """The notes as one line; empty where there is none."""
        return "; ".join(self.notes)


def evaluate_absorption(sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig) -> AbsorptionResult:
    """First-letter absorption of an SAE (lower is better), on the device that holds it.

    A letter counts when the ground-truth probe finds it (F1 > 0.6). Its main latents are chosen by a sparse
    probe over the latents and the rule of `accepted_f1`; its words are the test words that the
    ground-truth probe finds, read in fresh prompts; its score is their mean.

    Raises:
        ArtifactError: the SAE does not fit the reference, or gives NaN or infinite latents.
    """
    return evaluate_absorption_many([sae], reference, config)[0]


@torch.no_grad()
def evaluate_absorption_many(
    saes: Sequence[Autoencoder], reference: AbsorptionReference, config: AbsorptionConfig
) -> list[AbsorptionResult]:
    """`evaluate_absorption` of several SAEs on one device, in their order: the numbers that each has alone.

    The sparse probes of as many SAEs are trained together as have their training words' latents fit into
    `config.latent_bytes`.
    """
    for number, sae in enumerate(saes):
        require_width(sae, reference.probe.weight.shape[1], name=f"sae {number + 1}" if len(saes) > 1 else "sae")
    counted = [letter for letter, f1 in enumerate(reference.probe_f1) if f1 > config.min_probe_f1]
    notes = _notes(reference, len(counted), config)
    results = []
    for group in _groups(saes, len(reference.train_words), config.latent_bytes):
        nothing: list[MainLatents] = [[] for _ in group]
        mains = main_latents_of_many(group, reference, counted, config) if counted else nothing
        for sae, main in zip(group, mains, strict=True):
            letters = _letters(sae, reference, counted, main, config)
            chosen = {LETTERS[letter]: latents.tolist() for letter, (latents, _) in zip(counted, main, strict=True)}
            results.append(AbsorptionResult(_summary(letters, reference), letters, notes, chosen))
    return results


def _groups(saes: Sequence[Autoencoder], words: int, most: int) -> Iterator[list[Autoencoder]]:
    """Consecutive SAEs whose latents fit into `most` bytes together; at least one."""
    group: list[Autoencoder] = []
    total = 0
    for sae in saes:
        size = latent_bytes(sae, words)
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(sae)
        total += size
    if group:
        yield group


def _letters(
    sae: Autoencoder,
    reference: AbsorptionReference,
    counted: list[int],
    mains: MainLatents,
    config: AbsorptionConfig,
) -> pd.DataFrame:
    """One row for each letter that counts."""
    probe = F.normalize(reference.probe.weight.to(sae.device), dim=1)
    cosines = probe @ F.normalize(sae.W_dec.float(), dim=1).T
    is_main = torch.zeros_like(cosines, dtype=torch.bool)
    for letter, (main, _) in zip(counted, mains, strict=True):
        is_main[letter, main] = True
    means = _letter_means(sae, reference, Letters(probe, cosines, is_main), config)
    test_words = reference.test_labels.bincount(minlength=len(LETTERS)).tolist()
    scored = reference.test_labels[reference.scored].bincount(minlength=len(LETTERS)).tolist()
    rows = [
        {
            "letter": LETTERS[letter],
            "probe_f1": reference.probe_f1[letter],
            "test_words": test_words[letter],
            "true_positives": scored[letter],
            "absorption_fraction": means[letter][0],
            "absorption_full": means[letter][1],
            "absorption_unthresholded": means[letter][2],
            "num_split_features": len(main),
            "k1_f1": k1_f1,
        }
        for letter, (main, k1_f1) in zip(counted, mains, strict=True)
    ]
    return pd.DataFrame(rows, columns=LETTER_COLUMNS)


def _letter_means(
    sae: Autoencoder, reference: AbsorptionReference, letters: Letters, config: AbsorptionConfig
) -> list[list[float]]:
    """Mean fraction, full and unthresholded score of each letter's words; NaN where a letter has none."""
    words = reference.test_labels[reference.scored].to(sae.device)
    sums = torch.zeros(len(LETTERS), 3, dtype=torch.float64, device=sae.device)
    for x, letter in zip(reference.scored_activations.to(sae.device).split(ROWS), words.split(ROWS), strict=True):
        scores = score_words_of_letters(x, unit_latents(sae, x), letter, letters, config)
        sums.index_add_(0, letter, torch.stack([score.double() for score in scores], dim=1))
    means: Float[Tensor, "letter 3"] = sums / words.bincount(minlength=len(LETTERS))[:, None]
    return means.tolist()


def _summary(letters: pd.DataFrame, reference: AbsorptionReference) -> dict[str, float]:
    present = reference.test_labels.unique().tolist()
    means = ("absorption_fraction", "absorption_full", "absorption_unthresholded", "num_split_features")
    return {
        **{name: float(letters[name].mean()) if len(letters) else math.nan for name in means},
        "probe_f1": sum(reference.probe_f1[letter] for letter in present) / len(present),
        "letters": len(letters),
        "words": int(letters["true_positives"].sum()),
    }


def _notes(reference: AbsorptionReference, counted: int, config: AbsorptionConfig) -> tuple[str, ...]:
    notes = []
    if counted < config.min_letters:
        notes.append(
            f"the language model's probe finds {counted} letters (F1 > {config.min_probe_f1:g}); "
            f"SAEBench gives no result below {config.min_letters}; missing: {_missing(reference, config)}"
        )
    if reference.left_out:
        examples = ", ".join(repr(word) for word in reference.left_out_examples)
        notes.append(
            f"left out: {reference.left_out} words of the vocabulary that are not one token in the prompt's text"
            + (f" ({examples})" if examples else "")
        )
    return tuple(notes)


def _missing(reference: AbsorptionReference, config: AbsorptionConfig) -> str:
    """The letters that do not count, each with its reason."""
    train, test = (
        labels.bincount(minlength=len(LETTERS)).tolist() for labels in (reference.train_labels, reference.test_labels)
    )
    reasons = []
    for letter, f1 in enumerate(reference.probe_f1):
        if f1 > config.min_probe_f1:
            continue
        if not train[letter] or not test[letter]:
            absent = [name for name, words in (("training", train), ("test", test)) if not words[letter]]
            reasons.append(f"{LETTERS[letter]} (no {' and no '.join(absent)} words)")
        else:
            reasons.append(f"{LETTERS[letter]} (F1 {f1:.2f} on {test[letter]} test words)")
    return ", ".join(reasons)
