"""Absorption of another hierarchy than letters: how words end, which is often what part of speech they are.

First letters are what spelling prompts ask for; that a word is a participle or an adverb is what any text needs. Same
words and residual streams as the score of letters, same rules; the general feature is "ends in -ing", the specific ones
are its words.
"""

from dataclasses import replace

import pandas as pd
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.null import null_absorption
from sae_lib.metrics.absorption.probes import f1_score
from sae_lib.metrics.absorption.reference import AbsorptionReference, ground_truth_probe
from sae_lib.metrics.absorption.score import evaluate_absorption

# The first that fits is a word's ending, behind at least `STEM` letters. Words with none are the last class.
ENDINGS = ("ing", "ed", "ly", "ion", "ment", "ness", "able", "ible", "ive", "ous", "ity", "al", "er", "or", "s")
OTHER = len(ENDINGS)
STEM = 3
ALL = "all"


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
