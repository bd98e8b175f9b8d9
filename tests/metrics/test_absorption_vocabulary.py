"""Which words, in which prompts."""

import pytest
import torch

from sae_lib.data.words import (
    LETTERS,
    PromptPieces,
    Word,
    alphabetic_words,
    build_prompts,
    choose_words,
    prompt_pieces,
    single_token_words,
    split_words,
)
from sae_lib.util.errors import ArtifactError


class FakeTokenizer:
    """A vocabulary given as a dictionary; text is split into characters unless a rule says otherwise."""

    def __init__(self, vocabulary, rules=None):
        self.vocabulary = vocabulary
        self.rules = rules or {}

    def get_vocab(self):
        return self.vocabulary

    def convert_tokens_to_string(self, entries):
        # Decoders of SentencePiece tokenizers drop the leading space of a first token.
        return "".join(entries).replace("▁", " ").removeprefix(" ")

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return self.rules.get(text, [ord(character) for character in text])

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [self.encode(text, add_special_tokens) for text in texts]}


def numbered(texts):
    return [Word(text, 100 + i, LETTERS.index(text.strip()[0].lower())) for i, text in enumerate(texts)]


def test_words_are_alphabetic_entries_and_case_and_space_are_told_apart():
    entries = ["<bos>", "cat", "▁cat", "Cat", "▁▁cat", "c4t", "cat's", "naïve", "▁", "", "Zoo", "▁a", "nope"]
    tokenizer = FakeTokenizer({entry: i for i, entry in enumerate(entries)})
    words = alphabetic_words(tokenizer, special_ids=frozenset({0, 12}))
    assert words == [
        Word(" a", 11, 0),
        Word(" cat", 2, 2),
        Word("Cat", 3, 2),
        Word("Zoo", 10, 25),
        Word("cat", 1, 2),
    ]


def test_order_of_the_vocabulary_does_not_matter():
    entries = {"b": 1, "▁b": 5, "A": 2, "c": 3}
    backwards = dict(reversed(entries.items()))
    none = frozenset[int]()
    assert alphabetic_words(FakeTokenizer(entries), none) == alphabetic_words(FakeTokenizer(backwards), none)


def test_entries_that_text_never_produces_are_left_out():
    pieces = PromptPieces(opening=[1], question=[2, 3], answers=[[4]] * 26, separator=[1])
    rules = {
        "\nab has the first letter:": [1, 100, 2, 3],
        "\ncd has the first letter:": [1, 7, 8, 2, 3],  # "cd" falls apart
        "\nef has the first letter:": [102, 2, 3],  # "\nef" is one token
    }
    words = numbered(["ab", "cd", "ef"])
    assert single_token_words(FakeTokenizer({}, rules), words, pieces) == words[:1]


def test_a_cap_takes_words_evenly_over_the_letters():
    words = numbered([f"a{'x' * i}" for i in range(20)] + ["ba", "bb", "bc", "c"])
    chosen = choose_words(words, 10, seed=1)
    # One c and three b are all there are; a fills up the rest.
    assert [sum(word.letter == letter for word in chosen) for letter in range(3)] == [6, 3, 1]
    assert chosen == [word for word in words if word in chosen]
    assert chosen == choose_words(words, 10, seed=1)
    assert chosen != choose_words(words, 10, seed=2)
    assert choose_words(words, None, seed=1) == choose_words(words, 24, seed=1) == words


def test_split_takes_the_floor_and_loses_nothing():
    words = numbered([f"a{'x' * i}" for i in range(13)])
    train, test = split_words(words, 0.8, seed=3)
    assert (len(train), len(test)) == (10, 3)  # int(0.8 * 13) = int(10.4)
    assert sorted(train + test) == sorted(words)
    assert train != words[:10]
    assert split_words(words, 0.8, seed=3) == (train, test)


def test_prompts_read_as_their_text_and_point_at_the_word(tokenizer):
    words = alphabetic_words(tokenizer, frozenset({0, 1, 2}))
    pieces = prompt_pieces(tokenizer)
    usable = single_token_words(tokenizer, words, pieces)
    assert len(usable) > 200
    asked, pool = usable[::9], usable[:40]
    prompts = build_prompts(asked, pool, pieces, bos=0, examples=3, seed=5)
    for word, ids, position in zip(asked, prompts.tokens.tolist(), prompts.position.tolist(), strict=True):
        assert ids[0] == 0
        assert ids[position] == word.token
        text = tokenizer.decode(ids[1:])
        blank, *lines, question = text.split("\n")
        assert blank == "" and len(lines) == 3
        assert question == f"{word.text} has the first letter:"
        for line in lines:
            example, answer = line.split(" has the first letter: ")
            assert answer == example.strip()[0].upper()
            assert example != word.text
            assert example in {other.text for other in pool}
        # The ids are what the tokenizer makes of the text.
        assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]


def test_examples_follow_their_seed_and_never_repeat_within_a_prompt():
    pieces = PromptPieces(opening=[1], question=[2], answers=[[3]] * 26, separator=[4])
    words = numbered([f"a{'x' * i}" for i in range(11)])
    prompts = build_prompts(words, words, pieces, bos=0, examples=10, seed=0)
    for word, ids in zip(words, prompts.tokens.tolist(), strict=True):
        drawn = ids[2:-2:4]
        # Eleven words and ten examples: all the others, each once.
        assert sorted(drawn) == sorted(other.token for other in words if other != word)
    again = build_prompts(words, words, pieces, bos=0, examples=10, seed=0)
    other = build_prompts(words, words, pieces, bos=0, examples=10, seed=1)
    assert torch.equal(prompts.tokens, again.tokens)
    assert not torch.equal(prompts.tokens, other.tokens)


def test_answers_of_different_length_are_padded_behind_the_question():
    answers = [[3]] * 26
    answers[1] = [3, 3]
    pieces = PromptPieces(opening=[1], question=[2], answers=answers, separator=[4])
    a, b, c = numbered(["a", "b", "c"])
    prompts = build_prompts([a, b], [a, b, c], pieces, bos=0, examples=2, seed=0)
    # The examples of "a" are b and c, one answer longer than those of "b", which are a and c.
    assert prompts.position.tolist() == [11, 10]
    assert prompts.tokens[:, -1].tolist() == [2, 0]
    assert prompts.tokens[1, 10:].tolist() == [b.token, 2, 0]


def test_too_few_words_is_one_clear_line():
    pieces = PromptPieces(opening=[1], question=[2], answers=[[3]] * 26, separator=[4])
    words = numbered(["a", "b", "c"])
    with pytest.raises(ArtifactError, match="4 words or more in each split, there are 3"):
        build_prompts(words, words, pieces, bos=0, examples=3, seed=0)


def test_a_tokenizer_that_joins_the_pieces_is_refused():
    joined = FakeTokenizer({}, {"\nX has the first letter:": [1, 2, 3]})
    with pytest.raises(ArtifactError, match="does not keep"):
        prompt_pieces(joined)
