"""The absorption metric on one word, with every number it is made of: for reading, not for scoring."""

from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.latents import unit_latents
from sae_lib.metrics.absorption.main_latents import main_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import score_words
from sae_lib.util.errors import ArtifactError


class WordExample(NamedTuple):
    """One word through one SAE. `numbers`: P, M, T, T / P, fraction and full; `latents`: the strongest on the probe."""

    word: str
    letter: str
    numbers: dict[str, float]
    latents: pd.DataFrame


@torch.no_grad()
def explain_word(
    sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig, rows: int = 6
) -> WordExample:
    """The evaluated word whose letter is absorbed most, by its fraction and then by what the absorbers carry.

    An SAE without any absorption gives a word that scores 0. Symbols as in `score.score_words`.

    Raises ArtifactError: no letter counts, so no word is evaluated.
    """
    counted = reference.counted(config.min_probe_f1)
    if not counted or not len(reference.scored):
        raise ArtifactError("absorption: the probe finds no letter in this language model, so no word is evaluated")
    labels = reference.test_labels[reference.scored]
    directions = F.normalize(reference.probe.weight, dim=1)
    cosines = directions @ F.normalize(sae.W_dec.float().cpu(), dim=1).T
    best: WordExample | None = None
    best_rank = (-1.0, -1.0)
    for letter, (main, _) in zip(counted, main_latents(sae, reference, counted, config), strict=True):
        words = (labels == letter).nonzero().flatten()
        if not len(words):
            continue
        x = reference.scored_activations[words]
        f, main = unit_latents(sae, x).cpu(), main.cpu()
        scores = score_words(x, f, directions[letter], cosines[letter], main, config)
        ranks = list(zip(scores.fraction.tolist(), scores.unthresholded.tolist(), strict=True))
        top = max(range(len(ranks)), key=ranks.__getitem__)
        if ranks[top] > best_rank:
            best_rank = ranks[top]
            numbers = _numbers(x[top], f[top], directions[letter], cosines[letter], main, config)
            best = WordExample(
                word=reference.test_words[int(reference.scored[words[top]])],
                letter=LETTERS[letter].upper(),
                numbers=numbers | {"fraction": ranks[top][0], "full": float(scores.full[top])},
                latents=_latents(f[top], cosines[letter], main, config, rows),
            )
    assert best is not None  # a scored word has a letter, and some letter that counts has one
    return best


def _numbers(
    x: Tensor, latents: Tensor, direction: Tensor, cosine: Tensor, main: Tensor, config: AbsorptionConfig
) -> dict[str, float]:
    projection = latents * cosine
    others = torch.where(cosine >= config.fraction_min_cosine, projection, 0).clamp_min(0).index_fill(0, main, 0)
    absorbed, on_probe = float(others.topk(config.max_absorbing_latents).values.sum()), float(x @ direction)
    return {"P": on_probe, "M": float(projection[main].sum()), "T": absorbed, "T / P": absorbed / on_probe}


def _latents(latents: Tensor, cosine: Tensor, main: Tensor, config: AbsorptionConfig, rows: int) -> pd.DataFrame:
    projection = latents * cosine
    strongest = projection.topk(min(rows, len(projection))).indices.tolist()
    own = main.tolist()
    shown = own + [latent for latent in strongest if latent not in own]
    table = pd.DataFrame(
        {
            "latent": shown,
            "role": [
                "the letter's own" if latent in main.tolist() else _role(cosine[latent], config) for latent in shown
            ],
            "activation": latents[shown].tolist(),
            "cosine with the probe": cosine[shown].tolist(),
            "activation × cosine": projection[shown].tolist(),
        }
    )
    return table.set_index("latent").round(3)


def _role(cosine: Tensor, config: AbsorptionConfig) -> str:
    return "can absorb" if float(cosine) >= config.fraction_min_cosine else "too far from the probe"
