"""Words of the first-letter task and the prompts they are read in.

A word is a token: every vocabulary entry that is one or more ASCII letters after at most one leading space. Prompts are
built from token ids, so each word *is* one token and its position is known. SAEBench tokenises text and reads position
-6, which is another token whenever ` has the first letter:` is not five tokens.
"""

import random
import re
from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lib.util.errors import ArtifactError, ModelLacks

LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUESTION = " has the first letter:"
ALPHABETIC = re.compile(r" ?[A-Za-z]+")


class Word(NamedTuple):
    """A vocabulary entry: its text (with its leading space), its token id, its letter as an index into LETTERS."""

    text: str
    token: int
    letter: int


class PromptPieces(NamedTuple):
    """The token ids between the words of a prompt; `answers` has one entry for each letter."""

    opening: list[int]
    question: list[int]
    answers: list[list[int]]
    separator: list[int]


class Prompts(NamedTuple):
    """Token ids, padded on the right, and where each row's word stands."""

    tokens: Int[Tensor, "word position"]
    position: Int[Tensor, " word"]


def alphabetic_words(tokenizer: Any, special_ids: frozenset[int]) -> list[Word]:
    """Every alphabetic word of a Hugging Face tokenizer's vocabulary that is not special, sorted by its text."""
    words: dict[str, Word] = {}
    for entry, token in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = entry_text(tokenizer, entry)
        if token not in special_ids and text not in words and ALPHABETIC.fullmatch(text):
            words[text] = Word(text, token, LETTERS.index(text.strip()[0].lower()))
    return [words[text] for text in sorted(words)]


def single_token_words(tokenizer: Any, words: Sequence[Word], pieces: PromptPieces) -> list[Word]:
    """The words that stay one token when the prompt's text around them is tokenised: merges may never produce a
    vocabulary's entry from text, and the model has not seen it."""
    if not words:
        return []
    encoded = tokenizer([f"\n{word.text}{QUESTION}" for word in words], add_special_tokens=False)["input_ids"]
    alone = ([*pieces.opening, word.token, *pieces.question] for word in words)
    return [word for word, ids, as_one in zip(words, encoded, alone, strict=True) if ids == as_one]


def choose_words(words: Sequence[Word], max_words: int | None, seed: int) -> list[Word]:
    """At most `max_words` words, seeded, as even over the letters as the vocabulary allows; in the given order."""
    if max_words is None or len(words) <= max_words:
        return list(words)
    generator = random.Random(seed)
    shuffled = generator.sample(words, len(words))[::-1]
    by_letter = [[word for word in shuffled if word.letter == letter] for letter in range(len(LETTERS))]
    in_turn = (word for round_ in zip_longest(*by_letter) for word in round_ if word is not None)
    chosen = set(islice(in_turn, max_words))
    return [word for word in words if word in chosen]


def split_words(words: Sequence[Word], train_fraction: float, seed: int) -> tuple[list[Word], list[Word]]:
    """Shuffle, then the first int(train_fraction * n) words for training and the rest for testing."""
    shuffled = random.Random(seed).sample(words, len(words))
    boundary = int(len(words) * train_fraction)
    return shuffled[:boundary], shuffled[boundary:]


def prompt_pieces(tokenizer: Any) -> PromptPieces:
    """What stands between the words, tokenised in its surroundings. Raises ModelLacks: the tokenizer joins a piece with
    its neighbour."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def behind(start: str, end: str) -> list[int]:
        ids, known = encode(start + end), encode(start)
        if ids[: len(known)] != known or len(ids) == len(known):
            joined = f"its tokenizer does not keep {start!r} and what follows apart in {start + end!r}"
            raise ModelLacks(f"{joined}, so first-letter absorption cannot be measured on it")
        return ids[len(known) :]

    line = f"\nX{QUESTION}"
    answers = [behind(line, f" {letter}") for letter in LETTERS.upper()]
    return PromptPieces(encode("\n"), behind("\nX", QUESTION), answers, behind(f"{line} X", "\n"))


def build_prompts(
    words: Sequence[Word], pool: Sequence[Word], pieces: PromptPieces, bos: int, examples: int, seed: int
) -> Prompts:
    """One prompt for each word: BOS, a newline, answered example lines, and the question about the word.

        <bos>\\nDog has the first letter: D\\n cat has the first letter:

    So many `examples` are drawn from `pool`, without replacement and never the word itself. Raises ArtifactError: the
    pool is too small.
    """
    if len(pool) < examples + 1:
        need = f"{examples} examples need {examples + 1} words or more in each split, there are {len(pool)}"
        fix = "raise max_words or use a tokenizer with more alphabetic tokens"
        raise ArtifactError(f"evaluation.absorption: {need}; {fix}")
    generator = random.Random(seed)
    rows, positions = [], []
    for word in words:
        # One spare, so that leaving out the word itself still leaves enough.
        drawn = [example for example in generator.sample(pool, examples + 1) if example != word]
        row = [bos, *pieces.opening]
        for example in drawn[:examples]:
            row += [example.token, *pieces.question, *pieces.answers[example.letter], *pieces.separator]
        positions.append(len(row))
        rows.append([*row, word.token, *pieces.question])
    # Answers may differ in length. The model is causal: padding on the right cannot reach the word.
    length = max(map(len, rows), default=0)
    padded = [row + [bos] * (length - len(row)) for row in rows]
    tokens = torch.tensor(padded, dtype=torch.long).view(len(rows), length)
    return Prompts(tokens, torch.tensor(positions, dtype=torch.long))


def entry_text(tokenizer: Any, entry: str) -> str:
    """A vocabulary entry as it reads inside a text; some decoders drop the leading space of a first token."""
    text = str(tokenizer.convert_tokens_to_string([entry]))
    return f" {text}" if entry.startswith("▁") and not text.startswith(" ") else text
