"""Tiny language models of four families, saved as a user's own local model would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from sae_lib.data.config import ModelConfig

VOCABULARY = 40
BOS, EOS, PAD, UNKNOWN = range(4)
FAMILIES = ("gemma2", "gpt_neox", "gpt2", "llama")
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


def configuration(family: str, layers: int = 3) -> Any:
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.3, **ids}
    if family == "gpt2":
        return GPT2Config(n_embd=16, n_layer=layers, n_head=2, n_positions=32, **shared)
    shared |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    if family == "gpt_neox":
        return GPTNeoXConfig(max_position_embeddings=32, **shared)
    if family == "llama":
        return LlamaConfig(num_key_value_heads=1, **shared)
    return Gemma2Config(num_key_value_heads=1, head_dim=8, sliding_window=4, **shared)


def save_tiny_model(
    folder: Path, family: str = "gemma2", *, layers: int = 3, seed: int = 0, special: dict[str, str] = SPECIAL
) -> ModelConfig:
    """Save an untrained model and a word tokenizer of 40 entries; the configuration reads block 1."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(configuration(family, layers)).save_pretrained(folder)
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(4, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return ModelConfig(name=str(folder), layer=1, dtype="float32", device="cpu")


def random_tokens(contexts: int, positions: int, seed: int = 0, eos_rate: float = 0.1) -> np.ndarray:
    """Contexts that open with BOS and have EOS here and there, as packed documents do: int32."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4, VOCABULARY, (contexts, positions), dtype=np.int32)
    tokens[generator.random(tokens.shape) < eos_rate] = EOS
    tokens[:, 0] = BOS
    return tokens
