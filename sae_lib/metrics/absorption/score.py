"""Absorption of a word, of a letter, of an SAE."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.errors import ArtifactError
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import ROWS, main_latents, unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.vocabulary import LETTERS

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


class WordScores(NamedTuple):
    """Scores of words of one letter. `full` is a verdict, the others are shares between 0 and 1."""

    fraction: Float[Tensor, " word"]
    full: Bool[Tensor, " word"]
    unthresholded: Float[Tensor, " word"]


@dataclass(frozen=True)
class AbsorptionResult:
    """Absorption of one SAE.

    `summary`: absorption_fraction, absorption_full, absorption_unthresholded and num_split_features are means
    over the letters that count (NaN if none does), `letters` is how many those are, `words` their evaluated
    words, `probe_f1` the ground-truth probe's mean F1 over all letters that have test words.
    `letters`: one row for each letter that counts.
    `note`: empty, or one line that says why the numbers should be read with care.
    """

    summary: dict[str, float]
    letters: pd.DataFrame
    note: str


def score_words(
    residual: Float[Tensor, "word d_in"],
    latents: Float[Tensor, "word d_sae"],
    direction: Float[Tensor, " d_in"],
    cosines: Float[Tensor, " d_sae"],
    main: Int[Tensor, " main"],
    config: AbsorptionConfig,
) -> WordScores:
    """Score words of one letter, whose probe has the unit vector p.

    With c_i the cosine of p and decoder row i, proj_i = act_i c_i, P = x . p (no bias), M the sum of proj
    over the letter's main latents, T the sum of the three largest proj > 0 over other latents with c_i >=
    0.1, and A the sum of proj over all latents:

    - fraction: 0 if M >= P or T / P < 0.4; 1 if M <= 0; otherwise q / (q + M) with q = min(T, P - M).
    - full: every main latent < 1e-8, and the latent with the largest proj has c >= 0.025 and proj / P >= 0.4,
      P > 0.
    - unthresholded: 0 if M >= P or A <= 0; otherwise (A - M) / A, cut to [0, 1].

    SAEBench divides by P even where it is 0, an error there; here such a word is not absorbed.

    Args:
        residual: the residual stream at each word.
        latents: activations at each word, for decoder rows of unit norm.
        direction: p.
        cosines: c.
        main: indices of the letter's main latents.

    Source: SAEBench 0.6.0, `FeatureAbsorptionCalculator`; `unthresholded` is the fraction of versions up to
    0.3.2.
    """
    projections = latents * cosines
    on_probe = (residual @ direction).double()
    by_main = projections[:, main].sum(dim=1).double()
    can_absorb = cosines >= config.fraction_min_cosine
    can_absorb[main] = False
    candidates = torch.where(can_absorb, projections, 0).clamp(min=0)
    strongest = candidates.topk(min(config.max_absorbing_latents, len(cosines)), dim=1).values
    by_absorbers = strongest.sum(dim=1).double()
    by_all = projections.sum(dim=1).double()

    too_little = by_absorbers / on_probe < config.min_projection_share
    none = (by_main >= on_probe) | (on_probe == 0) | too_little
    q = torch.minimum(by_absorbers, on_probe - by_main)
    fraction = torch.where(none, 0.0, torch.where(by_main <= 0, 1.0, q / (q + by_main)))

    largest, at = projections.max(dim=1)
    full = (
        (latents[:, main] < config.silent_below).all(dim=1)
        & (cosines[at] >= config.full_min_cosine)
        & (on_probe > 0)
        & (largest.double() / on_probe >= config.min_projection_share)
    )

    none = (by_main >= on_probe) | (by_all <= 0)
    unthresholded = torch.where(none, 0.0, ((by_all - by_main) / by_all).clamp(0, 1))
    return WordScores(fraction, full, unthresholded)


@torch.no_grad()
def evaluate_absorption(sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig) -> AbsorptionResult:
    """First-letter absorption of an SAE (lower is better), on the device that holds it.

    A letter counts when the ground-truth probe finds it (F1 > 0.6). Its main latents are chosen by a sparse
    probe over the latents and the rule of `accepted_f1`; its words are the test words that the
    ground-truth probe finds, read in fresh prompts; its score is their mean.

    Raises:
        ArtifactError: the SAE does not fit the reference, or gives NaN or infinite latents.
    """
    d_in = reference.probe.weight.shape[1]
    if sae.d_in != d_in:
        raise ArtifactError(
            f"sae: d_in is {sae.d_in}, the reference's residual stream has {d_in}; "
            "evaluate it on the model and layer it was trained on"
        )
    probe = F.normalize(reference.probe.weight.to(sae.device), dim=1)
    cosines = probe @ F.normalize(sae.W_dec.float(), dim=1).T
    counted = [letter for letter, f1 in enumerate(reference.probe_f1) if f1 > config.min_probe_f1]
    mains = main_latents(sae, reference, counted, config) if counted else []
    scored_letters = reference.test_labels[reference.scored]
    rows = []
    for letter, (main, k1_f1) in zip(counted, mains, strict=True):
        scores = [
            score_words(chunk, unit_latents(sae, chunk), probe[letter], cosines[letter], main, config)
            for chunk in reference.scored_activations[scored_letters == letter].to(sae.device).split(ROWS)
        ]
        fraction, full, unthresholded = (torch.cat(parts).double().mean().item() for parts in zip(*scores, strict=True))
        rows.append(
            {
                "letter": LETTERS[letter],
                "probe_f1": reference.probe_f1[letter],
                "test_words": int((reference.test_labels == letter).sum()),
                "true_positives": int((scored_letters == letter).sum()),
                "absorption_fraction": fraction,
                "absorption_full": full,
                "absorption_unthresholded": unthresholded,
                "num_split_features": len(main),
                "k1_f1": k1_f1,
            }
        )
    letters = pd.DataFrame(rows, columns=LETTER_COLUMNS)
    return AbsorptionResult(_summary(letters, reference), letters, _note(len(letters), config))


def _summary(letters: pd.DataFrame, reference: AbsorptionReference) -> dict[str, float]:
    present = reference.test_labels.unique().tolist()
    means = ("absorption_fraction", "absorption_full", "absorption_unthresholded", "num_split_features")
    return {
        **{name: float(letters[name].mean()) if len(letters) else math.nan for name in means},
        "probe_f1": sum(reference.probe_f1[letter] for letter in present) / len(present),
        "letters": len(letters),
        "words": int(letters["true_positives"].sum()),
    }


def _note(letters: int, config: AbsorptionConfig) -> str:
    if letters >= config.min_letters:
        return ""
    return (
        f"the language model's probe finds {letters} letters (F1 > {config.min_probe_f1:g}); "
        f"SAEBench gives no result below {config.min_letters}"
    )
