"""The absorption metric on one word, with every number it is made of: for reading, not for scoring."""

from typing import NamedTuple

import pandas as pd
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import main_latents, unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import Letters, letters_of, score_words_of_letters
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
    """The evaluated word whose letter is absorbed most, by its fraction and then by what the absorbers carry; symbols
    as in `score.score_words_of_letters`. Raises ArtifactError: no letter counts, so no word is evaluated."""
    mains, found = main_latents(sae, reference, config), []
    if not mains or not len(reference.scored):
        raise ArtifactError("absorption: the probe finds no letter in this language model, so no word is evaluated")
    letters = Letters(*(each.cpu() for each in letters_of(sae, reference, mains)))
    directions, cosines, _ = letters
    for letter in mains:
        words = (reference.scored_labels == letter).nonzero().flatten()
        if len(words):
            x = reference.scored_activations[words]
            f = unit_latents(sae, x).cpu()
            scores = score_words_of_letters(x, f, reference.scored_labels[words], letters, config)
            ranks = list(zip(scores.fraction.tolist(), scores.unthresholded.tolist(), strict=True))
            top = max(range(len(ranks)), key=ranks.__getitem__)
            found.append((ranks[top], letter, int(words[top]), x[top], f[top], float(scores.full[top])))
    (fraction, _), letter, word, x, f, full = max(found, key=lambda each: each[0])
    main = mains[letter][0].cpu()
    projection = f * cosines[letter]
    near = cosines[letter] >= config.fraction_min_cosine
    others = torch.where(near, projection, 0).clamp_min(0).index_fill(0, main, 0)
    absorbed, on_probe = float(others.topk(config.max_absorbing_latents).values.sum()), float(x @ directions[letter])
    strongest = projection.topk(min(rows, len(projection))).indices.tolist()
    shown = [*dict.fromkeys([*main.tolist(), *strongest])]
    roles = ["can absorb" if close else "too far from the probe" for close in near[shown].tolist()]
    table = pd.DataFrame(
        {
            "role": ["the letter's own"] * len(main) + roles[len(main) :],
            "activation": f[shown].tolist(),
            "cosine with the probe": cosines[letter][shown].tolist(),
            "activation × cosine": projection[shown].tolist(),
        },
        index=pd.Index(shown, name="latent"),
    )
    numbers = {"P": on_probe, "M": float(projection[main].sum()), "T": absorbed, "T / P": absorbed / on_probe}
    text, numbers = reference.test_words[int(reference.scored[word])], numbers | {"fraction": fraction, "full": full}
    return WordExample(text, LETTERS[letter].upper(), numbers, table.round(3))
