"""Train the pocket language model: a small Gemma-2 that can spell, for experiments without a download.

`make pocket-lm` trains the tokenizer and the model on the documentation corpus, with a part of the windows teaching
first letters (`data.spelling`), and writes weights, tokenizer and card.json. It is a model organism, not a language
model to use: it exists so that first-letter features are there to be absorbed. Interrupted, it goes on from its last
checkpoint.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from sae_lib.data.config import ModelConfig
from sae_lib.data.corpus import documents_of, load_documents
from sae_lib.data.documentation import versions
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.spelling import ASK, IGNORED, LETTERS, SpellingLines
from sae_lib.data.tokens import pack
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import build_absorption_reference
from sae_lib.metrics.core_reference import build_core_reference
from sae_lib.profiles.profile import load_profile
from sae_lib.util.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import check_writable, json_key, make_folder, write_json
from sae_lib.util.paths import output_folder, output_root

USABLE_F1 = 0.8  # of a letter's probe


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


def train_tokenizer(texts: Iterable[str], recipe: Recipe) -> Any:
    """A byte-level BPE tokenizer whose prompt words and letters are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Digits are split so that the vocabulary is spent on words.
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    lessons = [f"a{ASK} {letter}" for letter in LETTERS] * 400  # the prompt's words and the letters must be whole
    tokenizer.train_from_iterator(chain(texts, lessons), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="right"
    )


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A freshly initialised `Gemma2ForCausalLM` of the recipe's size."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(recipe.seed)
    config = Gemma2Config(
        vocab_size=recipe.vocabulary, hidden_size=recipe.d_model, intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.d_model // recipe.heads, query_pre_attn_scalar=recipe.d_model // recipe.heads,
        max_position_embeddings=2 * recipe.context_length, sliding_window=recipe.context_length,
        # Soft-capping keeps bf16 training of billions of parameters stable; here it would only cost speed.
        attn_logit_softcapping=None, final_logit_softcapping=None, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Gemma2ForCausalLM(config)


def batch_at(
    step: int, recipe: Recipe, contexts: NDArray[np.int32], spelling: SpellingLines
) -> tuple[Int[Tensor, "window position"], Int[Tensor, "window position"]]:
    """The windows of one step: a function of the step alone, so that a resumed run sees the same ones."""
    rng = np.random.default_rng((recipe.seed, step))
    n_spelling = round(recipe.windows * recipe.spelling)
    n_text, length = recipe.windows - n_spelling, recipe.context_length
    order = np.random.default_rng((recipe.seed, step * n_text // len(contexts))).permutation(len(contexts))
    text = contexts[order[np.arange(step * n_text, (step + 1) * n_text) % len(contexts)]].astype(np.int64)
    if step >= recipe.steps:
        lessons = [spelling.mixed_windows(rng, n_spelling, length)]
    else:
        n_dense = round(n_spelling * (recipe.dense_early if step < recipe.steps / 3 else recipe.dense_late))
        sizes = {True: n_dense, False: n_spelling - n_dense}
        lessons = [spelling.windows(rng, size, length, dense=dense) for dense, size in sizes.items()]
    tokens, labels = (np.concatenate(parts) for parts in zip((text, text), *lessons, strict=True))
    return torch.from_numpy(tokens), torch.from_numpy(labels)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to a tenth; the finishing steps do the same at half the height."""
    if step >= recipe.steps:
        finishing = replace(recipe, steps=recipe.finishing_steps, learning_rate=recipe.learning_rate / 2)
        return learning_rate(step - recipe.steps, finishing)
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(
    model: Any, recipe: Recipe, contexts: NDArray[np.int32], spelling: SpellingLines, folder: Path, text_hash: str
) -> float:
    """Train in place, from the last checkpoint of this recipe and text in `folder`. Returns seconds spent."""
    model.train()
    parameters = dict(model.named_parameters())  # tied weights appear once
    decayed, others = ([p for p in parameters.values() if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    checkpoint, key = folder / "checkpoint.safetensors", json_key([asdict(recipe), text_hash])
    first, spent = 0, 0.0
    if checkpoint.is_file():
        tensors, state = load_checkpoint(checkpoint)
        if state["key"] == key:
            model.load_state_dict({name: tensors[f"model.{name}"] for name in parameters}, strict=False)
            load_optimizer_tensors(optimizer, tensors)
            first, spent = state["step"], state["seconds"]
    started, total = time.monotonic() - spent, recipe.steps + recipe.finishing_steps
    for step in (bar := tqdm(range(first, total), initial=first, total=total, desc="pocket LM", unit="step")):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        tokens, labels = batch_at(step, recipe, contexts, spelling)
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
        wanted = (labels := labels[:, 1:]) != IGNORED  # the head runs on those positions only
        loss = cross_entropy(model.lm_head(hidden[wanted]).float(), labels[wanted], reduction="none").mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            bar.set_postfix(loss=loss.item())
            if not math.isfinite(loss.item()):
                raise ArtifactError(f"the loss is {loss.item()} at step {step + 1}; lower learning_rate in Recipe")
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == total:
            tensors = {f"model.{name}": p for name, p in parameters.items()} | optimizer_tensors(optimizer)
            save_checkpoint(checkpoint, tensors, {"key": key, "step": step + 1, "seconds": time.monotonic() - started})
    return time.monotonic() - started


def measure(model: Path, layers: int, text: NDArray[np.int32], work: Path, words: int | None = None) -> dict[str, Any]:
    """What saved weights can do: the loss on `text`, held out, and how well the absorption metric's probe finds letters
    after each block but the last, on words that it was not trained on."""
    lms = [LanguageModel.load(ModelConfig(name=str(model), layer=layer), whole=True) for layer in range(layers - 1)]
    letters = {lm.layer: build_absorption_reference(lm, AbsorptionConfig(max_words=words), work).probe_f1 for lm in lms}
    return {
        "parameters": sum(p.numel() for p in lms[0].model.parameters()),
        "held_out_loss": build_core_reference(lms[0], torch.from_numpy(text)).ce_clean,
        "probe_macro_f1": {layer: round(float(np.mean(f1)), 4) for layer, f1 in letters.items()},
        "probe_usable_letters": {layer: sum(score >= USABLE_F1 for score in f1) for layer, f1 in letters.items()},
    }


def make_pocket_lm(output: Path | None = None) -> None:
    """Train, measure, and write the packaged model and its numbers, card.json; into the package by default."""
    work, recipe, corpus = output_root() / "pocket-lm", Recipe(), load_profile("pocket").corpus
    named = "" if output is None else "--output"
    output = POCKET_FOLDER if output is None else output_folder(output, "output")
    check_writable(output, named)  # before the work for it
    make_folder(output)
    rows = list(load_documents(corpus, work))
    texts = list(documents_of("train", rows, corpus))
    tokenizer = train_tokenizer(texts, recipe)
    contexts = pack(texts, tokenizer, recipe.context_length)
    held_out = pack(documents_of("held_out", rows, corpus), tokenizer, recipe.context_length)
    text_hash = json_key([contexts.sum(axis=1).tolist(), list(contexts.shape)])
    model = build_model(recipe, tokenizer)
    seconds = train(model, recipe, contexts, SpellingLines(tokenizer), work, text_hash)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    text = {"packages": versions(corpus.packages), "text_hash": text_hash, "tokens": contexts.size}
    measured = {"measured": measure(output, recipe.layers, held_out, work), "seconds": seconds}
    write_json(output / "card.json", {"recipe": asdict(recipe)} | text | measured)
