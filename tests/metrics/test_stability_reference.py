"""Words in fresh prompts and in running text, read once and kept."""

import dataclasses

import pytest
import torch

from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import Word
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.stability import reference as module
from sae_lib.metrics.stability.reference import (
    StabilityConfig,
    StabilityReference,
    build_stability_reference,
    find_occurrences,
    whole_words,
)
from sae_lib.util.errors import ArtifactError

PROMPTS = AbsorptionConfig(max_words=300, icl_examples=3, probe_epochs=15, probe_batch=16)
CONFIG = StabilityConfig(words_per_letter=2, contexts=3, min_occurrences=3, max_occurrences=5, text_contexts=6)


@pytest.fixture(scope="module")
def absorption(lm, tmp_path_factory) -> AbsorptionReference:
    return build_absorption_reference(lm, PROMPTS, tmp_path_factory.mktemp("absorption"))


@pytest.fixture(scope="module")
def tokens(lm, absorption) -> torch.Tensor:
    """Eight contexts of 24: BOS, text of a few evaluated words, an EOS in the middle of the third."""
    words = [absorption.test_words[index] for index in absorption.scored[:6].tolist()]
    line = "".join(f" {word.strip()}," for word in words)
    ids = lm.tokenizer.encode(line * 40, add_special_tokens=False)
    contexts = torch.tensor([ids[start * 23 : start * 23 + 23] for start in range(8)])
    contexts[2, 10] = 1
    return torch.cat([torch.zeros(8, 1, dtype=torch.long), contexts], dim=1)


@pytest.fixture(scope="module")
def built(lm, absorption, tokens, tmp_path_factory) -> tuple[StabilityReference, object]:
    folder = tmp_path_factory.mktemp("stability")
    return build_stability_reference(lm, absorption, PROMPTS, CONFIG, tokens, folder), folder


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Contexts of each pass of the language model."""
    seen = []
    original = LanguageModel.residual_stream

    def counting(self, tokens):
        seen.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(LanguageModel, "residual_stream", counting)
    return seen


def scored_only(reference: AbsorptionReference, stop: int) -> AbsorptionReference:
    """The reference with the first of its evaluated words alone."""
    activations = reference.scored_activations[:stop]
    return dataclasses.replace(reference, scored=reference.scored[:stop], scored_activations=activations)


def same(one: StabilityReference, other: StabilityReference) -> bool:
    def equal(a, b):
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    return all(equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))


def test_words_in_prompts(absorption, built):
    reference, _ = built
    evaluated = {absorption.test_words[index] for index in absorption.scored.tolist()}
    assert set(reference.prompt_words) <= evaluated
    of_letter = torch.bincount(reference.prompt_letters)
    assert of_letter.max() == 2 and len(reference.prompt_words) == len(set(reference.prompt_words)) > 20
    firsts = ["abcdefghijklmnopqrstuvwxyz".index(word.strip()[0].lower()) for word in reference.prompt_words]
    assert reference.prompt_letters.tolist() == firsts
    activations = reference.prompt_activations
    assert activations.shape == (len(reference.prompt_words), 3, 32) and activations.dtype == torch.float32
    # The contexts of a word differ, and less than words do.
    within = (activations - activations.mean(dim=1, keepdim=True)).norm(dim=2)
    assert (within > 1e-4).all()
    assert within.mean() < (activations - activations.mean(dim=(0, 1))).norm(dim=2).mean()
    letters = reference.prompt_letters.repeat_interleave(3)
    own = absorption.probe.logits(activations.flatten(0, 1))[torch.arange(len(letters)), letters]
    assert torch.equal(reference.prompt_probe.flatten(), own > 0)
    assert reference.prompt_probe.float().mean() > 0.5


def test_the_last_context_has_as_many_examples_as_absorptions_prompts(lm, absorption, tmp_path, calls, monkeypatch):
    lengths = []
    original = module.build_prompts

    def watching(words, pool, pieces, bos, examples, seed):
        lengths.append((examples, seed))
        return original(words, pool, pieces, bos, examples, seed)

    monkeypatch.setattr(module, "build_prompts", watching)
    build_stability_reference(lm, absorption, PROMPTS, CONFIG, torch.zeros(1, 4, dtype=torch.long) + 50, tmp_path)
    assert lengths == [(1, 45), (2, 46), (3, 47)]


def test_running_text(lm, absorption, tokens, built):
    reference, _ = built
    used = tokens[:6]
    kept = (used != 0) & (used != 1)
    with torch.no_grad():
        hidden = lm.model(used, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(reference.text_activations, hidden[kept], atol=1e-5, rtol=1e-4)
    expected = torch.ones(6, 24, dtype=torch.bool)
    expected[:, :2] = False  # BOS, and the token after it
    expected[2, 11:13] = False  # EOS, and the token after it
    assert torch.equal(reference.has_predecessor, expected[kept])
    # Each occurrence reads as its word.
    ids = used[kept][reference.occurrence_rows].tolist()
    texts = [lm.tokenizer.decode([token]) for token in ids]
    assert texts == [reference.text_words[word] for word in reference.occurrence_words.tolist()]
    counts = torch.bincount(reference.occurrence_words)
    assert len(counts) == len(reference.text_words) > 0 and counts.min() >= 3 and counts.max() <= 5
    own = absorption.probe.logits(hidden[kept][reference.occurrence_rows])
    letters = reference.text_letters[reference.occurrence_words]
    assert torch.equal(reference.text_probe, own[torch.arange(len(ids)), letters] > 0)


def test_the_second_time_it_is_read_from_disk(lm, absorption, tokens, built, calls):
    reference, folder = built
    assert same(build_stability_reference(lm, absorption, PROMPTS, CONFIG, tokens, folder), reference)
    other_scoring = PROMPTS.model_copy(update={"f1_jump": 0.1, "lm_batch": 7})
    # Contexts beyond those that are used, and what only the scoring reads, do not matter.
    assert same(build_stability_reference(lm, absorption, other_scoring, CONFIG, tokens[:6], folder), reference)
    assert calls == []


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_an_altered_file_is_made_again(lm, absorption, tokens, built, calls, suffix):
    reference, folder = built
    (file,) = folder.glob(f"*{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert same(build_stability_reference(lm, absorption, PROMPTS, CONFIG, tokens, folder), reference)
    assert calls and (file.suffix == ".json" or file.read_bytes() == content)  # the record has the time of its file


def test_what_it_is_made_from_names_it(lm, absorption, tokens, tmp_path):
    renamed = LanguageModel(lm.model, lm.tokenizer, name="tiny", layer=1, whole=True, identity="tiny-2")
    other_words = scored_only(absorption, -1)
    few = CONFIG.model_copy(update={"words_per_letter": 1, "contexts": 2})
    for model, words, prompts, config, text in (
        (lm, absorption, PROMPTS, few, tokens),
        (renamed, absorption, PROMPTS, few, tokens),
        (lm, other_words, PROMPTS, few, tokens),
        (lm, absorption, PROMPTS.model_copy(update={"icl_examples": 2}), few, tokens),
        (lm, absorption, PROMPTS, few.model_copy(update={"seed": 1}), tokens),
        (lm, absorption, PROMPTS, few, tokens.flip(0)),
    ):
        before = len(list(tmp_path.glob("*.json")))
        build_stability_reference(model, words, prompts, config, text, tmp_path)
        assert len(list(tmp_path.glob("*.json"))) == before + 1


def test_a_model_that_does_not_spell_has_text_and_no_words(lm, absorption, tokens, tmp_path):
    blind = scored_only(absorption, 0)
    reference = build_stability_reference(lm, blind, PROMPTS, CONFIG, tokens, tmp_path)
    assert reference.prompt_words == [] == reference.text_words
    assert reference.prompt_activations.shape == (0, 3, 32) and len(reference.text_activations) > 0


def test_prompts_without_examples(lm, absorption, tokens, tmp_path):
    bare = PROMPTS.model_copy(update={"icl_examples": 0})
    with pytest.raises(ArtifactError, match="icl_examples: 0 makes every context of a word the same"):
        build_stability_reference(lm, absorption, bare, CONFIG, tokens, tmp_path)


class Pieces:
    """A tokenizer of the entries it is given; the decoder of "▁" drops a leading space, as SentencePiece's does."""

    def __init__(self, entries: list[str]) -> None:
        self.entries = entries

    def convert_ids_to_tokens(self, tokens: list[int]) -> list[str]:
        return [self.entries[token] for token in tokens]

    def convert_tokens_to_string(self, entries: list[str]) -> str:
        return "".join(entries).replace("▁", " ").lstrip(" ")


