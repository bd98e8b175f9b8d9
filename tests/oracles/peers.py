"""A language model for SAEBench that only remembers: it gives the residual streams of a stored reference."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from sae_lib.metrics.absorption.reference import AbsorptionReference


class _Tokenizer:
    """A tokenizer whose tokens are the words themselves."""

    def __init__(self, words: Sequence[str]) -> None:
        self.vocab = {word: token for token, word in enumerate(words)}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


class StoredModel:
    """Answers every prompt about a word with the residual stream that the reference has for that word.

    So SAEBench, which draws new example words for each of its prompts, reads what we read.
    """

    def __init__(self, reference: AbsorptionReference) -> None:
        self.cfg = SimpleNamespace(model_name="stored")
        self.tokenizer = _Tokenizer([*reference.train_words, *reference.test_words])
        scored = [reference.test_words[index] for index in reference.scored.tolist()]
        self.rows = dict(zip(scored, reference.scored_activations, strict=True))

    def to_tokens(self, prompt: str) -> Tensor:
        return torch.zeros(1, 6)

    def run_with_cache(self, prompts: list[str], names_filter: list[str]) -> tuple[None, dict[str, Tensor]]:
        """The word is the first of six positions, where SAEBench looks: at -6."""
        words = [prompt.split("\n")[-1].removesuffix(" has the first letter:") for prompt in prompts]
        residual = torch.stack([self.rows[word] for word in words])
        return None, {names_filter[0]: residual[:, None].expand(-1, 6, -1)}
