"""What the model's answer goes through where it is asked for a word's first letter: the carrier test, and circuits.

Does the latent by which a word counts as absorbed carry its letter to the answer? The score of a word is a projection:
it says that the latent points along the letter's probe, not that anybody reads the letter there. In the carrier test
the latent is taken out of the residual stream at the word, and the model is asked for the first letter. A latent that
carries it lowers the letter's logit, and by more than another one that is on there.

And which latents of a word does the answer go through? With x the residual stream at the word, x_mean its mean over
words, and m the logit of the word's letter, less the mean of all letters' logits, a latent's effect is the integrated
gradient

    (f_i - f_i_mean) d_i . integral_0^1 grad m(x_mean + a (x - x_mean)) da

whose path runs between residual streams, so that the gradients are the same for every SAE. A letter's circuit of n
nodes is the n latents of the largest mean |effect| over some of its words, and is tried on others:

    faithfulness = (m(circuit) - m(nothing)) / (m(everything) - m(nothing))

where what is left out is at its mean over words; of everything but the circuit it is 0 where nothing matters outside.
Source: 2403.19647, at one layer.
"""

from collections.abc import Iterator, Sequence
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
from sae_lib.metrics.absorption.score import letters_of, score_words_of_letters
from sae_lib.metrics.registry import Inputs
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.errors import ArtifactError
from sae_lib.util.keys import Stage

SEED = 0
MOST = 200  # words of a kind in the carrier test
CARRIED = ("kind", "words", "carried", "named", "random", "direction")
FOUND_ON, TRIED_ON = 4, 2  # words of a letter, for circuits
STEPS = 5  # of the integral, by the midpoint rule
SIZES = (1, 3, 10, 30, 100)
COLUMNS, ALONE = ("faithful", "outside"), ("all_latents", "error")
CIRCUIT_REFERENCE = Stage("circuits reference", 1)


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

    def batches(self, size: int) -> Iterator[tuple[slice, "Questions", Tensor, tuple[Tensor, Tensor]]]:
        """Some words at a time: which, their questions, the residual stream, and the indices of the words in it."""
        for start in range(0, len(self.tokens), size):
            here = slice(start, start + size)
            some = self.of(here)
            at = torch.arange(len(some.tokens), device=self.lm.device)
            yield here, some, self.lm.finite_stream(some.tokens), (at, some.position)

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
        for here, some, residual, at in self.batches(batch):
            clean, margins = some.margins(residual), []
            for change in lost:
                changed = residual.clone()
                changed[at] -= change[here].to(changed)
                margins.append(clean - some.margins(changed))
            falls.append(torch.stack(margins, dim=1).cpu())
        return torch.cat(falls)

    def gradients(
        self, x: Float[Tensor, "word d_in"], start: Float[Tensor, " d_in"], batch: int
    ) -> Float[Tensor, "word d_in"]:
        """The gradient of m with respect to the residual stream at each word, mean over the way from `start` to x."""
        gradients = [x[:0]]
        for here, some, residual, at in self.batches(batch):
            way = x[here] - start
            total = torch.zeros_like(way)
            for step in range(STEPS):
                with torch.enable_grad():
                    between = (start + (step + 0.5) / STEPS * way).to(residual).requires_grad_()
                    m = some.margins(residual.index_put(at, between))
                    total += torch.autograd.grad(m.sum(), between)[0].float().cpu() / STEPS
            gradients.append(total)
        return torch.cat(gradients)


@torch.no_grad()
def carrier_test(sae: Autoencoder, inputs: Inputs) -> pd.DataFrame:
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
    lm, reference, config = inputs.lm, inputs.reference("absorption"), inputs.settings("absorption")
    questions, mains = Questions.of_scored(lm, reference, config), main_latents(sae, reference, config)
    letters, labels, x = letters_of(sae, reference, mains), reference.scored_labels, reference.scored_activations
    here = torch.isin(labels, torch.tensor([*mains], dtype=torch.long)).nonzero().flatten()
    kinds = [torch.empty(0, 2, dtype=torch.bool)]
    for words in here.split(ROWS):
        letter, f = labels[words].to(sae.device), unit_latents(sae, x[words])
        absorbed = score_words_of_letters(x[words].to(sae.device), f, letter, letters, config).full
        found = ((f >= config.silent_below) & letters.is_main[letter]).any(dim=1)
        kinds.append(torch.stack([absorbed, found], dim=1).cpu())
    generator, decoder, rows = torch.Generator().manual_seed(SEED), F.normalize(sae.W_dec.float(), dim=1), []
    for kind, of_kind in zip(("absorbed", "found"), torch.cat(kinds).T, strict=True):
        chosen = here[of_kind.nonzero().flatten()]
        chosen = chosen[torch.randperm(len(chosen), generator=generator)[:MOST]].sort().values
        letter, f = labels[chosen].to(sae.device), unit_latents(sae, x[chosen])
        main, p = letters.is_main[letter], letters.directions[letter]
        first = (f * letters.cosines[letter]).argmax(dim=1, keepdim=True)
        named = main if kind == "found" else torch.zeros_like(main).scatter(1, first, True)
        others = (f > 0) & ~main & ~named
        weight = torch.where(others, torch.rand(f.shape, generator=generator).to(f.device), -1.0)
        other = torch.zeros_like(main).scatter(1, weight.argmax(dim=1, keepdim=True), True) & others
        on_probe = (x[chosen].to(f.device) * p).sum(dim=1, keepdim=True)
        lost = {"named": (f * named) @ decoder, "random": (f * other) @ decoder, "direction": on_probe * p}
        falls = questions.of(chosen.to(lm.device)).falls([*lost.values()], config.lm_batch)
        carried = ((falls[:, 0] > falls[:, 1]) & (falls[:, 0] > 0)).double().mean()
        means = dict(zip(lost, falls.double().mean(dim=0).tolist(), strict=True))
        rows.append({"kind": kind, "words": len(chosen), "carried": float(carried)} | means)
    return pd.DataFrame(rows, columns=[*CARRIED])


