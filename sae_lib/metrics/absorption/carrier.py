"""The carrier test: does the latent by which a word counts as absorbed carry its letter to the model's answer?

The score of a word is a projection: it says that the latent points along the letter's probe, not that anybody reads
the letter there. Here the latent is taken out of the residual stream at the word, and the model is asked for the first
letter. A latent that carries it lowers the letter's logit, and by more than another one that is on there.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import PromptPieces, Prompts
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import ROWS, main_latents, unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference, prompts_of_scored
from sae_lib.metrics.absorption.score import Letters, letters_of, score_words_of_letters
from sae_lib.util.errors import ArtifactError

SEED = 0
MOST = 200  # words of a kind
COLUMNS = ("kind", "words", "carried", "named", "random", "direction")


@torch.no_grad()
def carrier_test(
    sae: Autoencoder, lm: LanguageModel, reference: AbsorptionReference, config: AbsorptionConfig
) -> pd.DataFrame:
    """One row for words of kind 'absorbed' (by the score *full*) and one for 'found', whose main latents fire: at most
    `MOST` of each, drawn evenly from all.

    named, random and direction are means over words of how much the logit of the word's letter falls, less the mean of
    all letters' logits, where the residual stream x at the word loses

    - named: f_j d_j of the latent by which the word counts as absorbed; of a found word, those of its main latents
    - random: f_r d_r of another latent r that is on, no main latent; drawn per word, as large as it is
    - direction: (x . p) p, all that the probe reads; a latent may carry more, beside it

    carried: the share of words in which 'named' costs more than 'random', and more than nothing; two latents that carry
    nothing give at most 0.5. NaN without words.

    Raises ArtifactError: two letters' answers begin with the same token.
    """
    counted = reference.counted(config.min_probe_f1)
    prompts, pieces = prompts_of_scored(lm, reference, config)
    answers = first_tokens(pieces)
    mains = main_latents(sae, reference, counted, config) if counted else []
    letters = letters_of(sae, reference, counted, mains)
    labels, x = reference.test_labels[reference.scored], reference.scored_activations
    here = torch.isin(labels, torch.tensor(counted, dtype=torch.long)).nonzero().flatten()
    kinds = _kinds(sae, x[here], labels[here], letters, config)
    generator, rows = torch.Generator().manual_seed(SEED), []
    for kind, found in kinds.items():
        chosen = here[found.nonzero().flatten()]
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:MOST]].sort().values
        lost = _parts(sae, x[chosen], labels[chosen], letters, kind, generator)
        some = Prompts(*(part[chosen] for part in prompts))
        falls = letter_falls(lm, some, pieces, answers, labels[chosen], [*lost.values()], config.lm_batch)
        named, other = falls[:, 0], falls[:, 1]
        carried = ((named > other) & (named > 0)).double().mean()
        means = dict(zip(lost, falls.double().mean(dim=0).tolist(), strict=True))
        rows.append({"kind": kind, "words": len(chosen), "carried": float(carried)} | means)
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _kinds(
    sae: Autoencoder,
    x: Float[Tensor, "word d_in"],
    labels: Int[Tensor, " word"],
    letters: Letters,
    config: AbsorptionConfig,
) -> dict[str, Tensor]:
    """Which words are absorbed, and which found by a main latent."""
    absorbed, found = [x.new_empty(0, dtype=torch.bool)], [x.new_empty(0, dtype=torch.bool)]
    for rows, letter in zip(x.to(sae.device).split(ROWS), labels.to(sae.device).split(ROWS), strict=True):
        f = unit_latents(sae, rows)
        absorbed.append(score_words_of_letters(rows, f, letter, letters, config).full.cpu())
        found.append(((f >= config.silent_below) & letters.is_main[letter]).any(dim=1).cpu())
    return {"absorbed": torch.cat(absorbed), "found": torch.cat(found)}


def _parts(
    sae: Autoencoder,
    x: Float[Tensor, "word d_in"],
    labels: Int[Tensor, " word"],
    letters: Letters,
    kind: str,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, "word d_in"]]:
    """What the residual stream loses."""
    f, labels = unit_latents(sae, x), labels.to(sae.device)
    rows = F.normalize(sae.W_dec.float(), dim=1)
    main, p = letters.is_main[labels], letters.directions[labels]
    first = (f * letters.cosines[labels]).argmax(dim=1, keepdim=True)
    named = main if kind == "found" else torch.zeros_like(main).scatter(1, first, True)
    others = (f > 0) & ~main & ~named
    weight = torch.where(others, torch.rand(f.shape, generator=generator).to(f.device), -1.0)
    other = torch.zeros_like(main).scatter(1, weight.argmax(dim=1, keepdim=True), True) & others
    on_probe = (x.to(f.device) * p).sum(dim=1, keepdim=True)
    return {"named": (f * named) @ rows, "random": (f * other) @ rows, "direction": on_probe * p}


def letter_falls(
    lm: LanguageModel,
    prompts: Prompts,
    pieces: PromptPieces,
    answers: Int[Tensor, " letter"],
    labels: Int[Tensor, " word"],
    lost: Sequence[Float[Tensor, "word d_in"]],
    batch: int,
) -> Float[Tensor, "word lost"]:
    """How much the logit of each word's letter, less the mean of all letters', falls where the residual stream at the
    word loses each of `lost`; in the model's answer to the prompt's question."""
    falls = [torch.empty(0, len(lost))]
    for start in range(0, len(labels), batch):
        here = slice(start, start + batch)
        tokens, position = (part[here].to(lm.device) for part in prompts)
        residual, at = lm.finite_stream(tokens), torch.arange(len(tokens), device=lm.device)
        logits = []
        for change in (None, *lost):
            changed = residual.clone()
            if change is not None:
                changed[at, position] -= change[here].to(changed)
            asked = position + len(pieces.question)
            logits.append(letter_scores(lm, tokens, changed, asked, answers, labels[here]))
        falls.append(torch.stack([logits[0] - changed for changed in logits[1:]], dim=1).cpu())
    return torch.cat(falls)


def first_tokens(pieces: PromptPieces) -> Int[Tensor, " letter"]:
    """The token by which each letter's answer begins. Raises ArtifactError: two letters share it."""
    answers = torch.tensor([answer[0] for answer in pieces.answers])
    if len(answers.unique()) < len(answers):
        raise ArtifactError("spelling: two letters' answers begin with the same token of this tokenizer")
    return answers


def letter_scores(
    lm: LanguageModel,
    tokens: Int[Tensor, "word position"],
    residual: Float[Tensor, "word position d_in"],
    asked: Int[Tensor, " word"],
    answers: Int[Tensor, " letter"],
    labels: Int[Tensor, " word"],
) -> Float[Tensor, " word"]:
    """The logit of each word's letter, less the mean of all letters', at one position of each row, with this residual
    stream."""
    of_letters = _answer(lm, tokens, residual, asked)[:, answers.to(lm.device)]
    return of_letters.gather(1, labels[:, None].to(lm.device))[:, 0] - of_letters.mean(dim=1)


def _answer(
    lm: LanguageModel,
    tokens: Int[Tensor, "word position"],
    residual: Float[Tensor, "word position d_in"],
    asked: Int[Tensor, " word"],
) -> Float[Tensor, "word vocab"]:
    """The logits at one position of each row, with this residual stream."""
    at = torch.arange(len(tokens), device=lm.device)
    if lm.can_resume(tokens):
        return lm.head(lm.resume(residual)[at, asked]).float()
    return lm.logits(tokens, lambda _: residual)[at, asked].float()
