"""What the pocket language model can do, measured, and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from sae_lib.data.documentation import versions
from sae_lib.data.spelling import IGNORED, LETTERS, SpellingLines
from sae_lib.metrics.absorption.probes import f1_score, initial_probes, train_probes
from sae_lib.profiles.profile import load_profile
from sae_lib.util.files import atomic_write, write_json

WORDS_PER_WINDOW = 11  # the evaluation's prompt: ten examples and the word
USABLE_F1 = 0.8


def ngram_losses(train: NDArray[np.int32], held_out: NDArray[np.int32], vocabulary: int) -> dict[str, float]:
    """Cross-entropy (nats a token) of a unigram and a bigram model of the training text on the held-out text.

    The bigram model is interpolated with the unigram model (weight n / (n + 5) for a first token seen n times), and the
    unigram model with the uniform distribution (one count each).
    """
    unigram = (np.bincount(train[:, 1:].ravel(), minlength=vocabulary) + 1.0).astype(np.float64)
    unigram /= unigram.sum()
    code = train[:, :-1].astype(np.int64) * vocabulary + train[:, 1:]
    pairs, counts = np.unique(code, return_counts=True)
    firsts = np.bincount(train[:, :-1].ravel(), minlength=vocabulary).astype(np.float64)
    first, second = held_out[:, :-1].astype(np.int64).ravel(), held_out[:, 1:].ravel()
    wanted = first * vocabulary + second
    place = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, counts[place], 0)
    share = firsts[first] / (firsts[first] + 5.0)
    bigram = share * seen / np.maximum(firsts[first], 1.0) + (1.0 - share) * unigram[second]
    return {"unigram_loss": float(-np.log(unigram[second]).mean()), "bigram_loss": float(-np.log(bigram).mean())}


@torch.no_grad()
def held_out_loss(model: Any, held_out: NDArray[np.int32], batch: int = 32) -> float:
    """Cross-entropy of the model, nats a token."""
    total, n = 0.0, 0
    for start in range(0, len(held_out), batch):
        tokens = torch.from_numpy(held_out[start : start + batch].astype(np.int64))
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        total += float(cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"))
        n += tokens[:, 1:].numel()
    return total / n


@torch.no_grad()
def spelling(
    model: Any, lines: SpellingLines, windows: int = 400
) -> tuple[float, NDArray[np.int64], list[torch.Tensor]]:
    """Accuracy of the first letter in the prompt's form, and the residual stream after each block at the words.

    Only lines after the tenth of each window count: before that the prompt is not yet clear.
    """
    line = len(lines.ask) + 3
    length = 2 + line * WORDS_PER_WINDOW
    tokens, labels = lines.windows(np.random.default_rng(99), windows, length, dense=False)
    hits, total = 0, 0
    words: list[NDArray[np.int64]] = []
    layers: list[list[torch.Tensor]] = []
    at = 2 + line * np.arange(WORDS_PER_WINDOW)
    for start in range(0, windows, 32):
        batch, wanted = torch.from_numpy(tokens[start : start + 32]), torch.from_numpy(labels[start : start + 32])
        output = model(input_ids=batch, use_cache=False, output_hidden_states=True)
        last = wanted[:, 1:].clone()
        last[:, : length - 1 - line] = IGNORED
        hits += int((output.logits[:, :-1].argmax(-1) == last)[last != IGNORED].sum())
        total += int((last != IGNORED).sum())
        words.append(tokens[start : start + 32][:, at].ravel())
        # The last entry of hidden_states has passed the final norm; the blocks' own outputs are all before it.
        layers.append([h[:, at].flatten(0, 1).float() for h in output.hidden_states[1:-1]])
    stacked = [torch.cat([chunk[i] for chunk in layers]) for i in range(len(layers[0]))]
    return hits / total, np.concatenate(words), stacked


def probe_f1(rows: torch.Tensor, words: NDArray[np.int64], letters: NDArray[np.int64]) -> tuple[float, int]:
    """Macro F1 of a linear first-letter probe on words that it was not trained on; letters with F1 >= 0.8."""
    distinct = np.unique(words)
    held = np.isin(words, np.random.default_rng(0).permutation(distinct)[: len(distinct) // 5])
    labels = torch.from_numpy(letters)
    train, test = torch.from_numpy(~held).nonzero().squeeze(1), torch.from_numpy(held).nonzero().squeeze(1)
    inputs, targets = rows[train], labels[train]
    probes = train_probes(
        lambda index: inputs[index], targets, initial_probes(rows.shape[1], len(LETTERS), 0), epochs=30, batch=64,
        learning_rate=0.01, final_learning_rate=1e-5, weight_decay=1e-4, seed=0,
    )  # fmt: skip
    positive = probes.logits(rows[test]) > 0
    scores = [
        f1_score(positive[:, i], labels[test] == i) for i in range(len(LETTERS)) if bool((labels[test] == i).any())
    ]
    return float(np.mean(scores)), sum(score >= USABLE_F1 for score in scores)


def measure(
    folder: Path, train: NDArray[np.int32], held_out: NDArray[np.int32], lines: SpellingLines
) -> dict[str, Any]:
    """Everything on the card, from the saved (bf16) weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    accuracy, words, layers = spelling(model, lines)
    letter_of = {int(word): int(answer) for word, answer in zip(lines.words, lines.answers, strict=True)}
    distinct = {answer: i for i, answer in enumerate(dict.fromkeys(lines.letters))}
    letters = np.array([distinct[letter_of[int(word)]] for word in words])
    probes = [probe_f1(rows, words, letters) for rows in layers]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_loss": held_out_loss(model, held_out),
        **ngram_losses(train, held_out, model.config.vocab_size),
        "spelling_accuracy": accuracy,
        "alphabetic_tokens": len(lines.words),
        "probe_macro_f1": {layer: round(f1, 4) for layer, (f1, _) in enumerate(probes)},
        "probe_usable_letters": {layer: n for layer, (_, n) in enumerate(probes)},
    }


