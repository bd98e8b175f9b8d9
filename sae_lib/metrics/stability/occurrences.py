"""Where words stand in running text."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lib.metrics.absorption.vocabulary import Word


def find_occurrences(
    words: Sequence[Word], standing: Int[Tensor, " row"], *, at_least: int, at_most: int
) -> tuple[list[Word], Int[Tensor, " occurrence"], Int[Tensor, " occurrence"]]:
    """The words that occur often enough, the rows they stand in, and which of these words each row holds.

    Args:
        words: which words to look for.
        standing: the token id at each row, or -1 where there is no whole word.
        at_least: occurrences that a word must have.
        at_most: only the first so many are taken.
    """
    found: list[Word] = []
    rows, which = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    for word in words:
        at = (standing == word.token).nonzero().flatten()
        if len(at) >= at_least:
            rows.append(at[:at_most])
            which.append(torch.full_like(rows[-1], len(found)))
            found.append(word)
    return found, torch.cat(rows), torch.cat(which)


def whole_words(
    tokenizer: Any, special_ids: frozenset[int], tokens: Int[Tensor, "context position"]
) -> Bool[Tensor, "context position"]:
    """At which positions a token begins a word and the next token does not go on with it.

    In "running", cut into "runn" and "ing", the token "ing" is no word, and its letter is not the word's. What
    stands before a context's first token and after its last is not known: a first token counts only if it
    brings a space with it, a last one never does.

    Args:
        tokenizer: has `convert_ids_to_tokens` and `convert_tokens_to_string`.
        special_ids: token ids that are not text. BOS is expected at the first position.
        tokens: contexts.
    """
    ids, index = tokens.unique(return_inverse=True)
    texts = ["" if int(i) in special_ids else _text(tokenizer, int(i)) for i in ids]
    begins_inside = torch.tensor([_in_word(text[:1]) for text in texts])[index]
    ends_inside = torch.tensor([_in_word(text[-1:]) for text in texts])[index]
    goes_on = torch.ones_like(tokens, dtype=torch.bool)
    goes_on[:, :-1] = begins_inside[:, 1:]
    joined = torch.zeros_like(goes_on)
    joined[:, 1:] = begins_inside[:, 1:] & ends_inside[:, :-1]
    joined[:, :2] |= begins_inside[:, :2]
    return ~joined & ~goes_on & ends_inside


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _text(tokenizer: Any, token: int) -> str:
    """A token as it reads inside a text; some decoders drop the leading space of a first token."""
    entry = tokenizer.convert_ids_to_tokens(token)
    text = str(tokenizer.convert_tokens_to_string([entry]))
    return f" {text}" if entry.startswith("▁") and not text.startswith(" ") else text
