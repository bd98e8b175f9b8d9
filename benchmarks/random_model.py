"""Gemma-2 with random weights: what a step or a forward pass costs does not depend on what the weights know.

The tokenizer is the packaged one; texts are random words of its vocabulary, drawn from Zipf's law as words are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import ModelConfig
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.util.files import atomic_folder, atomic_write

# google/gemma-2-2b, as its config.json publishes it.
GEMMA_2_2B: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256_000,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_random_gemma(
    folder: Path, sizes: Mapping[str, Any], *, dtype: str = "bfloat16", device: str = "cpu", seed: int = 0
) -> Path:
    """A model folder with random weights of these sizes (fields of `Gemma2Config`) and the packaged tokenizer.

    A folder that is there is taken as it is. Returns the folder.
    """
    from transformers import AutoModelForCausalLM, Gemma2Config
    from transformers.utils import logging

    if (folder / "config.json").is_file():
        return folder
    tokenizer = json.loads((POCKET_FOLDER / "config.json").read_text(encoding="utf-8"))
    special = {name: tokenizer[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Gemma2Config(**{**sizes, **special}), dtype=getattr(torch, dtype))
    with atomic_folder(folder) as building:
        model.save_pretrained(building)
        for name in TOKENIZER_FILES:
            shutil.copyfile(POCKET_FOLDER / name, building / name)
    return folder


def gemma_sizes(width: int) -> dict[str, Any]:
    """Gemma-2-2b's sizes, its widths divided by 2304 / `width`, depth and heads as they are; a narrower model has the
    packaged vocabulary."""
    part = width / GEMMA_2_2B["hidden_size"]
    if part == 1.0:
        return dict(GEMMA_2_2B)
    divided = {name: max(8, round(GEMMA_2_2B[name] * part / 8) * 8) for name in ("intermediate_size", "head_dim")}
    return GEMMA_2_2B | divided | {
        "hidden_size": width, "vocab_size": packaged_vocabulary(), "query_pre_attn_scalar": divided["head_dim"],
    }  # fmt: skip


def packaged_vocabulary() -> int:
    """Entries of the packaged tokenizer."""
    return int(json.loads((POCKET_FOLDER / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def random_tokens(contexts: int, positions: int, lm: LanguageModel, seed: int = 0) -> NDArray[np.int32]:
    """Contexts that open with BOS, then ids of the packaged vocabulary by Zipf's law: int32 `[context, position]`."""
    ids = np.array([i for i in range(packaged_vocabulary()) if i not in lm.special_ids], dtype=np.int32)
    generator = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, len(ids) + 1)
    tokens = generator.permutation(ids)[generator.choice(len(ids), size=(contexts, positions), p=share / share.sum())]
    tokens[:, 0] = lm.bos_token_id
    return tokens


def random_store(folder: Path, d_in: int, rows: int, device: str = "cpu") -> ActivationStore:
    """The residual stream of a one-block Gemma-2 of width `d_in` over random tokens, `rows` rows in memory."""
    heads = max(1, d_in // 64)
    sizes = {
        "hidden_size": d_in, "intermediate_size": 2 * d_in, "num_hidden_layers": 1, "num_attention_heads": heads,
        "num_key_value_heads": heads, "head_dim": d_in // heads, "vocab_size": packaged_vocabulary(),
    }  # fmt: skip
    model = save_random_gemma(folder / "model", sizes, dtype="float32", device=device)
    lm = LanguageModel.load(ModelConfig(name=str(model), layer=0, dtype="float32", device=device), whole=False)
    tokens = random_tokens(-(-rows // 127), 128, lm)
    store = harvest(lm, tokens, folder / "store", max_rows=rows)
    store.preload(device)
    return store


def write_documents(file: Path, tokens: int, tokenizer: Any, seed: int = 0, length: int = 400) -> Path:
    """A .jsonl file of documents of random words, `tokens` words in all; a file that is there is taken as it is."""
    if file.is_file():
        return file
    words = [tokenizer.decode([i]).strip() for i in range(packaged_vocabulary())]
    words = sorted({word for word in words if len(word) > 2 and word.isascii() and word.isalpha()})
    generator = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, len(words) + 1)
    order = generator.permutation(len(words))
    with atomic_write(file) as stream:
        for _ in range(-(-tokens // length)):
            drawn = order[generator.choice(len(words), size=length, p=share / share.sum())]
            stream.write(json.dumps({"text": " ".join(words[i] for i in drawn)}) + "\n")
    return file
