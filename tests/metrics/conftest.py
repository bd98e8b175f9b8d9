"""A language model of a few thousand weights whose residual stream carries first letters, with a tokenizer of
its own."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import LETTERS, QUESTION, alphabetic_words
from sae_lib.metrics import scores as _scores  # noqa: F401 (registers them, in their order)

D_IN = 32


def _text() -> list[str]:
    """Words of two and three letters, enough of them for every letter, and the prompt's own words."""
    words = [first + middle for first in LETTERS for middle in "aeiou"]
    words += [word + end for word in words for end in "nt"]
    lines = [f"{word} {word} {word.capitalize()}" for word in words]
    answers = [f"X{QUESTION} {letter}\n" for letter in LETTERS.upper()]
    return (lines + answers) * 3


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with <bos>, <eos> and <pad>."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def lm(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A random Gemma-2 of three layers, read after layer 1. Each word's embedding points along its first
    letter."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=D_IN,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        torch.nn.init.normal_(embedding, std=0.1)
        for word in alphabetic_words(tokenizer, frozenset({0, 1, 2})):
            embedding[word.token, word.letter] += 3
    return LanguageModel(model, tokenizer, name="tiny", layer=1, whole=True, identity="tiny-1")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time a language model ran, up to the residual stream: how many contexts it read."""
    calls: list[int] = []
    original = LanguageModel.residual_stream

    def counting(self: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(LanguageModel, "residual_stream", counting)
    return calls
