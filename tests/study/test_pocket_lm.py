"""The packaged language model is what its card says, and its training resumes exactly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.spelling import SpellingLines
from sae_lib.data.tokens import pack
from sae_lib.profiles.profile import load_profile
from sae_lib.study import pocket_lm as pocket_lm_training
from sae_lib.study.pocket_lm import (
    USABLE_F1,
    Recipe,
    batch_at,
    build_model,
    learning_rate,
    measure,
    train,
    train_tokenizer,
)

TINY = Recipe(
    vocabulary=400, d_model=16, layers=2, heads=2, key_value_heads=1, d_mlp=16, context_length=32, steps=6,
    finishing_steps=4, windows=4, warmup_steps=2, checkpoint_every=3,
)  # fmt: skip
TEXTS = [f"The letter of word {i} has a first place in the sentence, and the array of {i} values." for i in range(60)]


@pytest.fixture(scope="module")
def parts():
    tokenizer = train_tokenizer(TEXTS, TINY)
    return tokenizer, pack(TEXTS, tokenizer, TINY.context_length), SpellingLines(tokenizer)


def trained(parts, folder, recipe=TINY):
    tokenizer, contexts, lines = parts
    folder.mkdir(exist_ok=True)
    model = build_model(recipe, tokenizer)
    train(model, recipe, contexts, lines, folder, "text")
    return model.state_dict()


def test_an_interrupted_training_ends_with_the_same_weights(parts, tmp_path, monkeypatch):
    whole = trained(parts, tmp_path / "whole")
    real = batch_at

    def stop(step, *rest):
        if step == 8:
            raise KeyboardInterrupt
        return real(step, *rest)

    monkeypatch.setattr(pocket_lm_training, "batch_at", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(parts, tmp_path / "broken")
    monkeypatch.setattr(pocket_lm_training, "batch_at", real)
    resumed = trained(parts, tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_recipe_is_not_used(parts, tmp_path):
    other = replace(TINY, seed=1)
    fresh = trained(parts, tmp_path / "fresh", other)
    trained(parts, tmp_path / "used")
    again = trained(parts, tmp_path / "used", other)
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)


def test_batches_are_text_and_lessons_in_the_shares_of_the_recipe(parts):
    _, contexts, lines = parts
    tokens, labels = batch_at(0, TINY, contexts, lines)
    assert tokens.shape == (4, 32)
    assert ((tokens == labels).all(dim=1)).tolist() == [True, True, False, False], "text is labelled throughout"
    assert torch.equal(tokens, batch_at(0, TINY, contexts, lines)[0])
    assert not torch.equal(tokens, batch_at(1, TINY, contexts, lines)[0])


def test_the_learning_rate_rises_falls_and_does_so_again_at_half_the_height():
    rates = [learning_rate(step, Recipe()) for step in range(2100)]
    assert rates[79] == pytest.approx(3e-3) and rates[1599] == pytest.approx(3e-4, rel=0.01)
    assert max(rates[1600:]) == pytest.approx(1.5e-3) and rates[2099] == pytest.approx(1.5e-4, rel=0.01)


def test_the_packaged_model_meets_its_card_and_the_card_what_is_asked_of_it(tmp_path):
    card = json.loads((POCKET_FOLDER / "card.json").read_text())
    measured, layer = card["measured"], str(load_profile("pocket").model.layer)
    assert measured["held_out_loss"] < measured["bigram_loss"] < measured["unigram_loss"]
    assert measured["probe_usable_letters"][layer] >= 20 and USABLE_F1 == 0.8
    assert (POCKET_FOLDER / "model.safetensors").stat().st_size < 16 * 2**20
    tokenizer = AutoTokenizer.from_pretrained(POCKET_FOLDER)
    again = measure(POCKET_FOLDER, 2, pack(TEXTS, tokenizer, 128), tmp_path, words=260)
    assert set(again) <= set(measured) and again["parameters"] == measured["parameters"]
    assert 0 < again["held_out_loss"] < measured["unigram_loss"] and 0 < again["probe_macro_f1"][0] < 1
