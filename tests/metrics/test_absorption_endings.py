"""Absorption of word endings, on an SAE whose latents are the endings themselves, and where one word has its own."""

from __future__ import annotations

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.null import ALL, ENDINGS, OTHER, EndingReference, ending_absorption, ending_reference
from sae_lib.metrics.absorption.reference import AbsorptionReference
from tests.metrics.tiny_saes import sae_of, words_with

CONFIG = AbsorptionConfig(probe_epochs=200)
ending_of = EndingReference.class_of
USED = ("ing", "ed", "ly", "ion")
FREE = 20  # a direction of one word alone


def words_with_endings(absorbed: bool) -> tuple[Autoencoder, AbsorptionReference]:
    """x = 2 e_ending, latent i is max(0, x_i). `absorbed`: the fourteenth word of the first ending has a latent of its
    own, which writes the ending too, and the ending's latent is silent there."""
    words = [f" {stem}{end}" for end in (*USED, "") for stem in (f"ab{chr(97 + n)}k" for n in range(18))]
    kinds = torch.arange(len(words)) // 18
    x = torch.zeros(len(words), 32)
    x[torch.arange(len(words)), kinds] = 2.0
    own, encoder, decoder = 13, torch.eye(32), torch.eye(32)
    if absorbed:
        x[own, FREE] = 2.0
        encoder[FREE, 0] = -1.0
        decoder[FREE] = torch.nn.functional.normalize(torch.eye(32)[FREE] + torch.eye(32)[0], dim=0)
    test = torch.arange(len(words)) % 18 >= 12
    return sae_of(encoder, decoder), words_with(words, x, test, torch.eye(26, 32), [1.0] * 26)


def test_the_first_ending_that_fits_behind_a_stem() -> None:
    assert [ENDINGS[ending_of(word)] for word in (" Running", "nations", "station", "tables", "rapidly")] == [
        "ing", "s", "ion", "s", "ly",
    ]  # fmt: skip
    assert ending_of("king") == ending_of("bed") == ending_of("table"[:2]) == OTHER
    assert OTHER < 26, "the probes have room for as many classes as letters"


def test_words_without_an_ending_and_words_that_no_probe_finds_are_not_scored() -> None:
    _, reference = words_with_endings(absorbed=False)
    found = ending_reference(reference, CONFIG)
    assert found.counted(CONFIG.min_probe_f1) == [ENDINGS.index(end) for end in USED]
    assert len(found.scored) == len(found.scored_activations) == 4 * 6
    assert {ending_of(found.test_words[i]) for i in found.scored.tolist()} == {0, 1, 2, 3}
    torch.testing.assert_close(found.scored_activations, reference.scored_activations[:24])
    few = ending_reference(
        AbsorptionReference(**{**vars(reference), "scored": reference.scored[3:], "scored_activations":
                               reference.scored_activations[3:]}), CONFIG)  # fmt: skip
    assert len(few.scored) == 21, "a word that the letters' probe missed has no second prompt"


@pytest.mark.parametrize("absorbed", [False, True])
def test_by_hand(absorbed: bool) -> None:
    sae, reference = words_with_endings(absorbed)
    rows = ending_absorption(sae, ending_reference(reference, CONFIG), CONFIG).set_index("ending")
    assert list(rows.index) == [f"-{end}" for end in USED] + [ALL]
    assert rows.loc["-ing", "words"] == 6 and rows.loc[ALL, "words"] == 24 and rows.loc[ALL, "endings"] == 4
    assert rows.loc["-ing", "absorption_full"] == pytest.approx(absorbed / 6)
    assert rows.loc[ALL, "absorption_full"] == pytest.approx(absorbed / 24)
    assert rows.loc[["-ed", "-ly", "-ion"], "absorption_full"].eq(0).all()
    assert rows.loc[ALL, "absorption_full_null"] > 0.2, "latents that were chosen for shuffled endings find none"
