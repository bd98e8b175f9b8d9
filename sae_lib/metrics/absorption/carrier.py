"""The carrier test: does the latent by which a word counts as absorbed carry its letter to the model's answer?

The score of a word is a projection: it says that the latent points along the letter's probe, not that anybody reads
the letter there. Here the latent is taken out of the residual stream at the word, and the model is asked for the first
letter. A latent that carries it lowers the letter's logit, and by more than another one that is on there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import ROWS, main_latents, unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference, prompts_of_scored
from sae_lib.metrics.absorption.score import Letters, letters_of, score_words_of_letters
from sae_lib.util.errors import ArtifactError

SEED = 0
MOST = 200  # words of a kind
COLUMNS = ("kind", "words", "carried", "named", "random", "direction")


@dataclass(frozen=True)
class Questions:
    """The prompts in which scored words were read, which ask for their letters; all on the model's device."""

    lm: LanguageModel
    answers: Int[Tensor, " letter"]
    """The token by which each letter's answer begins."""
    tokens: Int[Tensor, "word position"]
    position: Int[Tensor, " word"]
    """Where the word stands."""
    asked: Int[Tensor, " word"]
    """Where the question ends."""
    labels: Int[Tensor, " word"]

    @classmethod
    def of_scored(cls, lm: LanguageModel, reference: AbsorptionReference, config: AbsorptionConfig) -> "Questions":
        """Raises ArtifactError: two letters' answers begin with the same token."""
        (tokens, position), pieces = prompts_of_scored(lm, reference, config)
        answers = torch.tensor([answer[0] for answer in pieces.answers])
        if len(answers.unique()) < len(answers):
            raise ArtifactError("spelling: two letters' answers begin with the same token of this tokenizer")
        asked = position + len(pieces.question)
        return cls(lm, *(t.to(lm.device) for t in (answers, tokens, position, asked, reference.scored_labels)))

    def of(self, words: Int[Tensor, " some"] | slice) -> "Questions":
        """Those of some words."""
        each = ("tokens", "position", "asked", "labels")
        return replace(self, **{name: getattr(self, name)[words] for name in each})

    def margins(self, residual: Float[Tensor, "word position d_in"]) -> Float[Tensor, " word"]:
        """The logit of each word's letter, less the mean of all letters', in the answer with this residual stream."""
        at = torch.arange(len(self.tokens), device=self.lm.device)
        if self.lm.can_resume(self.tokens):
            logits = self.lm.head(self.lm.resume(residual)[at, self.asked]).float()
        else:
            logits = self.lm.logits(self.tokens, lambda _: residual)[at, self.asked].float()
        of_letters = logits[:, self.answers]
        return of_letters.gather(1, self.labels[:, None])[:, 0] - of_letters.mean(dim=1)

    def falls(self, lost: Sequence[Float[Tensor, "word d_in"]], batch: int) -> Float[Tensor, "word lost"]:
        """How much `margins` fall where the residual stream at the word loses each of `lost`; on the CPU."""
        falls = [torch.empty(0, len(lost))]
        for start in range(0, len(self.tokens), batch):
            here = slice(start, start + batch)
            some = self.of(here)
            residual, at = self.lm.finite_stream(some.tokens), torch.arange(len(some.tokens), device=self.lm.device)
            clean, margins = some.margins(residual), []
            for change in lost:
                changed = residual.clone()
                changed[at, some.position] -= change[here].to(changed)
                margins.append(clean - some.margins(changed))
            falls.append(torch.stack(margins, dim=1).cpu())
        return torch.cat(falls)


@torch.no_grad()
def carrier_test(
    sae: Autoencoder, lm: LanguageModel, reference: AbsorptionReference, config: AbsorptionConfig
) -> pd.DataFrame:
    """A row for words that are 'absorbed' (by the score *full*) and one for those 'found', whose main latents fire: at
    most `MOST` of each, drawn evenly. Columns, NaN without words, are means over words of how much the logit of the
    letter falls, less the mean of all letters', where the residual stream x at the word loses

    - named: f_j d_j of the latent by which the word counts as absorbed; of a found word, those of its main latents
    - random: f_r d_r of another latent r that is on, no main latent; drawn per word, as large as it is
    - direction: (x . p) p, all that the probe reads; a latent may carry more, beside it

    and carried: the share of words in which 'named' costs more than 'random', and more than nothing; two latents that
    carry nothing give at most 0.5.

    Raises ArtifactError: two letters' answers begin with the same token.
    """
    questions, mains = Questions.of_scored(lm, reference, config), main_latents(sae, reference, config)
    letters, labels, x = letters_of(sae, reference, mains), reference.scored_labels, reference.scored_activations
    here = torch.isin(labels, torch.tensor([*mains], dtype=torch.long)).nonzero().flatten()
    kinds = [torch.empty(0, 2, dtype=torch.bool)]
    for words in here.split(ROWS):
        letter, f = labels[words].to(sae.device), unit_latents(sae, x[words])
        absorbed = score_words_of_letters(x[words].to(sae.device), f, letter, letters, config).full
        found = ((f >= config.silent_below) & letters.is_main[letter]).any(dim=1)
        kinds.append(torch.stack([absorbed, found], dim=1).cpu())
    generator, rows = torch.Generator().manual_seed(SEED), []
    for kind, of_kind in zip(("absorbed", "found"), torch.cat(kinds).T, strict=True):
        chosen = here[of_kind.nonzero().flatten()]
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:MOST]].sort().values
        lost = _parts(sae, x[chosen], labels[chosen].to(sae.device), letters, kind == "found", generator)
        falls = questions.of(chosen.to(lm.device)).falls([*lost.values()], config.lm_batch)
        carried = ((falls[:, 0] > falls[:, 1]) & (falls[:, 0] > 0)).double().mean()
        means = dict(zip(lost, falls.double().mean(dim=0).tolist(), strict=True))
        rows.append({"kind": kind, "words": len(chosen), "carried": float(carried)} | means)
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _parts(
    sae: Autoencoder,
    x: Float[Tensor, "word d_in"],
    labels: Int[Tensor, " word"],
    letters: Letters,
    found: bool,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, "word d_in"]]:
    """What the residual stream loses."""
    f, rows = unit_latents(sae, x), F.normalize(sae.W_dec.float(), dim=1)
    main, p = letters.is_main[labels], letters.directions[labels]
    first = (f * letters.cosines[labels]).argmax(dim=1, keepdim=True)
    named = main if found else torch.zeros_like(main).scatter(1, first, True)
    others = (f > 0) & ~main & ~named
    weight = torch.where(others, torch.rand(f.shape, generator=generator).to(f.device), -1.0)
    other = torch.zeros_like(main).scatter(1, weight.argmax(dim=1, keepdim=True), True) & others
    on_probe = (x.to(f.device) * p).sum(dim=1, keepdim=True)
    return {"named": (f * named) @ rows, "random": (f * other) @ rows, "direction": on_probe * p}
