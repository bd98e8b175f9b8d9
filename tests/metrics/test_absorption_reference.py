"""From a language model to its reference, and from there to an SAE's score."""

import copy
import dataclasses

import pytest
import torch

from sae_lib.data import words as vocabulary
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import Word, alphabetic_words, build_prompts, prompt_pieces
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae

CONFIG = AbsorptionConfig(max_words=600, icl_examples=2, probe_epochs=15, probe_batch=16)


@pytest.fixture(scope="module")
def built(lm, tmp_path_factory) -> tuple[AbsorptionReference, object]:
    folder = tmp_path_factory.mktemp("reference")
    return build_absorption_reference(lm, CONFIG, folder), folder


def same(one: AbsorptionReference, other: AbsorptionReference) -> bool:
    """Whether every word, number and tensor agrees."""
    for field in dataclasses.fields(AbsorptionReference):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            if not torch.equal(a, b):
                return False
        elif field.name == "probe":
            if not all(torch.equal(x, y) for x, y in zip(a, b, strict=True)):
                return False
        elif a != b:
            return False
    return True


def test_the_probe_finds_letters_that_are_there(built):
    reference, _ = built
    assert len(reference.train_words) == 480 and len(reference.test_words) == 120
    assert not set(reference.train_words) & set(reference.test_words)
    assert reference.train_activations.shape == (480, 32)
    assert reference.train_activations.dtype == torch.float32
    assert sum(f1 > 0.6 for f1 in reference.probe_f1) >= 20
    # Scored words are the test words that their own letter's probe finds.
    logits = reference.test_activations @ reference.probe.weight.T + reference.probe.bias
    own = logits[torch.arange(120), reference.test_labels]
    assert reference.scored.tolist() == [i for i in range(120) if own[i] > 0]
    assert reference.scored_activations.shape == (len(reference.scored), 32)
    # They are read in fresh prompts: not the activations that the probe was tested on.
    assert not torch.equal(reference.scored_activations, reference.test_activations[reference.scored])


def test_activations_are_those_at_the_word_of_the_prompt_as_text(lm, built):
    reference, _ = built
    text_of = {token: text for text, token in lm.tokenizer.get_vocab().items()}
    pieces = prompt_pieces(lm.tokenizer)
    train = []
    for text, label in zip(reference.train_words, reference.train_labels.tolist(), strict=True):
        (token,) = lm.tokenizer.encode(text, add_special_tokens=False)
        train.append(Word(text, token, label))
    prompts = build_prompts(train, train, pieces, bos=0, examples=2, seed=CONFIG.probe_prompt_seed)
    for i in (0, 7, 479):
        prompt = lm.tokenizer.decode(prompts.tokens[i, 1:].tolist())
        ids = [0, *lm.tokenizer.encode(prompt, add_special_tokens=False)]
        # Independent of the recorded position: the last token that reads as the word.
        at = max(j for j, token in enumerate(ids) if text_of[token] == text_of[train[i].token])
        with torch.no_grad():
            hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # hidden_states[0] is the embedding, [2] the output of the second block.
        torch.testing.assert_close(reference.train_activations[i], hidden[2][0, at], atol=1e-5, rtol=1e-4)


