"""The score of a word: how much of its letter is carried by latents that are not the letter's own."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.metrics.absorption.config import AbsorptionConfig


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


def score_words(
    residual: Float[Tensor, "word d_in"],
    latents: Float[Tensor, "word d_sae"],
    direction: Float[Tensor, " d_in"],
    cosines: Float[Tensor, " d_sae"],
    main: Int[Tensor, " main"],
    config: AbsorptionConfig,
) -> WordScores:
    """`score_words_of_letters` for words of one letter.

    Args:
        residual: the residual stream at each word.
        latents: activations at each word, for decoder rows of unit norm.
        direction: p.
        cosines: c.
        main: indices of the letter's main latents.
    """
    is_main = torch.zeros_like(cosines, dtype=torch.bool).index_fill(0, main, True)
    letter = Letters(direction[None], cosines[None], is_main[None])
    return score_words_of_letters(
        residual, latents, torch.zeros(len(latents), dtype=torch.long, device=latents.device), letter, config
    )


def score_words_of_letters(
    residual: Float[Tensor, "word d_in"],
    latents: Float[Tensor, "word d_sae"],
    letter: Int[Tensor, " word"],
    letters: Letters,
    config: AbsorptionConfig,
) -> WordScores:
    """Score words, each for its own letter, whose probe has the unit vector p.

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
        letter: row of `letters` that each word is scored for.

    Source: SAEBench 0.6.0, `FeatureAbsorptionCalculator`; `unthresholded` is the fraction of versions up to
    0.3.2.
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
