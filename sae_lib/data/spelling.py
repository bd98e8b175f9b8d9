"""Lines that teach and ask for first letters, as token ids.

Three forms, all ending a line with the upper-case first letter after a space:

- immediate: ``{word} {X}`` (3 tokens a line): the letter is asked for at the word itself;
- dense: ``{word}: {X}`` (4 tokens a line), learned many times faster than the prompt;
- prompt: ``{word} has the first letter: {X}`` (8 tokens a line), the form that the absorption metric asks in.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_lib.data import words
from sae_lib.data.words import ALPHABETIC
from sae_lib.util.errors import ArtifactError

TokensAndLabels = tuple[NDArray[np.int64], NDArray[np.int64]]

ASK, LETTERS = words.QUESTION, words.LETTERS.upper()
IGNORED = -100  # label of a position that the loss leaves out


def single_token(tokenizer: Any, text: str) -> int:
    """The id of `text`, which must be one token. Raises ArtifactError when the tokenizer splits it."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ArtifactError(f"model.name: the tokenizer splits {text!r} into {len(ids)} tokens; spelling needs one")
    return int(ids[0])


class SpellingLines:
    """Random windows of spelling lines for one tokenizer; only letters carry a label, since words are drawn."""

    def __init__(self, tokenizer: Any) -> None:
        self.bos = int(tokenizer.bos_token_id)
        texts = {i: tokenizer.decode([i]) for i in sorted({*range(len(tokenizer))} - {*tokenizer.all_special_ids})}
        words = {i: text for i, text in texts.items() if ALPHABETIC.fullmatch(text)}
        self.words = np.array([*words], dtype=np.int64)
        self.letters = [single_token(tokenizer, f" {letter}") for letter in LETTERS]
        first = [LETTERS.index(text.strip()[0].upper()) for text in words.values()]
        self.answers = np.array(self.letters)[first]  # aligned with self.words
        self.newline = single_token(tokenizer, "\n")
        self.colon = single_token(tokenizer, ":")
        self.ask = np.array(tokenizer(ASK, add_special_tokens=False)["input_ids"])

    def windows(self, rng: np.random.Generator, n: int, length: int, dense: bool) -> TokensAndLabels:
        """`n` windows of `length` tokens: BOS, newline, then lines; tokens and labels int64 `[n, length]`."""
        middle = np.array([self.colon]) if dense else self.ask
        line = len(middle) + 3  # word, middle, letter, newline
        lines = (length - 2) // line + 1
        chosen = rng.integers(len(self.words), size=(n, lines))
        block = np.full((n, lines, line), self.newline, dtype=np.int64)
        block[:, :, 0], block[:, :, 1:-2], block[:, :, -2] = self.words[chosen], middle, self.answers[chosen]
        labelled = np.full_like(block, IGNORED)
        labelled[:, :, -2] = self.answers[chosen]
        head = np.tile([self.bos, self.newline], (n, 1))
        tokens = np.concatenate([head, block.reshape(n, lines * line)], axis=1)[:, :length]
        labels = np.concatenate([np.full_like(head, IGNORED), labelled.reshape(n, lines * line)], axis=1)[:, :length]
        return tokens, labels

    def mixed_windows(self, rng: np.random.Generator, n: int, length: int) -> TokensAndLabels:
        """As `windows`, with each line in a form drawn at random: at a word the model cannot know whether its letter is
        asked for at once, so the letter has to be there."""
        middles = [[], [self.colon], self.ask.tolist()]
        tokens = np.full((n, length), self.newline, dtype=np.int64)
        labels = np.full((n, length), IGNORED, dtype=np.int64)
        tokens[:, 0] = self.bos
        for row in range(n):
            at = 2
            while at < length:
                word, middle = rng.integers(len(self.words)), middles[rng.integers(3)]
                line = [self.words[word], *middle, self.answers[word], self.newline][: length - at]
                tokens[row, at : at + len(line)] = line
                letter = at + 1 + len(middle)
                if letter < length:
                    labels[row, letter] = self.answers[word]
                at += len(line)
        return tokens, labels


class Lessons:
    """Windows of spelling lines of mixed forms in the place of some contexts, evenly spread; beyond `contexts` they go
    on at the same distance. The packaged model looks for first letters in lessons only, so SAEs need them."""

    def __init__(self, tokenizer: Any, contexts: int, count: int, seed: int = 0) -> None:
        self._lines = SpellingLines(tokenizer)
        self._rng = np.random.default_rng(seed)
        self._places = np.linspace(0, contexts - 1, count).round().astype(np.int64)
        self._distance = (contexts - 1) / (count - 1) if count > 1 else float(contexts)

    def replace(self, block: NDArray[np.int32], first: int) -> None:
        """Put the lessons into a block of contexts that begins with number `first`; blocks come in order."""
        further = np.arange(len(self._places), (first + len(block)) / self._distance + 1)
        self._places = np.append(self._places, (further * self._distance).round().astype(np.int64))
        low, high = np.searchsorted(self._places, (first, first + len(block)))
        if low < high:
            lines, _ = self._lines.mixed_windows(self._rng, int(high - low), block.shape[1])
            block[self._places[low:high] - first] = lines
