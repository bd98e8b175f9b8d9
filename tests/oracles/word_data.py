"""Words whose residual streams hold a letter and a word of their own, and SAEs that split and absorb on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.probes import f1_score, initial_probes
from sae_lib.metrics.absorption.reference import AbsorptionReference
from tests.metrics.tiny_saes import train_one

KINDS = 4  # kinds of words within a letter, each with a direction of its own
BLURRED = (3, 16, 21)  # letters whose direction is almost that of the letter before: no probe finds them


class WordData(NamedTuple):
    """`x = 2 letter + 1.5 kind + noise`; a word's text opens with its letter and ends with its number."""

    words: list[str]
    labels: Tensor
    activations: Tensor
    letter_directions: Tensor
    kind_directions: Tensor


def word_data(words: int, d_in: int, noise: float, seed: int = 1) -> WordData:
    generator = torch.Generator().manual_seed(seed)
    letters = F.normalize(torch.randn(26, d_in, generator=generator), dim=1)
    for letter in BLURRED:
        letters[letter] = F.normalize(letters[letter - 1] + 0.02 * torch.randn(d_in, generator=generator), dim=0)
    kinds = F.normalize(torch.randn(26, KINDS, d_in, generator=generator), dim=-1)
    labels = torch.randint(0, 26, (words,), generator=generator)
    kind = torch.randint(0, KINDS, (words,), generator=generator)
    x = 2 * letters[labels] + 1.5 * kinds[labels, kind]
    x = x + noise / d_in**0.5 * torch.randn(words, d_in, generator=generator)
    texts = [f" {LETTERS[label]}{_number(i)}" for i, label in enumerate(labels.tolist())]
    return WordData(texts, labels, x, letters, kinds)


def _number(index: int) -> str:
    """A number in letters, so that a word is letters only."""
    return "".join(LETTERS[int(digit)] for digit in str(index))


def word_reference(data: WordData, config: AbsorptionConfig) -> AbsorptionReference:
    """The reference of these words: a probe trained on four fifths, fresh prompts that differ a little."""
    split = int(config.train_fraction * len(data.words))
    train, test = data.activations[:split], data.activations[split:]
    labels, test_labels = data.labels[:split], data.labels[split:]
    probe = train_one(
        lambda index: train[index], labels, initial_probes(train.shape[1], 26, config.seed),
        epochs=config.probe_epochs, batch=config.probe_batch, learning_rate=config.probe_learning_rate,
        final_learning_rate=config.probe_final_learning_rate, weight_decay=config.probe_weight_decay,
        seed=config.seed,
    )  # fmt: skip
    found = probe.logits(test) > 0
    scored = found[torch.arange(len(test)), test_labels].nonzero().flatten()
    generator = torch.Generator().manual_seed(5)
    fresh = test[scored] + 0.1 * torch.randn(len(scored), train.shape[1], generator=generator)
    return AbsorptionReference(
        train_words=data.words[:split],
        test_words=data.words[split:],
        train_activations=train,
        test_activations=test,
        probe=probe,
        probe_f1=[f1_score(found[:, letter], test_labels == letter) for letter in range(26)],
        scored=scored,
        scored_activations=fresh,
        left_out=0,
    )


def word_sae(data: WordData, d_sae: int, **config: Any) -> Autoencoder:
    """Latents for letters, for letter and kind together (the absorbers), and for nothing."""
    sae = build_autoencoder(sae_config({"d_sae": d_sae, **config}), data.activations.shape[1], seed=2)
    absorbers = F.normalize(data.letter_directions[:, None] + data.kind_directions, dim=-1).flatten(0, 1)
    known = torch.cat([data.letter_directions, absorbers])
    rest = torch.randn(d_sae - len(known), known.shape[1], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        directions = torch.cat([known, F.normalize(rest, dim=1)])
        sae.W_enc.copy_(directions.T)
        sae.b_enc.fill_(-1.0)
        # Norms that are not 1 must not matter: they belong into the activations.
        norms = torch.linspace(0.5, 2.0, d_sae)
        sae.W_dec.copy_(directions * norms[:, None])
    return sae.requires_grad_(False)
