"""The absorption score where something else stands in the letters' place: nothing, or another hierarchy.

The score of nothing, in two kinds, is what a score has to differ from before it says something of letters.

- `null`: the words that choose a letter's main latents have their letters dealt out anew, as many of each letter as
  before; all else is the real score's. So latents stand for a letter that know nothing of it, and the score is high
  wherever three other latents carry the letter. Where an SAE hardly carries it, a low real score is no merit.
- `random`: the main latents are the real ones, the letters' directions random. A score that is as high as the real one
  does not come from letters. Each direction points where the letter's words lie on average, as a probe's does.

The other hierarchy is how words end, which is often what part of speech they are. First letters are what spelling
prompts ask for; that a word is a participle or an adverb is what any text needs. Same words and residual streams as the
score of letters, same rules; the general feature is "ends in -ing", the specific ones are its words.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import MainLatents
from sae_lib.metrics.absorption.probes import LinearProbes, f1_score
from sae_lib.metrics.absorption.reference import AbsorptionReference, ground_truth_probe
from sae_lib.metrics.absorption.score import evaluate_absorption, evaluate_absorption_many, score_letters
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register

SEED = 0
SCORES_OF_WORDS = ("absorption_fraction", "absorption_full")
# The first that fits is a word's ending, behind at least `STEM` letters. Words with none are the last class.
ENDINGS = ("ing", "ed", "ly", "ion", "ment", "ness", "able", "ible", "ive", "ous", "ity", "al", "er", "or", "s")
OTHER = len(ENDINGS)
STEM = 3
ALL = "all"


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


class EndingReference(AbsorptionReference):
    """The reference of letters with the words' endings in their place."""

    @staticmethod
    def class_of(word: str) -> int:
        """The index in `ENDINGS` of a word's ending, `OTHER` without one.

        >>> ENDINGS[EndingReference.class_of(" Running")], EndingReference.class_of("sing") == OTHER
        ('ing', True)
        """
        text = word.strip().lower()
        fits = (i for i, end in enumerate(ENDINGS) if text.endswith(end) and len(text) >= len(end) + STEM)
        return next(fits, OTHER)


@torch.no_grad()
def ending_reference(reference: AbsorptionReference, config: AbsorptionConfig) -> EndingReference:
    """A probe of endings on the words of `reference`, trained as that of letters; the words that absorption is measured
    on are those that both probes find, since of others no second prompt was read."""
    own = EndingReference(**{name: getattr(reference, name) for name in reference.__dataclass_fields__})
    probe = ground_truth_probe(reference.train_activations, own.train_labels, config, torch.device("cpu"))
    found = probe.logits(reference.test_activations) > 0
    f1 = [f1_score(found[:, i], own.test_labels == i) if i < OTHER else 0.0 for i in range(len(LETTERS))]
    here = (own.scored_labels < OTHER) & found[reference.scored, own.scored_labels]
    return replace(
        own, probe=probe, probe_f1=f1, scored=reference.scored[here],
        scored_activations=reference.scored_activations[here],
    )  # fmt: skip


def ending_absorption(sae: Autoencoder, reference: EndingReference, config: AbsorptionConfig) -> pd.DataFrame:
    """One row for each ending that the probe finds (F1 > 0.6), and their mean, `ALL`.

    Columns: ending, words, probe_f1, absorption_full, absorption_fraction, main_latent_f1; of the mean also how many
    `endings` there are, and absorption_full_random and absorption_full_null, the score of nothing (`null`).
    """
    found = evaluate_absorption(sae, reference, config)
    letters, columns = found.tables["letters"], {"k1_f1": "main_latent_f1", "true_positives": "words"}
    rows = letters.rename(columns=columns).assign(ending=[f"-{ENDINGS[LETTERS.index(i)]}" for i in letters["letter"]])
    kept = ["ending", "words", "probe_f1", "absorption_full", "absorption_fraction", "main_latent_f1"]
    mean = {name: found.summary[name] for name in kept if name in found.summary}
    mean |= {"ending": ALL, "endings": len(rows), "probe_f1": rows["probe_f1"].mean()}
    (null,) = null_absorption([sae], reference, config, [found.kept["main_latents"]])
    mean |= {name: null[name] for name in ("absorption_full_random", "absorption_full_null")}
    return pd.concat([rows[kept], pd.DataFrame([mean])], ignore_index=True)


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
