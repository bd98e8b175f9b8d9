"""Train the pocket language model: a small Gemma-2 that can spell, for experiments without a download.

`make pocket-lm` trains the tokenizer and the model on the documentation
corpus, with a part of the windows teaching first letters (`spelling.py`), and writes weights, tokenizer and model card.
It is a model organism, not a language model to use: it exists so that first-letter features are there to be absorbed.
Interrupted, it goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae_lib.data.corpus import documents_of, load_documents
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.spelling import ASK, IGNORED, LETTERS, SpellingLines
from sae_lib.data.tokens import pack
from sae_lib.profiles.profile import load_profile
from sae_lib.study.pocket_lm_card import measure, write_card
from sae_lib.util.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import json_key, make_folder
from sae_lib.util.paths import output_folder, output_root

PACKAGED = POCKET_FOLDER


@dataclass(frozen=True)
class Recipe:
    """Everything that defines the pocket model apart from its text."""

    vocabulary: int = 8192
    d_model: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    d_mlp: int = 512
    context_length: int = 128
    steps: int = 1600
    finishing_steps: int = 500  # after those, at half the learning rate, with spelling lines of mixed forms
    windows: int = 64  # a step
    learning_rate: float = 3e-3
    warmup_steps: int = 80
    weight_decay: float = 0.05
    spelling: float = 0.5  # share of the windows that teach spelling
    dense_early: float = 0.8  # share of those windows in the dense form, in the first third of the steps
    dense_late: float = 0.6  # and afterwards
    seed: int = 0
    checkpoint_every: int = 100


def train_tokenizer(texts: Iterator[str], recipe: Recipe) -> Any:
    """A byte-level BPE tokenizer whose prompt words and letters are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Digits are split so that the vocabulary is spent on words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lessons = [f"a{ASK} {letter}" for letter in LETTERS] * 400  # the prompt's words and the letters must be whole

    def all_texts() -> Iterator[str]:
        yield from texts
        yield from lessons

    tokenizer.train_from_iterator(all_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="right"
    )


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A freshly initialised `Gemma2ForCausalLM` of the recipe's size."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Gemma2Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.d_model // recipe.heads,
        query_pre_attn_scalar=recipe.d_model // recipe.heads,
        max_position_embeddings=2 * recipe.context_length,
        sliding_window=recipe.context_length,
        # Soft-capping keeps bf16 training of billions of parameters stable; here it would only cost speed.
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Gemma2ForCausalLM(config)


