"""Stability of an SAE: across the contexts of absorption's words (does the latent of a word's letter fire wherever the
word stands?), and along the tokens of the held-out text."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register
from sae_lib.metrics.stability.reference import StabilityConfig, StabilityReference, build_stability_reference
from sae_lib.metrics.stability.tokens import token_stability
from sae_lib.metrics.stored_reference import require_width

RANDOM_LATENTS = 5

_ROWS = 2048


class Firing(NamedTuple):
    """In how many of a word's contexts each of these fires, for the words of letters that have a latent."""

    contexts: Float[Tensor, " word"]
    """In how many contexts the word was read."""
    probe: Float[Tensor, " word"]
    """The ground-truth probe of the letter."""
    first: Float[Tensor, " word"]
    """The letter's first main latent."""
    any: Float[Tensor, " word"]
    """Any of the letter's main latents."""
    random: Float[Tensor, "word control"]
    """Latents that fire as often over all rows, and are no letter's."""


@torch.no_grad()
def context_stability(
    sae: Autoencoder, reference: StabilityReference, main_latents: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """How often a word's letter latent fires over the contexts of that word.

    Of a word in C contexts of which its letter's first main latent fires in k, in fresh prompts:

    - context_firing = mean over words of k / C.
    - context_firing_any: the same for any of the letter's main latents.
    - context_every = share of words with k = C; context_all_or_none = share with k = C or k = 0.
    - context_repeat = sum k (k - 1) / sum k (C - 1): where the latent fires in one context of a word, the
      probability that it fires in another one. 1 where the word decides, the latent's density where chance
      does.
    - context_firing_random, context_all_or_none_random, context_repeat_random: the same of latents that fire
      on as many rows over all words and are no letter's, the nearest five in density: what a latent of that
      density gives whatever it stands for.
    - context_probe: mean over words of the share of contexts in which the ground-truth probe finds the
      letter. No latent is expected to do better.
    - context_words: the number of words.

    With `_text` added to each name, the same at the words' occurrences in running text, where the number of
    contexts differs from word to word. A language model that computes first letters only where they are asked
    for has a low context_probe_text, and nothing can be asked of a latent there.

    Without any word a number is NaN.

    `main_latents`: letter ("a" to "z") -> indices of its main latents, the first one first; letters that are missing
    are left out, with their words.

    Raises ArtifactError: the SAE does not fit the reference.
    """
    require_width(sae, reference.prompt_activations.shape[2])
    mains = {LETTERS.index(letter): [*latents] for letter, latents in main_latents.items() if len(latents)}
    words, contexts = reference.prompt_probe.shape
    in_prompts = count_firing(
        _on(sae, reference.prompt_activations.flatten(0, 1)), reference.prompt_probe.flatten(),
        torch.arange(words).repeat_interleave(contexts), reference.prompt_letters, mains,
    )  # fmt: skip
    in_text = count_firing(
        _on(sae, reference.text_activations[reference.occurrence_rows]), reference.text_probe,
        reference.occurrence_words, reference.text_letters, mains,
    )  # fmt: skip
    return {
        f"context_{name}{where}": value
        for where, firing in (("", in_prompts), ("_text", in_text))
        for name, value in _measures(firing).items()
    }


def count_firing(
    on: Bool[Tensor, "row d_sae"],
    probe: Bool[Tensor, " row"],
    word: Int[Tensor, " row"],
    letters: Int[Tensor, " word"],
    mains: Mapping[int, Sequence[int]],
) -> Firing:
    """Count over the rows of each word; the result is on the CPU.

    `on`: which latents fire at each row, on any device; `probe`: whether the ground-truth probe finds the letter of the
    row's word; `word`: which word stands at each row; `letters`: the letter of each word, 0 to 25; `mains`: letter ->
    its main latents, the first one first.
    """
    density = on.double().mean(dim=0)
    of_no_letter = torch.ones_like(density, dtype=torch.bool)
    of_no_letter[[latent for latents in mains.values() for latent in latents]] = False
    others = of_no_letter.nonzero().flatten()
    controls = min(RANDOM_LATENTS, len(others))
    fires = torch.zeros(len(on), 3 + controls, dtype=torch.float64)
    for letter, latents in mains.items():
        rows = (letters[word] == letter).nonzero().flatten()
        nearest = (density[others] - density[latents[0]]).abs().argsort(stable=True)[:controls]
        of_letter = on[rows.to(on.device)]
        any_main = of_letter[:, list(latents)].any(dim=1, keepdim=True)
        columns = torch.cat([of_letter[:, latents[:1]], any_main, of_letter[:, others[nearest]]], dim=1).cpu()
        fires[rows] = torch.cat([probe[rows, None], columns], dim=1).double()
    counted = torch.isin(letters, torch.tensor(sorted(mains), dtype=torch.long))
    times = torch.zeros(len(letters), 3 + controls, dtype=torch.float64).index_add(0, word, fires)[counted]
    contexts = torch.bincount(word, minlength=len(letters)).double()[counted]
    return Firing(contexts, times[:, 0], times[:, 1], times[:, 2], times[:, 3:])


def _on(sae: Autoencoder, rows: Float[Tensor, "row d_in"]) -> Bool[Tensor, "row d_sae"]:
    return torch.cat([sae.encode(chunk.to(sae.device, sae.dtype)) != 0 for chunk in rows.split(_ROWS)])


def _measures(firing: Firing) -> dict[str, float]:
    contexts = firing.contexts
    return {
        "firing": _mean(firing.first / contexts),
        "firing_any": _mean(firing.any / contexts),
        "firing_random": _mean(firing.random / contexts[:, None]),
        "every": _mean((firing.first == contexts).double()),
        "all_or_none": _all_or_none(firing.first, contexts),
        "all_or_none_random": _all_or_none(firing.random, contexts[:, None]),
        "repeat": _repeat(firing.first, contexts),
        "repeat_random": _repeat(firing.random, contexts[:, None]),
        "probe": _mean(firing.probe / contexts),
        "words": len(contexts),
    }


def _all_or_none(times: Float[Tensor, "*shape"], contexts: Float[Tensor, "*like"]) -> float:
    return _mean(((times == 0) | (times == contexts)).double())


def _repeat(times: Float[Tensor, "*shape"], contexts: Float[Tensor, "*like"]) -> float:
    others = (times * (contexts - 1)).sum().item()
    return (times * (times - 1)).sum().item() / others if others else math.nan


def _mean(values: Float[Tensor, "*shape"]) -> float:
    return values.mean().item() if values.numel() else math.nan


def _reference(inputs: Inputs) -> StabilityReference:
    return build_stability_reference(
        inputs.lm, inputs.reference("absorption"), inputs.settings("absorption"), inputs.settings("stability"),
        inputs.held_out, inputs.folder,
    )  # fmt: skip


def _evaluate(saes: Sequence[Autoencoder], inputs: Inputs, earlier: Sequence[Earlier]) -> list[Measured]:
    reference, measured = inputs.reference("stability"), []
    for sae, known in zip(saes, earlier, strict=True):
        # Contexts are those of the latents that absorption finds for a letter.
        summary = context_stability(sae, reference, known["absorption"]["main_latents"])
        rows, has_predecessor = (t.to(sae.device) for t in (reference.text_activations, reference.has_predecessor))
        measured.append(Measured(summary | token_stability(sae, rows, has_predecessor)))
    return measured


register(
    Score(
        name="stability",
        version=1,
        settings=StabilityConfig,
        reference=_reference,
        evaluate=_evaluate,
        needs=("absorption",),
        columns={
            "context_firing": Column("contexts, firing", "higher", 3),
            "context_probe": Column("contexts, probe", "none", 3),
            "context_words": Column("context words", "none", 0),
            "token_change": Column("tokens, change", "none", 3),
            "token_change_shuffled": Column("change, shuffled", "none", 3),
            "token_autocorrelation": Column("tokens, autocorrelation", "none", 3),
            "token_autocorrelation_shuffled": Column("autocorrelation, shuffled", "none", 3),
        },
    )
)
