"""Tokens as a reader can see them: no token is invisible, none can change how a page is drawn."""

from __future__ import annotations

import unicodedata
from functools import cached_property
from typing import Any

NEWLINE = "⏎"
# Control, format (joiners, changes of direction), surrogate, unassigned; line and paragraph separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})


def visible(text: str) -> str:
    """`text` with a sign in place of every character that has no shape of its own; spaces stay.

    >>> visible("a\\n\\tb\\u202e")
    'a⏎␉b⟨202E⟩'
    """
    return "".join(_sign(character) if unicodedata.category(character) in _UNSEEN else character for character in text)


def _sign(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return NEWLINE
    return chr(0x2400 + code) if code < 0x20 else f"⟨{code:04X}⟩"


class Pieces:
    """The visible text of each token of a tokenizer.

    A token that is part of a character only (byte-level tokenizers have such) is shown as its bytes, ⟨E2 80⟩.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> str:
        text = self._tokenizer.decode([token])
        entry = str(self._tokenizer.convert_ids_to_tokens(token))
        if "\ufffd" in text:
            unknown = [character for character in entry if character not in self._bytes]
            return visible(entry) if unknown else f"⟨{bytes(map(self._bytes.__getitem__, entry)).hex(' ').upper()}⟩"
        # Some decoders drop the space that a token begins with.
        return visible(f" {text}" if entry.startswith("▁") and not text.startswith(" ") else text) or visible(entry)

    @cached_property
    def _bytes(self) -> dict[str, int]:
        """The characters that byte-level tokenizers write bytes as."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {character: byte for byte, character in bytes_to_unicode().items()}
