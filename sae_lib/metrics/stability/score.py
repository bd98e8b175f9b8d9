"""Stability of an SAE: across the contexts of absorption's words (does the latent of a word's letter fire wherever the
word stands?), and along the tokens of the held-out text (do activations go on from one token to the next?)."""

import math
from collections.abc import Mapping, Sequence

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


@torch.no_grad()
def context_stability(
    sae: Autoencoder, reference: StabilityReference, main_latents: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """How often a word's letter latent fires over the contexts of that word.

    Of a word in C contexts of which its letter's first main latent fires in k, in fresh prompts:

    - context_firing = mean over words of k / C; context_firing_any: the same for any of the letter's main latents.
    - context_every = share of words with k = C; context_all_or_none = share with k = C or k = 0.
    - context_repeat = sum k (k - 1) / sum k (C - 1): where the latent fires in one context of a word, the
      probability that it fires in another one. 1 where the word decides, the latent's density where chance does.
    - context_firing_random, context_all_or_none_random, context_repeat_random: the same of the five latents nearest in
      density over all rows that are no letter's: what such a density gives, whatever a latent stands for.
    - context_probe: mean over words of the share of contexts in which the ground-truth probe finds the letter. No
      latent is expected to do better.
    - context_words: the number of words. Without any the others are NaN.

    With `_text` added to each name, the same at the words' occurrences in running text. A language model that computes
    first letters only where they are asked for has a low context_probe_text: nothing can be asked of a latent there.

    `main_latents`: letter ("a" to "z") -> indices of its main latents, the first one first; letters that are missing
    are left out, with their words.

    Raises ArtifactError: the SAE does not fit the reference.
    """
    require_width(sae, reference.prompt_activations.shape[2])
    mains = {LETTERS.index(letter): [*latents] for letter, latents in main_latents.items() if len(latents)}
    words, contexts = reference.prompt_probe.shape
    places = {
        "": (reference.prompt_activations.flatten(0, 1), reference.prompt_probe.flatten(),
             torch.arange(words).repeat_interleave(contexts), reference.prompt_letters),
        "_text": (reference.text_activations[reference.occurrence_rows], reference.text_probe,
                  reference.occurrence_words, reference.text_letters),
    }  # fmt: skip
    found: dict[str, float] = {}
    for where, (rows, probe, word, letters) in places.items():
        on = torch.cat([sae.encode(chunk.to(sae.device, sae.dtype)) != 0 for chunk in rows.split(_ROWS)])
        measures = _measures(*count_firing(on, probe, word, letters, mains))
        found |= {f"context_{name}{where}": value for name, value in measures.items()}
    return found


def count_firing(
    on: Bool[Tensor, "row d_sae"],
    probe: Bool[Tensor, " row"],
    word: Int[Tensor, " row"],
    letters: Int[Tensor, " word"],
    mains: Mapping[int, Sequence[int]],
) -> tuple[Float[Tensor, "counted firing"], Float[Tensor, " counted"]]:
    """For each word whose letter has a latent: in how many of its contexts the probe finds the letter, the first main
    latent fires, any of them fires, and each control fires; and how many contexts there are.

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
    times = torch.zeros(len(letters), 3 + controls, dtype=torch.float64).index_add(0, word, fires)
    return times[counted], torch.bincount(word, minlength=len(letters)).double()[counted]


def _measures(times: Tensor, contexts: Tensor) -> dict[str, float]:
    probe, first, any_main, random, of_each = times[:, 0], times[:, 1], times[:, 2], times[:, 3:], contexts[:, None]
    return {
        "firing": _mean(first / contexts),
        "firing_any": _mean(any_main / contexts),
        "firing_random": _mean(random / of_each),
        "every": _mean(first == contexts),
        "all_or_none": _mean((first == 0) | (first == contexts)),
        "all_or_none_random": _mean((random == 0) | (random == of_each)),
        "repeat": _repeat(first, contexts),
        "repeat_random": _repeat(random, of_each),
        "probe": _mean(probe / contexts),
        "words": len(contexts),
    }


def _repeat(times: Tensor, contexts: Tensor) -> float:
    others = (times * (contexts - 1)).sum().item()
    return (times * (times - 1)).sum().item() / others if others else math.nan


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


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

    over latents whose density is `MIN_DENSITY` or more. Both again with all rows in a random order (`_shuffled`): what
    tokens from anywhere in the text give. A latent that marks a topic or a document is steady by both, one that marks
    a word is not, and neither is the better one.

    `rows`: residual streams in token order; `has_predecessor`: whether the row before is the token before, in the same
    context; never so of the first; `seed`: orders the shuffled rows.

    Returns these four (NaN where there is no pair or no latent), token_latents, how many latents the correlations are
    over, and token_pairs. Raises ArtifactError: the SAE has another width than the rows, or gives NaN or infinite
    latents.
    """
    require_width(sae, rows.shape[1], "the rows have")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    change, r, on = _along(sae, rows, has_predecessor)
    change_shuffled, r_shuffled, _ = _along(sae, rows[order.to(rows.device)], has_predecessor)
    pairs = int(has_predecessor[1:].sum())
    frequent = on >= MIN_DENSITY * 2 * pairs
    return {
        "token_change": change,
        "token_change_shuffled": change_shuffled,
        "token_autocorrelation": r[frequent].nanmean().item(),
        "token_autocorrelation_shuffled": r_shuffled[frequent].nanmean().item(),
        "token_latents": int(r[frequent].isfinite().sum()),
        "token_pairs": pairs,
    }


def _along(
    sae: Autoencoder, rows: Float[Tensor, "row d_in"], has_predecessor: Bool[Tensor, " row"]
) -> tuple[float, Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """token_change; the correlation of each latent with itself one token later, NaN where one of the two never varies;
    and at how many ends of pairs each is on.

    `a` is the activation at the earlier token of a pair, `b` at the later one. A pair of zeros adds nothing to any sum,
    so only what is on is visited.
    """
    norms = sae.W_dec.float().norm(dim=1)
    # Of a, b, a^2, b^2, a b, and of a being on and b being on.
    sums = torch.zeros(7, sae.d_sae, dtype=torch.float64, device=sae.device)
    both, kept, magnitude = 0, 0.0, 0.0  # on at both; |a| + |b| - |b - a|; |a| + |b|

    def add(place: int, latent: Int[Tensor, " entry"], values: Float[Tensor, " entry"] | None = None) -> None:
        sums[place] += torch.bincount(latent, values, minlength=sae.d_sae)

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
    ends = sums[5:].sum(dim=0).cpu()
    on_at = int(ends.sum())
    change = (magnitude - kept) / (on_at - both) / (magnitude / on_at) if on_at else math.nan
    a, b, aa, bb, ab = sums[:5].cpu() / max(int(has_predecessor[1:].sum()), 1)
    variance_a, variance_b = aa - a * a, bb - b * b
    # What never varies has a variance of rounding size instead of 0.
    varies = (variance_a > 1e-12 * aa) & (variance_b > 1e-12 * bb)
    r = torch.where(varies, (ab - a * b) / (variance_a * variance_b).clamp(min=1e-300).sqrt(), math.nan)
    return change, r, ends


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