def test_the_second_time_it_is_read_from_disk(lm, built, counted):
    reference, folder = built
    assert same(build_absorption_reference(lm, CONFIG, folder), reference)
    assert counted == []


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_an_altered_file_is_made_again(lm, built, counted, suffix):
    reference, folder = built
    (file,) = folder.glob(f"*{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert same(build_absorption_reference(lm, CONFIG, folder), reference)
    assert counted
    assert file.suffix == ".json" or file.read_bytes() == content  # the record has the time of its files


def test_words_that_are_not_one_token_are_left_out_and_shown(lm, tmp_path, monkeypatch):
    small = CONFIG.model_copy(update={"probe_epochs": 1, "max_words": 100})
    original = vocabulary.single_token_words
    monkeypatch.setattr(vocabulary, "single_token_words", lambda *arguments: original(*arguments)[7:])
    words = alphabetic_words(lm.tokenizer, lm.special_ids)
    made = build_absorption_reference(lm, small, tmp_path)
    assert made.left_out >= 7
    assert len(made.left_out_examples) == 5
    assert set(made.left_out_examples) <= {word.text for word in words} - set(made.train_words + made.test_words)
    assert same(build_absorption_reference(lm, small, tmp_path), made)


def test_another_prompt_seed_or_model_has_a_reference_of_its_own(lm, built, counted, tmp_path):
    reference, _ = built
    small = CONFIG.model_copy(update={"probe_epochs": 1})
    first = build_absorption_reference(lm, small, tmp_path)
    reseeded = small.model_copy(update={"absorption_prompt_seed": 1})
    other = build_absorption_reference(lm, reseeded, tmp_path)
    # Fresh prompts differ; the probe's do not.
    assert torch.equal(other.scored, first.scored) and len(first.scored) > 0
    assert not torch.equal(other.scored_activations, first.scored_activations)
    assert torch.equal(other.test_activations, reference.test_activations)
    runs = len(counted)
    renamed = LanguageModel(lm.model, lm.tokenizer, name="tiny", layer=1, whole=True, identity="tiny-2")
    build_absorption_reference(renamed, small, tmp_path)
    assert len(counted) > runs
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_batches_of_prompts_do_not_change_what_is_read(lm, built, tmp_path):
    reference, _ = built
    in_small_batches = CONFIG.model_copy(update={"lm_batch": 11, "probe_epochs": 1})
    again = build_absorption_reference(lm, in_small_batches, tmp_path)
    torch.testing.assert_close(again.test_activations, reference.test_activations, atol=1e-5, rtol=1e-4)


def test_a_model_without_letters_gives_a_note_and_does_not_fail(lm, tmp_path):
    blind = CONFIG.model_copy(update={"probe_epochs": 1, "probe_learning_rate": 1e-5, "max_words": 100})
    reference = build_absorption_reference(lm, blind, tmp_path)
    sae = make_sae(architecture="standard", d_sae=40, d_in=32)
    result = evaluate_absorption(sae, reference, blind)
    assert result.summary["letters"] < 20
    assert "SAEBench gives no result below 20" in "; ".join(result.notes)


def test_too_few_words_for_the_examples(lm, tmp_path):
    with pytest.raises(ArtifactError, match="each split"):
        build_absorption_reference(lm, AbsorptionConfig(max_words=40), tmp_path)


def test_end_to_end(lm, built):
    reference, _ = built
    sae = make_sae(architecture="topk", d_sae=96, k=8, d_in=32, seed=3)
    result = evaluate_absorption(sae, reference, CONFIG)
    assert result.summary["letters"] == len(result.tables["letters"]) >= 20
    assert "; ".join(result.notes) == ""
    assert result.summary["words"] == result.tables["letters"]["true_positives"].sum()
    for name in ("absorption_fraction", "absorption_full", "absorption_unthresholded", "k1_f1"):
        assert result.tables["letters"][name].between(0, 1).all()
    mean = result.tables["letters"]["absorption_fraction"].mean()
    assert result.summary["absorption_fraction"] == pytest.approx(mean)
    assert (result.tables["letters"]["true_positives"] <= result.tables["letters"]["test_words"]).all()
    assert result.tables["letters"]["num_split_features"].between(1, 10).all()


def test_entries_without_an_embedding_are_no_words(lm, tokenizer, tmp_path):
    """A tokenizer may be larger than the embedding of its model."""
    model = copy.deepcopy(lm.model)
    known = max(tokenizer.get_vocab().values()) - 40
    model.resize_token_embeddings(known)
    smaller = LanguageModel(model, tokenizer, name="smaller", layer=1, whole=True, identity="smaller")
    found = build_absorption_reference(smaller, CONFIG, tmp_path)
    words = {*found.train_words, *found.test_words}
    every = alphabetic_words(tokenizer, lm.special_ids)
    assert words and words <= {word.text for word in every if word.token < known}
    assert any(word.token >= known for word in every)
