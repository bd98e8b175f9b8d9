"""Absorption of an SAE: the scores of its words, averaged over a letter and over letters. The score of a word: how much
of its letter is carried by latents that are not the letter's own."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import ROWS, MainLatents, latent_bytes, main_latents_of_many, unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.registry import Column, Inputs, Measured, Score, register
from sae_lib.metrics.stored_reference import require_width
from sae_lib.util.errors import ModelLacks
from sae_lib.util.memory import portions


class WordScores(NamedTuple):
    """Scores of words. `full` is a verdict, the others are shares between 0 and 1."""

    fraction: Float[Tensor, " word"]
    full: Bool[Tensor, " word"]
    unthresholded: Float[Tensor, " word"]


class Letters(NamedTuple):
    """What an SAE's latents are to the letters."""

    directions: Float[Tensor, "letter d_in"]
    """Unit vectors p of the letters' probes."""
    cosines: Float[Tensor, "letter d_sae"]
    """Cosine of p and each decoder row."""
    is_main: Bool[Tensor, "letter d_sae"]
    """Which latents are a letter's main latents."""


def score_words_of_letters(
    residual: Float[Tensor, "word d_in"],
    latents: Float[Tensor, "word d_sae"],
    letter: Int[Tensor, " word"],
    letters: Letters,
    config: AbsorptionConfig,
) -> WordScores:
    """Score words by their residual streams and unit latents, each for its own `letter`, a row of `letters`.

    With p the unit vector of the letter's probe, c_i the cosine of p and decoder row i, proj_i = act_i c_i, P = x . p
    (no bias), M the sum of proj over the letter's main latents, T the sum of the three largest proj > 0 over other
    latents with c_i >= 0.1, and A the sum of proj over all latents:

    - fraction: 0 if M >= P or T / P < 0.4; 1 if M <= 0; otherwise q / (q + M) with q = min(T, P - M).
    - full: every main latent < 1e-8, and the latent with the largest proj has c >= 0.025 and proj / P >= 0.4, P > 0.
    - unthresholded: 0 if M >= P or A <= 0; otherwise (A - M) / A, cut to [0, 1].

    SAEBench divides by P even where it is 0, an error there; here such a word is not absorbed.

    Source: SAEBench 0.6.0, `FeatureAbsorptionCalculator`; `unthresholded` is the fraction of versions up to 0.3.2.
    """
    cosines, is_main = letters.cosines[letter], letters.is_main[letter]
    projections = latents * cosines
    on_probe = (residual * letters.directions[letter]).sum(dim=1).double()
    by_main = projections.masked_fill(~is_main, 0).sum(dim=1).double()
    can_absorb = ((letters.cosines >= config.fraction_min_cosine) & ~letters.is_main)[letter]
    candidates = projections.clamp(min=0).masked_fill_(~can_absorb, 0)
    strongest = candidates.topk(min(config.max_absorbing_latents, candidates.shape[1]), dim=1).values
    by_absorbers = strongest.sum(dim=1).double()
    by_all = projections.sum(dim=1).double()

    too_little = by_absorbers / on_probe < config.min_projection_share
    none = (by_main >= on_probe) | (on_probe == 0) | too_little
    q = torch.minimum(by_absorbers, on_probe - by_main)
    fraction = torch.where(none, 0.0, torch.where(by_main <= 0, 1.0, q / (q + by_main)))

    largest, at = projections.max(dim=1)
    full = (
        ~((latents >= config.silent_below) & is_main).any(dim=1)
        & (cosines.gather(1, at[:, None])[:, 0] >= config.full_min_cosine)
        & (on_probe > 0)
        & (largest.double() / on_probe >= config.min_projection_share)
    )

    none = (by_main >= on_probe) | (by_all <= 0)
    unthresholded = torch.where(none, 0.0, ((by_all - by_main) / by_all).clamp(0, 1))
    return WordScores(fraction, full, unthresholded)


def evaluate_absorption(sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig) -> Measured:
    """First-letter absorption of an SAE (lower is better), on the device that holds it.

    A letter counts when the ground-truth probe finds it (F1 > 0.6). Its main latents are chosen by a sparse probe over
    the latents and the rule of `accepted_f1`; its words are the test words that the ground-truth probe finds, read in
    fresh prompts; its score is their mean.

    Table `letters`: one row for each letter that counts; `k1_f1` is how well its best latent finds its test words,
    `main_f1` how well its main latents do together: absorption of a letter whose latents find little says little.
    Summary: means over these (NaN without), k1_f1 and main_f1 as main_latent_f1 and main_latents_f1; `probe_f1`, over
    all letters that have test words; how many `letters` and evaluated `words`. Kept: `main_latents` of each letter.
    Notes: which letters are missing, which words left out.

    Raises ArtifactError: the SAE does not fit the reference, or gives NaN or infinite latents.
    """
    return evaluate_absorption_many([sae], reference, config)[0]


@torch.no_grad()
def evaluate_absorption_many(
    saes: Sequence[Autoencoder],
    reference: AbsorptionReference,
    config: AbsorptionConfig,
    chosen_on: AbsorptionReference | None = None,
) -> list[Measured]:
    """`evaluate_absorption` of several SAEs on one device: the numbers that each has alone. As many have their sparse
    probes trained together as have their training words' latents fit into `config.latent_bytes`. Main latents are
    chosen on the words of `chosen_on`, by default those of `reference`."""
    for number, sae in enumerate(saes):
        require_width(sae, reference.probe.weight.shape[1], name=f"sae {number + 1}" if len(saes) > 1 else "sae")
    notes, results = _notes(reference, config), []
    for some in portions([latent_bytes(sae, len(reference.train_words)) for sae in saes], config.latent_bytes):
        group = saes[some]
        for sae, mains in zip(group, main_latents_of_many(group, chosen_on or reference, config), strict=True):
            letters = score_letters(sae, reference, mains, config)
            chosen = {LETTERS[letter]: latents.tolist() for letter, (latents, _) in mains.items()}
            summary = _summary(letters, reference)
            results.append(Measured(summary, {"letters": letters}, {"main_latents": chosen}, notes=notes))
    return results


