"""Sparse feature circuits of the spelling task: which latents of a word the model's answer goes through.

With x the residual stream at the word, x_mean its mean over words, and m the logit of the word's letter, less the mean
of all letters' logits, a latent's effect is the integrated gradient

    (f_i - f_i_mean) d_i . integral_0^1 grad m(x_mean + a (x - x_mean)) da

whose path runs between residual streams, so that the gradients are the same for every SAE. A letter's circuit of n
nodes is the n latents of the largest mean |effect| over some of its words, and is tried on others:

    faithfulness = (m(circuit) - m(nothing)) / (m(everything) - m(nothing))

where what is left out is at its mean over words; of everything but the circuit it is 0 where nothing matters outside.

Source: 2403.19647, at one layer.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.carrier import Questions
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.keys import Stage

FOUND_ON, TRIED_ON = 4, 2  # words of a letter
STEPS = 5  # of the integral, by the midpoint rule
SIZES = (1, 3, 10, 30, 100)
COLUMNS, ALONE = ("faithful", "outside"), ("all_latents", "error")
CIRCUIT_REFERENCE = Stage("circuits reference", 1)


@dataclass(frozen=True)
class CircuitReference:
    """What circuits of every SAE are found by. Words are numbered as `scored_activations` of absorption's reference."""

    found_on: Int[Tensor, " word"]
    """Words by which a letter's circuit is found, `FOUND_ON` of each letter one after the other."""
    tried_on: Int[Tensor, " other_word"]
    """Words on which it is tried, `TRIED_ON` of each letter in the same order."""
    gradient: Float[Tensor, "word d_in"]
    """Mean of grad m on the way to the words `found_on` from their mean."""


def build_circuit_reference(
    lm: LanguageModel, reference: AbsorptionReference, config: AbsorptionConfig, folder: Path | str
) -> CircuitReference:
    """Compute it, or read it from `folder`: with the letters that the probe finds and that have enough words. Raises
    ArtifactError: two letters' answers begin with the same token."""

    def compute() -> CircuitReference:
        labels = reference.scored_labels
        of_letter = [(labels == letter).nonzero().flatten() for letter in reference.counted(config.min_probe_f1)]
        enough = [rows for rows in of_letter if len(rows) >= FOUND_ON + TRIED_ON]
        none = labels.new_empty(0)
        found_on = torch.cat([none, *(rows[:FOUND_ON] for rows in enough)])
        tried_on = torch.cat([none, *(rows[FOUND_ON : FOUND_ON + TRIED_ON] for rows in enough)])
        questions = Questions.of_scored(lm, reference, config).of(found_on.to(lm.device))
        x = reference.scored_activations[found_on]
        return CircuitReference(found_on, tried_on, answer_gradients(questions, x, x.mean(dim=0), config.lm_batch))

    made_from = {"lm": lm.identity, "config": config.model_dump(), "words": [FOUND_ON, TRIED_ON], "steps": STEPS}
    return kept_reference(folder, CIRCUIT_REFERENCE, made_from, CircuitReference, compute)


@torch.no_grad()
def letter_circuits(
    sae: Autoencoder,
    lm: LanguageModel,
    reference: AbsorptionReference,
    circuits: CircuitReference,
    config: AbsorptionConfig,
) -> pd.DataFrame:
    """One row for each n of `SIZES`, over words of all letters; none where no letter has enough words.

    Columns: n; faithful, of n latents alone; outside, of everything but those latents; all_latents and error, of every
    latent alone and of the SAE's error alone; whole, m(everything) - m(nothing), in logits; letters, words. Each share
    is the mean over words of its numerator, by that of its denominator, `whole`: where that is small, the letter is not
    read from this place, and a share means little.
    """
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


def answer_gradients(
    questions: Questions, x: Float[Tensor, "word d_in"], start: Float[Tensor, " d_in"], batch: int, steps: int = STEPS
) -> Float[Tensor, "word d_in"]:
    """The gradient of m with respect to the residual stream at each word, mean over the way from `start` to x."""
    gradients = [x[:0]]
    for first in range(0, len(x), batch):
        way, some = x[first : first + batch] - start, questions.of(slice(first, first + batch))
        residual, at = some.lm.finite_stream(some.tokens), torch.arange(len(way), device=some.lm.device)
        total = torch.zeros_like(way)
        for step in range(steps):
            with torch.enable_grad():
                between = (start + (step + 0.5) / steps * way).to(residual).requires_grad_()
                m = some.margins(residual.index_put((at, some.position), between))
                total += torch.autograd.grad(m.sum(), between)[0].float().cpu() / steps
        gradients.append(total)
    return torch.cat(gradients)