CARD = """# Pocket Gemma-2

A {parameters:,}-parameter `Gemma2ForCausalLM` ({layers} blocks, d_model {d_model}, byte-level BPE vocabulary of
{vocabulary:,}), trained by this project to be read by sparse autoencoders on a laptop. It is a model organism: it has
seen documentation of Python packages and spelling lessons, and is good for nothing else.

Made by `make pocket-lm` ({minutes:.0f} minutes on {device}); weights in bf16.

## Data

- The documentation strings of {packages} (train split: {tokens:,} tokens,
  hash `{text_hash}`).
- Spelling lessons on all {alphabetic_tokens:,} alphabetic tokens: {spelling:.0%} of the windows, as dense lines
  (`word: W`) and in the evaluation's own form (`word has the first letter: W`). {steps:,} steps of {windows} windows of
  {context_length} tokens, then {finishing_steps:,} steps in which each line has one of three forms at random, the third
  asking at once (`word W`). Before those last steps the model spelled as well, but kept the letter out of the
  word's own residual stream.

## Measured on the saved weights

| | |
|---|---|
| held-out text, cross-entropy (nats a token, lower is better) | {held_out_loss:.3f} |
| the same, bigram model | {bigram_loss:.3f} |
| the same, unigram model | {unigram_loss:.3f} |
| first letter right after ten examples (higher is better) | {spelling_accuracy:.1%} |

Linear first-letter probe on the residual stream at the word, on words the probe was not trained on:

| after block | macro F1 (higher is better) | letters with F1 >= 0.8 |
|---|---|---|
{probe_rows}
"""


def write_card(
    folder: Path, recipe: dict[str, Any], measured: dict[str, Any], seconds: float, text_hash: str, tokens: int
) -> None:
    """Write README.md (the model card) and card.json (its numbers) beside the weights."""
    rows = "\n".join(
        f"| {layer} | {f1:.3f} | {measured['probe_usable_letters'][layer]} |"
        for layer, f1 in measured["probe_macro_f1"].items()
    )
    packages = ", ".join(
        f"{name} {version}" for name, version in versions(load_profile("pocket").corpus.packages).items()
    )
    device = "one GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    text = CARD.format(
        **recipe, **measured, minutes=seconds / 60, device=device, probe_rows=rows, packages=packages,
        text_hash=text_hash[:16], tokens=tokens,
    )  # fmt: skip
    with atomic_write(folder / "README.md") as file:
        file.write(text)
    write_json(
        folder / "card.json",
        {"recipe": recipe, "measured": measured, "seconds": seconds, "text_hash": text_hash, "tokens": tokens},
    )
