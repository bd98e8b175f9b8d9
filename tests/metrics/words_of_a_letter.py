"""Scores of words of one letter, as the tests by hand and SAEBench's calculator ask for them."""

import torch
from torch import Tensor

from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.score import Letters, WordScores, score_words_of_letters


def score_words(
    residual: Tensor, latents: Tensor, direction: Tensor, cosines: Tensor, main: Tensor, config: AbsorptionConfig
) -> WordScores:
    """`score_words_of_letters` for the letter with this direction, cosines and main latents."""
    is_main = torch.zeros_like(cosines, dtype=torch.bool).index_fill(0, main, True)
    letter = torch.zeros(len(latents), dtype=torch.long)
    return score_words_of_letters(
        residual, latents, letter, Letters(direction[None], cosines[None], is_main[None]), config
    )
