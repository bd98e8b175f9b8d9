"""How often letter latents fire over the contexts of a word, counted by hand."""

import dataclasses
import math

import pytest
import torch

from sae_lib.metrics.stability.reference import StabilityReference
from sae_lib.metrics.stability.score import context_stability, count_firing
from sae_lib.util.errors import ArtifactError
from tests.metrics.test_stability_tokens import identity_sae

NAMES = {
    f"context_{name}{where}"
    for name in (
        "firing", "firing_any", "firing_random", "every", "all_or_none", "all_or_none_random", "repeat",
        "repeat_random", "probe", "words",
    )
    for where in ("", "_text")
}  # fmt: skip


@pytest.fixture
def reference() -> StabilityReference:
    """Two words in three contexts each, and "ab" twice in a text of four rows. The SAE's latents are the columns:

    0 is a's, 1 is b's, 2 is a second one of a's; 3 fires on half of the rows, 4 and 5 never do.
    """
    prompts = torch.zeros(2, 3, 6)
    prompts[0, :, 0] = torch.tensor([1.0, 2.0, 0.0])  # ab: its own latent in two of three
    prompts[0, 2, 2] = 1.0  # where the first is silent, the second fires
    prompts[1, 0, 1] = 1.0  # ba: in one of three
    prompts[:, :, 3] = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    text = torch.zeros(4, 6)
    text[1, 0] = 1.0
    return StabilityReference(
        prompt_words=["ab", "ba"],
        prompt_letters=torch.tensor([0, 1]),
        prompt_activations=prompts,
        prompt_probe=torch.tensor([[True, True, True], [True, False, False]]),
        text_words=["ab"],
        text_letters=torch.tensor([0]),
        occurrence_rows=torch.tensor([1, 3]),
        occurrence_words=torch.tensor([0, 0]),
        text_probe=torch.tensor([True, False]),
        text_activations=text,
        has_predecessor=torch.tensor([False, True, True, True]),
    )


def test_two_words_by_hand(reference: StabilityReference):
    found = context_stability(identity_sae(6), reference, {"a": [0, 2], "b": [1]})
    assert set(found) == NAMES
    assert found["context_words"] == 2 and found["context_words_text"] == 1
    assert found["context_firing"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["context_firing_any"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["context_all_or_none"] == 0 == found["context_every"]
    # Of the three times one fires, only those of "ab" see each other: (2 * 1 + 1 * 0) / (2 * 2 + 1 * 2).
    assert found["context_repeat"] == pytest.approx(2 / 6)
    assert found["context_probe"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["context_firing_text"] == 0.5 == found["context_firing_any_text"] == found["context_probe_text"]
    assert found["context_repeat_text"] == 0 and found["context_all_or_none_text"] == 0
    # Latents 3, 4 and 5 are no letter's: 1/3 and 2/3, 0, 0.
    assert found["context_firing_random"] == pytest.approx((1 / 3 + 2 / 3) / 6)
    assert found["context_all_or_none_random"] == pytest.approx(4 / 6)
    assert found["context_repeat_random"] == pytest.approx(2 / (1 * 2 + 2 * 2))


def test_a_letter_without_latents_is_left_out_with_its_words(reference: StabilityReference):
    found = context_stability(identity_sae(6), reference, {"b": [1]})
    assert found["context_words"] == 1 and found["context_firing"] == pytest.approx(1 / 3)
    assert found["context_words_text"] == 0
    assert math.isnan(found["context_firing_text"]) and math.isnan(found["context_probe_text"])
    nothing = context_stability(identity_sae(6), reference, {})
    assert nothing["context_words"] == 0 and math.isnan(nothing["context_firing"])
    assert math.isnan(nothing["context_repeat"]) and math.isnan(nothing["context_all_or_none_random"])


def test_in_every_context_in_some_in_none(reference: StabilityReference):
    activations = reference.prompt_activations.clone()
    activations[0, :, 0], activations[1, :, 1] = 1.0, 0.0
    steady = dataclasses.replace(reference, prompt_activations=activations)
    found = context_stability(identity_sae(6), steady, {"a": [0, 2], "b": [1]})
    assert (found["context_every"], found["context_all_or_none"], found["context_repeat"]) == (0.5, 1, 1)


def test_no_words_at_all(reference: StabilityReference):
    empty = dataclasses.replace(
        reference,
        prompt_words=[],
        prompt_letters=torch.empty(0, dtype=torch.long),
        prompt_activations=torch.empty(0, 3, 6),
        prompt_probe=torch.empty(0, 3, dtype=torch.bool),
        text_words=[],
        text_letters=torch.empty(0, dtype=torch.long),
        occurrence_rows=torch.empty(0, dtype=torch.long),
        occurrence_words=torch.empty(0, dtype=torch.long),
        text_probe=torch.empty(0, dtype=torch.bool),
    )
    found = context_stability(identity_sae(6), empty, {"a": [0]})
    assert found["context_words"] == 0 == found["context_words_text"]
    assert all(math.isnan(value) for name, value in found.items() if "words" not in name)


def test_controls_are_the_nearest_in_density_and_no_letters():
    generator = torch.Generator().manual_seed(0)
    words, contexts, latents = 200, 8, 40
    density = torch.linspace(0, 1, latents)
    on = torch.rand(words * contexts, latents, generator=generator) < density
    word = torch.arange(words).repeat_interleave(contexts)
    letters = torch.arange(words) % 4
    mains = {0: [20], 1: [10, 11], 2: [30]}
    times, of_each = count_firing(on, torch.ones(words * contexts, dtype=torch.bool), word, letters, mains)
    assert times.shape == (150, 3 + 5) and (of_each == 8).all() and (times[:, 0] == 8).all()
    rate = on.double().mean(dim=0)
    counted = letters[torch.isin(letters, torch.tensor([0, 1, 2]))]
    for letter, latents_of_letter in mains.items():
        others = [i for i in range(latents) if i not in {20, 10, 11, 30}]
        nearest = sorted(others, key=lambda i: abs(rate[i] - rate[latents_of_letter[0]]))[:5]
        mine = on.view(words, contexts, latents)[letters == letter]
        _, first, any_of, *random = times[counted == letter].unbind(dim=1)
        assert torch.equal(torch.stack(random, dim=1), mine[:, :, nearest].sum(dim=1).double())
        assert torch.equal(first, mine[:, :, latents_of_letter[0]].sum(dim=1).double())
        assert torch.equal(any_of, mine[:, :, latents_of_letter].any(dim=2).sum(dim=1).double())


def test_an_sae_of_letters_only_has_no_control(reference: StabilityReference):
    found = context_stability(identity_sae(6), reference, {"a": [0, 2, 3], "b": [1, 4, 5]})
    assert math.isnan(found["context_firing_random"]) and found["context_firing_any"] == pytest.approx(2 / 3)


def test_bad_input(reference: StabilityReference):
    with pytest.raises(ArtifactError, match="d_in is 5, the reference's residual stream has 6"):
        context_stability(identity_sae(5), reference, {"a": [0]})
