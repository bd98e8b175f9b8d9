"""Stability of an SAE: across the contexts of absorption's words (does the latent of a word's letter fire wherever the
word stands?), and along the tokens of the held-out text (do activations go on from one token to the next?)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.registry import Column, Earlier, Inputs, Measured, Score, register
from sae_lib.metrics.stability.reference import StabilityConfig, StabilityReference, build_stability_reference
from sae_lib.metrics.stored_reference import require_finite, require_width

RANDOM_LATENTS = 5
MIN_DENSITY = 1e-3

_ROWS = 2048
_CHUNK_ELEMENTS = 2**22


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


class _PairSums(NamedTuple):
    """Sums over pairs of neighbouring tokens; `a` is the activation at the earlier token, `b` at the later one.

    Those per latent are of a, b, a^2, b^2, a b, and of a being on and b being on. A pair of zeros adds nothing to
    any, so only what is on is visited.
    """

    pairs: int
    both: int
    """Pairs and latents on at both tokens."""
    kept: float
    """Sum of |a| + |b| - |b - a|."""
    magnitude: float
    """Sum of |a| + |b|."""
    per_latent: Float[Tensor, "7 d_sae"]
    """In float64, on the CPU."""


@torch.no_grad()
def token_stability(
    sae: Autoencoder, rows: Float[Tensor, "row d_in"], has_predecessor: Bool[Tensor, " row"], seed: int = 0
) -> dict[str, float]:
    """How much latents change from one token to the next, and how far they are correlated.

    Over all pairs of neighbouring tokens (t - 1, t) of one context, with activations f of decoder rows of unit norm:

        token_change = mean |f_t,i - f_t-1,i| over pairs and latents i that are on at t - 1 or t
                       / mean of f_t-1,i and f_t,i where they are on

    The division takes the scale of the activations out: 0 where nothing changes, 1 where no latent stays on,
    below 2 always.

        token_autocorrelation = mean over latents of the Pearson correlation of f_t,i and f_t-1,i over pairs

    over latents whose density is `MIN_DENSITY` or more. Both again with all rows in a random order
    (`_shuffled`): what tokens from anywhere in the text give. A latent that marks a topic or a document
    is steady by both, one that marks a word is not, and neither is the better one.

    `rows`: residual streams in token order; `has_predecessor`: whether the row before is the token before, in the same
    context; never so of the first; `seed`: orders the shuffled rows.

    Returns token_change, token_change_shuffled, token_autocorrelation, token_autocorrelation_shuffled (NaN where there
    is no pair or no latent), token_latents, how many latents the correlations are over, and token_pairs.

    Raises ArtifactError: the SAE has another width than the rows, or gives NaN or infinite latents.
    """
    require_width(sae, rows.shape[1], "the rows have")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    observed = _pair_sums(sae, rows, has_predecessor)
    shuffled = _pair_sums(sae, rows[order.to(rows.device)], has_predecessor)
    frequent = observed.per_latent[5:].sum(dim=0) >= MIN_DENSITY * 2 * observed.pairs
    r, r_shuffled = (_correlation(sums)[frequent] for sums in (observed, shuffled))
    return {
        "token_change": _change(observed),
        "token_change_shuffled": _change(shuffled),
        "token_autocorrelation": r.nanmean().item(),
        "token_autocorrelation_shuffled": r_shuffled.nanmean().item(),
        "token_latents": int(r.isfinite().sum()),
        "token_pairs": observed.pairs,
    }


def _pair_sums(sae: Autoencoder, rows: Float[Tensor, "row d_in"], has_predecessor: Bool[Tensor, " row"]) -> _PairSums:
    norms = sae.W_dec.float().norm(dim=1)
    per_latent = torch.zeros(7, sae.d_sae, dtype=torch.float64, device=sae.device)
    both, kept, magnitude = 0, 0.0, 0.0

    def add(place: int, latent: Int[Tensor, " entry"], values: Float[Tensor, " entry"] | None = None) -> None:
        per_latent[place] += torch.bincount(latent, values, minlength=sae.d_sae)

    chunk = max(1, _CHUNK_ELEMENTS // sae.d_sae)
    for start in range(1, len(rows), chunk):
        # One row more in front, the predecessor of the first.
        f = sae.encode(rows[start - 1 : start + chunk].to(sae.device, sae.dtype)).float() * norms
        require_finite(f)
        later = F.pad(has_predecessor[start : start + chunk].to(sae.device), (1, 0))
        earlier = later.roll(-1)
        row, latent = f.nonzero(as_tuple=True)
        value = f[row, latent].double()
        for place, side in enumerate((earlier[row], later[row])):
            on, at = value[side], latent[side]
            add(place, at, on)
            add(2 + place, at, on * on)
            add(5 + place, at)
            magnitude += on.abs().sum().item()
        b, at = value[later[row]], latent[later[row]]
        a = f[row[later[row]] - 1, at].double()
        add(4, at, a * b)
        both += int((a != 0).sum())
        kept += (a.abs() + b.abs() - (b - a).abs()).sum().item()
    return _PairSums(int(has_predecessor[1:].sum()), both, kept, magnitude, per_latent.cpu())


def _change(sums: _PairSums) -> float:
    on = int(sums.per_latent[5:].sum())
    if not on:
        return math.nan
    return (sums.magnitude - sums.kept) / (on - sums.both) / (sums.magnitude / on)


def _correlation(sums: _PairSums) -> Float[Tensor, " d_sae"]:
    """Pearson correlation of each latent with itself one token later; NaN where one of the two never varies."""
    a, b, aa, bb, ab = sums.per_latent[:5] / max(sums.pairs, 1)
    variance_a, variance_b = aa - a * a, bb - b * b
    # What never varies has a variance of rounding size instead of 0.
    varies = (variance_a > 1e-12 * aa) & (variance_b > 1e-12 * bb)
    return torch.where(varies, (ab - a * b) / (variance_a * variance_b).clamp(min=1e-300).sqrt(), math.nan)


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