def token_losses(
    model: Any, tokens: Int[Tensor, "window position"], labels: Int[Tensor, "window position"]
) -> Float[Tensor, " predicted"]:
    """Cross-entropy (nats) of each labelled position; the head runs on those positions only."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[wanted]).float(), targets[wanted], reduction="none")


def batch_at(
    step: int, recipe: Recipe, contexts: NDArray[np.int32], spelling: SpellingLines
) -> tuple[Int[Tensor, "window position"], Int[Tensor, "window position"]]:
    """The windows of one step: a function of the step alone, so that a resumed run sees the same ones."""
    rng = np.random.default_rng((recipe.seed, step))
    early = step < recipe.steps / 3
    n_spelling = round(recipe.windows * recipe.spelling)
    n_dense = round(n_spelling * (recipe.dense_early if early else recipe.dense_late))
    n_text = recipe.windows - n_spelling
    order = np.random.default_rng((recipe.seed, step * n_text // len(contexts))).permutation(len(contexts))
    text = contexts[order[np.arange(step * n_text, (step + 1) * n_text) % len(contexts)]].astype(np.int64)
    length = recipe.context_length
    if step >= recipe.steps:
        mixed_tokens, mixed_labels = spelling.mixed_windows(rng, n_spelling, length)
        tokens, labels = np.concatenate([text, mixed_tokens]), np.concatenate([text, mixed_labels])
        return torch.from_numpy(tokens), torch.from_numpy(labels)
    dense_tokens, dense_labels = spelling.windows(rng, n_dense, length, dense=True)
    prompt_tokens, prompt_labels = spelling.windows(rng, n_spelling - n_dense, length, dense=False)
    tokens = np.concatenate([text, dense_tokens, prompt_tokens])
    labels = np.concatenate([text, dense_labels, prompt_labels])
    return torch.from_numpy(tokens), torch.from_numpy(labels)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to a tenth; the finishing steps do the same at half the height."""
    if step >= recipe.steps:
        finishing = replace(recipe, steps=recipe.finishing_steps, learning_rate=recipe.learning_rate / 2)
        return learning_rate(step - recipe.steps, finishing) if step - recipe.steps < recipe.finishing_steps else 0.0
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(
    model: Any, recipe: Recipe, contexts: NDArray[np.int32], spelling: SpellingLines, folder: Path, text_hash: str
) -> float:
    """Train in place, from the last checkpoint of this recipe and text in `folder`. Returns seconds spent."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    parameters = dict(model.named_parameters())  # tied weights appear once
    checkpoint = folder / "checkpoint.safetensors"
    key = json_key([asdict(recipe), text_hash])
    first, spent = 0, 0.0
    if checkpoint.is_file():
        tensors, state = load_checkpoint(checkpoint, device)
        if state["key"] == key:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(tensors[f"model.{name}"])
            load_optimizer_tensors(optimizer, tensors)
            first, spent = state["step"], state["seconds"]
            print(f"resumed at step {first}", flush=True)
    started = time.monotonic()
    total = recipe.steps + recipe.finishing_steps
    for step in range(first, total):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        tokens, labels = (t.to(device) for t in batch_at(step, recipe, contexts, spelling))
        with autocast:
            loss = token_losses(model, tokens, labels).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = spent + time.monotonic() - started
        if (step + 1) % 20 == 0:
            rate = (step + 1 - first) * tokens.numel() / (time.monotonic() - started)
            left = (total - step - 1) * tokens.numel() / rate / 60
            print(
                f"step {step + 1}/{total} loss {loss.item():.3f} {rate:,.0f} tokens/s, {left:.0f} min left",
                flush=True,
            )
            if not math.isfinite(loss.item()):
                raise ArtifactError(f"the loss is {loss.item()} at step {step + 1}; lower learning_rate in Recipe")
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == total:
            tensors = {f"model.{name}": p for name, p in parameters.items()} | optimizer_tensors(optimizer)
            save_checkpoint(checkpoint, tensors, {"key": key, "step": step + 1, "seconds": seconds})
    model.to("cpu").eval()
    return spent + time.monotonic() - started


def make_pocket_lm(output: Path | None = None, work: Path | None = None) -> None:
    """Train, measure, and write the packaged model.

    Args:
        output: where the finished model goes; by default into the package.
        work: checkpoints and cached text; by default `build/pocket-lm`.
    """
    folder = output_root() / "pocket-lm" if work is None else output_folder(work, "work")
    output = PACKAGED if output is None else output_folder(output, "output")
    make_folder(folder)
    make_folder(output)  # before the work for it
    recipe = Recipe()
    corpus = load_profile("pocket").corpus
    rows = list(load_documents(corpus, folder))
    train_texts = list(documents_of("train", rows, corpus))
    print(f"{len(train_texts):,} documents, {sum(map(len, train_texts)) / 1e6:.1f} MB to train on", flush=True)
    tokenizer = train_tokenizer(iter(train_texts), recipe)
    contexts = pack(train_texts, tokenizer, recipe.context_length)
    held_out = pack(documents_of("held_out", rows, corpus), tokenizer, recipe.context_length)
    text_hash = json_key([contexts.sum(axis=1).tolist(), list(contexts.shape)])
    spelling = SpellingLines(tokenizer)
    print(f"{contexts.size / 1e6:.1f} M tokens, {len(spelling.words):,} alphabetic tokens", flush=True)
    model = build_model(recipe, tokenizer)
    seconds = train(model, recipe, contexts, spelling, folder, text_hash)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    measured = measure(output, contexts, held_out, spelling)
    write_card(output, asdict(recipe), measured, seconds, text_hash, contexts.size)
