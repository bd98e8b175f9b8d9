"""Planted absorption on an SAE that has one latent for each letter: what the score finds is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import main_latents
from sae_lib.metrics.absorption.planted import plant, planted_absorption
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import sae_of, words_with

CONFIG = AbsorptionConfig(probe_epochs=20)
TRAIN, TEST = 40, 8  # words of each of three letters


def letters_alone(gain: float = 1.0) -> tuple[Autoencoder, AbsorptionReference]:
    """Words x = 2 e_letter + what is their own, in dimensions that no latent reads; latent i is gain max(0, x_i)."""
    labels = torch.arange(3).repeat_interleave(TRAIN + TEST)
    x = torch.zeros(len(labels), 24)
    x[torch.arange(len(labels)), labels] = 2.0
    x[:, 3:] = torch.randn(len(labels), 21, generator=torch.Generator().manual_seed(0))
    test = torch.arange(len(labels)) % (TRAIN + TEST) >= TRAIN
    fresh = x[test].clone()
    fresh[:, 3:] += 0.1
    words = ["abc"[label] for label in labels.tolist()]
    reference = words_with(words, x, test, torch.eye(26, 24), [1.0] * 3, fresh)
    return sae_of(gain * torch.eye(24, 3), torch.eye(3, 24)), reference


def test_what_was_planted_is_found():
    # On an absorbed word M = 0, and its own latent writes the 2 of P: fraction 1, and full. The letter's latent fires
    # on the other words without a mistake: F1 = 2 (1 - s) / (2 - s).
    sae, reference = letters_alone()
    found = planted_absorption(sae, reference, CONFIG).set_index("planted")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        for name in ("absorption_fraction_known", "absorption_full_known"):
            assert found.loc[share, name] == pytest.approx(share)
    for share in (0.0, 0.25, 0.5):
        for name in ("absorption_fraction", "absorption_full"):
            assert found.loc[share, name] == pytest.approx(share)
        assert found.loc[share, "main_latent_f1"] == pytest.approx(2 * (1 - share) / (2 - share))


def test_a_weak_main_latent_is_taken_over_as_weak_as_it_is():
    # The latents write .6 of the 2: M = 1.2 on words left alone, where nothing else writes. On an absorbed one T = 1.2,
    # T / P = .6. With .3, T / P is below .4 and no absorption is seen.
    for gain, seen in ((0.6, 1.0), (0.3, 0.0)):
        sae, reference = letters_alone(gain)
        found = planted_absorption(sae, reference, CONFIG, [0.5])
        assert found["absorption_fraction_known"].item() == pytest.approx(0.5 * seen)


def test_nothing_planted_is_the_sae_s_own_score():
    sae, reference = letters_alone()
    own = evaluate_absorption(sae, reference, CONFIG).summary
    found = planted_absorption(sae, reference, CONFIG, [0.0]).iloc[0]
    for name in ("absorption_fraction", "absorption_full", "main_latent_f1"):
        assert found[name] == own[name]


def test_the_planted_sae_on_its_words_and_on_others():
    sae, reference = letters_alone()
    mains = main_latents(sae, reference, CONFIG)
    planted = plant(sae, reference, mains, 0.25)
    assert planted.d_sae == 3 + 3 * (TRAIN + TEST) // 4 and planted.W_dec.shape == (planted.d_sae, 24)
    torch.testing.assert_close(planted.W_dec.norm(dim=1), torch.ones(planted.d_sae))
    f = planted.encode(reference.test_activations)
    absorbed = (f[:, 3:] > 0).any(dim=1)
    assert absorbed.sum() == 3 * TEST // 4
    assert (f[absorbed, :3] == 0).all() and ((f[absorbed, 3:] > 0).sum(dim=1) == 1).all()
    assert torch.equal(f[~absorbed, :3], sae.encode(reference.test_activations[~absorbed]))
    again = planted.encode(reference.scored_activations)  # the same words fire the same latents in their fresh prompts
    assert torch.equal(again[:, 3:] > 0, f[:, 3:] > 0)
    other = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    assert torch.equal(planted.encode(other)[:, :3], sae.encode(other)) and (planted.encode(other)[:, 3:] == 0).all()


def test_a_larger_share_absorbs_the_words_of_a_smaller_one():
    sae, reference = letters_alone()
    mains = main_latents(sae, reference, CONFIG)
    less, more = (
        (plant(sae, reference, mains, share).encode(reference.train_activations)[:, :3] == 0).all(dim=1)
        for share in (0.25, 0.5)
    )
    assert (more | ~less).all() and more.sum() == 2 * less.sum()


def test_words_that_no_sae_can_tell_apart_are_refused():
    sae, reference = letters_alone()
    same = replace(reference, train_activations=reference.train_activations[:1].expand(3 * TRAIN, -1))
    with pytest.raises(ArtifactError, match="two of its words have the same residual stream"):
        planted_absorption(sae, same, CONFIG, [1.0])
