"""The absorption score of nothing, in two kinds: what a score has to differ from before it says something of letters.

- `null`: the words that choose a letter's main latents have their letters dealt out anew, as many of each letter as
  before; all else is the real score's. So latents stand for a letter that know nothing of it, and the score is high
  wherever three other latents carry the letter. Where an SAE hardly carries it, a low real score is no merit.
- `random`: the main latents are the real ones, the letters' directions random. A score that is as high as the real one
  does not come from letters. Each direction points where the letter's words lie on average, as a probe's does.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import MainLatents
from sae_lib.metrics.absorption.probes import LinearProbes
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import evaluate_absorption_many, score_letters
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register

SEED = 0
SCORES_OF_WORDS = ("absorption_fraction", "absorption_full")


def with_shuffled_letters(reference: AbsorptionReference) -> AbsorptionReference:
    """The same residual streams under the words of others: train and test words dealt out anew, each among its own."""
    generator = torch.Generator().manual_seed(SEED)

    def dealt(words: list[str]) -> list[str]:
        return [words[index] for index in torch.randperm(len(words), generator=generator).tolist()]

    return replace(reference, train_words=dealt(reference.train_words), test_words=dealt(reference.test_words))


def with_random_directions(reference: AbsorptionReference) -> AbsorptionReference:
    """The same words with random unit vectors for the probe's directions, turned towards the letter's words."""
    generator = torch.Generator().manual_seed(SEED)
    directions = F.normalize(torch.randn(reference.probe.weight.shape, generator=generator), dim=1)
    along = (reference.scored_activations @ directions.T).gather(1, reference.scored_labels[:, None])[:, 0]
    sums = torch.zeros(len(LETTERS)).index_add_(0, reference.scored_labels, along)
    directions[sums < 0] *= -1
    return replace(reference, probe=LinearProbes(directions, torch.zeros(len(LETTERS))))


@torch.no_grad()
def null_absorption(
    saes: Sequence[Autoencoder],
    reference: AbsorptionReference,
    config: AbsorptionConfig,
    main_latents: Sequence[dict[str, list[int]]],
) -> list[dict[str, float]]:
    """For each SAE absorption_fraction_null, absorption_full_null, absorption_fraction_random, absorption_full_random,
    means over letters, and main_latent_f1_null, how well the best latent of a shuffled letter finds it; NaN where no
    letter counts. Costs as much as the real score.

    `main_latents`: of each SAE, the latents that the real score found for each letter that counts.
    """
    shuffled = evaluate_absorption_many(saes, reference, config, chosen_on=with_shuffled_letters(reference))
    random = with_random_directions(reference)
    found = []
    for sae, null, mains in zip(saes, shuffled, main_latents, strict=True):
        latents: MainLatents = {
            LETTERS.index(letter): (torch.tensor(own, device=sae.device), [math.nan]) for letter, own in mains.items()
        }
        letters = score_letters(sae, random, latents, config)
        found.append(
            {f"{name}_null": null.summary[name] for name in SCORES_OF_WORDS}
            | {f"{name}_random": float(letters[name].mean()) for name in SCORES_OF_WORDS}
            | {"main_latent_f1_null": null.summary["main_latent_f1"]}
        )
    return found


def _evaluate(saes: Sequence[Autoencoder], inputs: Inputs, earlier: Sequence[Earlier]) -> list[Measured]:
    reference, config = inputs.reference("absorption"), inputs.settings("absorption")
    mains = [known["absorption"]["main_latents"] for known in earlier]
    return [Measured(summary) for summary in null_absorption(saes, reference, config, mains)]


register(
    Score(
        name="null_absorption",
        version=1,
        evaluate=_evaluate,
        needs=("absorption",),
        columns={
            "absorption_fraction_null": Column("fraction, shuffled letters", "none", 3),
            "absorption_full_null": Column("full, shuffled letters", "none", 3),
            "absorption_fraction_random": Column("fraction, random directions", "none", 3),
            "absorption_full_random": Column("full, random directions", "none", 3),
            "main_latent_f1_null": Column("main latent F1, shuffled letters", "none", 3),
        },
    )
)