def test_whole_words():
    entries = ["<bos>", "▁run", "ning", "▁", ".", "array", "_", "2", "<eos>"]
    lines = {
        # A word, cut in two; a word before a full stop; one after it.
        ("<bos>", "▁run", "ning", ".", "array", "."): [0, 0, 0, 0, 1, 0],
        # A digit or an underscore goes on with a name; a space does not.
        ("<bos>", "▁run", "_", "array", "▁run", "▁"): [0, 0, 0, 0, 1, 0],
        ("<bos>", "▁run", "2", "▁run", "▁run", "▁run"): [0, 0, 0, 1, 1, 0],
        # What was cut off at the start, and at the end, is not known.
        ("<bos>", "array", ".", "array", "▁run", "ning"): [0, 0, 0, 1, 0, 0],
        # Texts end at EOS.
        ("<bos>", "▁run", "<eos>", "array", "<eos>", "▁run"): [0, 1, 0, 1, 0, 0],
    }
    tokens = torch.tensor([[entries.index(piece) for piece in line] for line in lines])
    found = whole_words(Pieces(entries), frozenset({0, 8}), tokens)
    assert found.int().tolist() == list(lines.values())


def test_find_occurrences():
    words = [Word("ab", 5, 0), Word(" cd", 6, 2), Word("ef", 7, 4)]
    standing = torch.tensor([5, -1, 7, 5, 6, 7, 5, 7, 7, -1])
    found, rows, which = find_occurrences(words, standing, at_least=3, at_most=3)
    assert found == [words[0], words[2]]
    assert rows.tolist() == [0, 3, 6, 2, 5, 7] and which.tolist() == [0, 0, 0, 1, 1, 1]
    none = find_occurrences(words, standing, at_least=9, at_most=9)
    assert none[0] == [] and len(none[1]) == 0 == len(none[2])