@dataclass(frozen=True)
class CircuitReference:
    """What circuits of every SAE are found by. Words are numbered as `scored_activations` of absorption's reference."""

    found_on: Int[Tensor, " word"]
    """Words by which a letter's circuit is found, `FOUND_ON` of each letter one after the other."""
    tried_on: Int[Tensor, " other_word"]
    """Words on which it is tried, `TRIED_ON` of each letter in the same order."""
    gradient: Float[Tensor, "word d_in"]
    """Mean of grad m on the way to the words `found_on` from their mean."""


def build_circuit_reference(inputs: Inputs) -> CircuitReference:
    """Compute it, or read it from disk: with the letters that the probe finds and that have enough words. Raises
    ArtifactError: two letters' answers begin with the same token."""
    lm, reference, config = inputs.lm, inputs.reference("absorption"), inputs.settings("absorption")

    def compute() -> CircuitReference:
        labels = reference.scored_labels
        of_letter = [(labels == letter).nonzero().flatten() for letter in reference.counted(config.min_probe_f1)]
        enough = [rows for rows in of_letter if len(rows) >= FOUND_ON + TRIED_ON]
        none = labels.new_empty(0)
        found_on = torch.cat([none, *(rows[:FOUND_ON] for rows in enough)])
        tried_on = torch.cat([none, *(rows[FOUND_ON : FOUND_ON + TRIED_ON] for rows in enough)])
        questions = Questions.of_scored(lm, reference, config).of(found_on.to(lm.device))
        x = reference.scored_activations[found_on]
        return CircuitReference(found_on, tried_on, questions.gradients(x, x.mean(dim=0), config.lm_batch))

    made_from = {"lm": lm.identity, "config": config.model_dump(), "words": [FOUND_ON, TRIED_ON], "steps": STEPS}
    return kept_reference(inputs.folder, CIRCUIT_REFERENCE, made_from, CircuitReference, compute)


@torch.no_grad()
def letter_circuits(sae: Autoencoder, inputs: Inputs) -> pd.DataFrame:
    """One row for each n of `SIZES`, over words of all letters; none where no letter has enough words.

    Columns: n; faithful, of n latents alone; outside, of everything but those latents; all_latents and error, of every
    latent alone and of the SAE's error alone; whole, m(everything) - m(nothing), in logits; letters, words. Each share
    is the mean over words of its numerator, by that of its denominator, `whole`: where that is small, the letter is not
    read from this place, and a share means little.
    """
    lm, reference, config = inputs.lm, inputs.reference("absorption"), inputs.settings("absorption")
    circuits = build_circuit_reference(inputs)
    found_on, tried_on = circuits.found_on, circuits.tried_on
    if not len(found_on):
        return pd.DataFrame(columns=["n", *COLUMNS, *ALONE, "whole", "letters", "words"])
    x, letters = reference.scored_activations, len(found_on) // FOUND_ON
    rows = F.normalize(sae.W_dec.float(), dim=1).cpu()
    f = unit_latents(sae, x[found_on]).cpu()
    mean, mean_f = x[found_on].mean(dim=0), f.mean(dim=0)
    effects = ((f - mean_f) * (circuits.gradient @ rows.T)).view(letters, FOUND_ON, -1).mean(dim=1).abs()
    strongest = effects.argsort(dim=1, descending=True).repeat_interleave(TRIED_ON, dim=0)  # [word, d_sae]

    away = unit_latents(sae, x[tried_on]).cpu() - mean_f
    whole = x[tried_on] - mean
    kept = {"nothing": torch.zeros_like(whole), "all_latents": away @ rows, "error": whole - away @ rows}
    for n in SIZES:
        inside = (torch.zeros_like(away).scatter(1, strongest[:, :n], 1.0) * away) @ rows
        kept |= {f"faithful {n}": inside, f"outside {n}": whole - inside}
    questions = Questions.of_scored(lm, reference, config).of(tried_on.to(lm.device))
    falls = questions.falls([whole - each for each in kept.values()], config.lm_batch).mean(dim=0)
    share = dict(zip(kept, ((falls[0] - falls) / falls[0]).tolist(), strict=True))
    common = {name: share[name] for name in ALONE}
    common |= {"whole": float(falls[0]), "letters": letters, "words": len(tried_on)}
    return pd.DataFrame([{"n": n} | {name: share[f"{name} {n}"] for name in COLUMNS} | common for n in SIZES])
