"""The absorption score of nothing, on an SAE whose latents are the letters themselves."""

from __future__ import annotations

import math

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import main_latents
from sae_lib.metrics.absorption.null import null_absorption, with_random_directions, with_shuffled_letters
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import evaluate_absorption
from tests.metrics.tiny_saes import sae_of, words_with

CONFIG = AbsorptionConfig(probe_epochs=10)
COMMON = 26  # a direction that every word has


def one_latent_per_letter(common: float) -> tuple[Autoencoder, AbsorptionReference]:
    """Words x = 2 e_letter + common e_26, twelve to train and six to test of each letter; latent i is max(0, x_i)."""
    words = [letter for letter in LETTERS for _ in range(18)]
    x = torch.zeros(len(words), 32)
    x[torch.arange(len(words)), torch.arange(len(words)) // 18] = 2.0
    x[:, COMMON] = common
    test = torch.arange(len(words)) % 18 >= 12
    return sae_of(torch.eye(32), torch.eye(32)), words_with(words, x, test, torch.eye(26, 32), [1.0] * 26)


def nulls(sae: Autoencoder, reference: AbsorptionReference) -> dict[str, float]:
    real = evaluate_absorption(sae, reference, CONFIG)
    assert real.kept["main_latents"] == {letter: [index] for index, letter in enumerate(LETTERS)}
    assert real.summary["absorption_fraction"] == 0 and real.summary["main_latent_f1"] == 1
    return null_absorption([sae], reference, CONFIG, [real.kept["main_latents"]])[0]


def test_shuffled_letters_by_hand():
    # P = 2. Where the latents found for shuffled letters have the letter's own among them, M = P: 0. Where they do not,
    # M = 0, T = 2 by the letter's own latent, T / P = 1, and no main latent fires: 1, and full.
    sae, reference = one_latent_per_letter(common=0.0)
    found = nulls(sae, reference)
    mains = main_latents(sae, with_shuffled_letters(reference), CONFIG)
    without = sum(letter not in latents.tolist() for letter, (latents, _) in mains.items()) / 26
    assert without > 0.8
    assert found["absorption_fraction_null"] == found["absorption_full_null"] == pytest.approx(without)
    assert found["main_latent_f1_null"] == pytest.approx(sum(f1[0] for _, f1 in mains.values()) / 26)
    assert found["main_latent_f1_null"] < 0.3


def test_shuffling_keeps_how_many_words_a_letter_has():
    _, reference = one_latent_per_letter(common=0.0)
    shuffled = with_shuffled_letters(reference)
    for mine, dealt in (
        (reference.train_labels, shuffled.train_labels),
        (reference.test_labels, shuffled.test_labels),
    ):
        assert torch.equal(mine.bincount(), dealt.bincount())
        assert (mine == dealt).float().mean() < 0.2
    assert shuffled.train_activations is reference.train_activations
    assert with_shuffled_letters(reference).train_words == shuffled.train_words  # a fixed seed


def test_random_directions_by_hand():
    # With p the letter's direction, M = 2 p_letter, and latent 26 is the only other one: T = 3 p_26 where p_26 >= .1.
    # P = M + 3 p_26, so the fraction is T / P where that is .4 or more, or 1 where M <= 0.
    sae, reference = one_latent_per_letter(common=3.0)
    found = nulls(sae, reference)
    p = with_random_directions(reference).probe.weight.double()
    assert torch.allclose(p.norm(dim=1), torch.ones(26, dtype=torch.float64))
    expected, full = [], []
    for letter in range(26):
        by_main, other = 2 * float(p[letter, letter]), 3 * float(p[letter, COMMON])
        on_probe = by_main + other
        assert on_probe > 0  # turned towards the letter's words
        share = other / on_probe if float(p[letter, COMMON]) >= 0.1 else 0.0
        expected.append(0.0 if share < 0.4 else 1.0 if by_main <= 0 else share)
        full.append(0.0)  # the letter's latent fires on each of its words
    assert 0 < sum(e > 0 for e in expected) < 26 and any(e == 1 for e in expected)
    assert found["absorption_fraction_random"] == pytest.approx(sum(expected) / 26, abs=1e-6)
    assert found["absorption_full_random"] == sum(full)


def test_without_letters_there_is_no_score():
    sae, reference = one_latent_per_letter(common=0.0)
    config = AbsorptionConfig(probe_epochs=10, min_probe_f1=1.0)
    found = null_absorption([sae, sae], reference, config, [{}, {}])
    assert len(found) == 2 and all(math.isnan(value) for value in found[1].values())