@torch.no_grad()
def letters_of(sae: Autoencoder, reference: AbsorptionReference, mains: MainLatents) -> Letters:
    """What an SAE's latents are to the letters, on its device."""
    directions = F.normalize(reference.probe.weight.to(sae.device), dim=1)
    cosines = directions @ F.normalize(sae.W_dec.float(), dim=1).T
    is_main = torch.zeros_like(cosines, dtype=torch.bool)
    for letter, (main, _) in mains.items():
        is_main[letter, main] = True
    return Letters(directions, cosines, is_main)


def score_letters(
    sae: Autoencoder, reference: AbsorptionReference, mains: MainLatents, config: AbsorptionConfig
) -> pd.DataFrame:
    """One row for each letter that counts."""
    letters, words = letters_of(sae, reference, mains), reference.scored_labels.to(sae.device)
    sums = torch.zeros(len(LETTERS), 3, dtype=torch.float64, device=sae.device)
    for x, letter in zip(reference.scored_activations.to(sae.device).split(ROWS), words.split(ROWS), strict=True):
        scores = score_words_of_letters(x, unit_latents(sae, x), letter, letters, config)
        sums.index_add_(0, letter, torch.stack([score.double() for score in scores], dim=1))
    counted, scored = [*mains], words.bincount(minlength=len(LETTERS))
    fraction, full, unthresholded = (sums / scored[:, None])[counted].T.tolist()  # NaN where a letter has no words
    return pd.DataFrame(
        {
            "letter": [LETTERS[letter] for letter in counted],
            "probe_f1": [reference.probe_f1[letter] for letter in counted],
            "test_words": reference.test_labels.bincount(minlength=len(LETTERS))[counted].tolist(),
            "true_positives": scored[counted].tolist(),
            "absorption_fraction": fraction,
            "absorption_full": full,
            "absorption_unthresholded": unthresholded,
            "num_split_features": [len(main) for main, _ in mains.values()],
            "k1_f1": [f1[0] for _, f1 in mains.values()],
            "main_f1": [f1[-1] for _, f1 in mains.values()],
        },
        dtype=None if counted else object,
    )


def _summary(letters: pd.DataFrame, reference: AbsorptionReference) -> dict[str, float]:
    present = reference.test_labels.unique().tolist()
    named = letters.drop(columns=["letter", "probe_f1", "test_words", "true_positives"])
    means = named.rename(columns={"k1_f1": "main_latent_f1", "main_f1": "main_latents_f1"})
    return {
        **{name: float(values.mean()) if len(letters) else math.nan for name, values in means.items()},
        "probe_f1": sum(reference.probe_f1[letter] for letter in present) / len(present) if present else math.nan,
        "letters": len(letters),
        "words": int(letters["true_positives"].sum()),
    }


def _notes(reference: AbsorptionReference, config: AbsorptionConfig) -> tuple[str, ...]:
    if reference.lacking:
        return (f"not measured ({reference.lacking})",)
    notes, counted = [], reference.counted(config.min_probe_f1)
    if len(counted) < config.min_letters:
        f1 = enumerate(reference.probe_f1)
        missing = [f"{LETTERS[letter]} (F1 {score:.2f})" for letter, score in f1 if letter not in counted]
        notes.append(
            f"the language model's probe finds {len(counted)} letters (F1 > {config.min_probe_f1:g}); "
            f"SAEBench gives no result below {config.min_letters}; missing: {', '.join(missing)}"
        )
    if reference.left_out:
        words = ", ".join(repr(word) for word in reference.left_out_examples)
        notes.append(
            f"left out: {reference.left_out} words of the vocabulary that are not one token in the prompt's text"
            + (f" ({words})" if words else "")
        )
    return tuple(notes)


def _reference(inputs: Inputs) -> AbsorptionReference:
    try:
        return build_absorption_reference(inputs.lm, inputs.settings("absorption"), inputs.folder)
    except ModelLacks as lacking:
        return AbsorptionReference.without_words(inputs.lm.d_in, str(lacking))


def lacking(inputs: Inputs) -> str:
    """Why no letter can count on this model; empty where one does."""
    reference, least = inputs.reference("absorption"), inputs.settings("absorption").min_probe_f1
    none = f"the probe finds no letter in {inputs.lm.name} (F1 > {least:g})"
    return str(reference.lacking or ("" if reference.counted(least) else none))


register(
    Score(
        name="absorption",
        version=2,
        settings=AbsorptionConfig,
        reference=_reference,
        evaluate=lambda saes, inputs, earlier: evaluate_absorption_many(
            saes, inputs.reference("absorption"), inputs.settings("absorption")
        ),
        columns={
            "absorption_fraction": Column("absorption, fraction", "lower", 3),
            "absorption_full": Column("absorption, full", "lower", 3),
            "absorption_unthresholded": Column("absorption, unthresholded", "lower", 3),
            "num_split_features": Column("splits", "none", 2, quality=True),
            "main_latent_f1": Column("main latent F1", "higher", 3, quality=True),
            "main_latents_f1": Column("main latents F1", "higher", 3),
            "letters": Column("letters", "none", 0),
            "words": Column("words", "none", 0),
        },
    )
)
