"""First letters, word by word: which latent fires on a word, and which one carries its letter instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.latents import unit_latents
from sae_lib.metrics.absorption.main_latents import main_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import score_words
from sae_lib.metrics.stored_reference import require_width
from sae_lib.share.browser.directions import unit_directions

Verdict = Literal["fires", "shared", "absorbed", "missed"]
CONTRAST = 3


class Carrier(NamedTuple):
    """A latent at a word: what it adds along the probe is `activation * cosine`."""

    latent: int
    activation: float
    cosine: float
    """Of its decoder row with the probe of the letter."""

    @property
    def projection(self) -> float:
        return self.activation * self.cosine


class WordReading(NamedTuple):
    """One word through the SAE. Symbols as in `metrics.absorption.score`."""

    word: str
    on_probe: float
    """P: how strongly the letter is written in the residual stream."""
    main: list[Carrier]
    """The letter's own latents, silent ones too."""
    others: list[Carrier]
    """The strongest latents that can absorb: not the letter's own, along its probe."""
    largest: Carrier
    """The latent that adds most along the probe, whichever it is."""
    fraction: float
    full: bool

    @property
    def absorbers(self) -> list[Carrier]:
        """The latents that absorb the letter of this word; none where the metric finds no absorption."""
        found = self.others if self.fraction > 0 else []
        known = {carrier.latent for carrier in found}
        return found + ([self.largest] if self.full and self.largest.latent not in known else [])

    @property
    def own_share(self) -> float:
        """M / P: the share of the letter that its own latents write; 0 where the letter is not written at all."""
        return self._share(self.main)

    @property
    def absorbed_share(self) -> float:
        """The same of the absorbers."""
        return self._share(self.absorbers)

    def _share(self, carriers: list[Carrier]) -> float:
        return sum(carrier.projection for carrier in carriers) / self.on_probe if self.on_probe > 0 else 0.0

    @property
    def verdict(self) -> Verdict:
        """What happens to the letter: its own latents fire and are enough (or all there is), or share it with
        absorbers; they are silent and absorbers carry it, or nothing does."""
        fires = any(carrier.activation > 0 for carrier in self.main)
        if self.absorbers:
            return "shared" if fires else "absorbed"
        return "fires" if fires else "missed"


@dataclass(frozen=True)
class LetterReading:
    """A letter that counts, and its evaluated words, those first whose letter is absorbed most. A letter that the probe
    finds has such words."""

    letter: str
    main: list[int]
    """Its latents, the most important one first; more than one where the feature is split."""
    probe_f1: float
    words: list[WordReading]

    @property
    def fraction(self) -> float:
        """Absorption fraction, mean over the words (lower is better)."""
        return sum(word.fraction for word in self.words) / len(self.words)

    @property
    def contrast(self) -> list[WordReading]:
        """Up to three words on which the letter's own latents do the work: those where they write most of P."""
        firing = [word for word in self.words if word.verdict == "fires"]
        return sorted(firing, key=lambda word: -word.own_share)[:CONTRAST]

    @property
    def seen(self) -> int:
        """How well the letter shows absorption: the words that its own latents write mostly, or those on which they are
        silent and absorbers write it, whichever are fewer."""
        written = sum(word.verdict == "fires" and word.own_share > 0.5 for word in self.words)
        return min(written, self.count("absorbed"))

    def count(self, verdict: Verdict) -> int:
        """How many words go this way."""
        return sum(word.verdict == verdict for word in self.words)

    @property
    def full(self) -> float:
        """Full absorption, share of the words (lower is better)."""
        return sum(word.full for word in self.words) / len(self.words)


class Role(NamedTuple):
    """What a latent is to a letter: its main latent, a split of it, or an absorber of words."""

    kind: Literal["main", "split", "absorber"]
    letter: str
    words: list[str]
    """The words whose letter it absorbs, most absorbed first."""


@torch.no_grad()
def read_letters(
    sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig
) -> tuple[list[LetterReading], Float[Tensor, "letter d_sae"]]:
    """Every letter that the language model's probe finds, with its words; and the cosine of each letter's probe
    with each decoder row.

    Raises:
        ArtifactError: the SAE does not fit the reference.
    """
    require_width(sae, reference.probe.weight.shape[1])
    counted = reference.counted(config.min_probe_f1)
    directions = functional.normalize(reference.probe.weight, dim=1)
    cosines = directions @ unit_directions(sae).cpu().T
    mains = main_latents(sae, reference, counted, config) if counted else []
    readings = [
        LetterReading(
            letter=LETTERS[letter],
            main=main.tolist(),
            probe_f1=reference.probe_f1[letter],
            words=_words(sae, reference, config, letter, directions[letter], cosines[letter], main.cpu()),
        )
        for letter, (main, _) in zip(counted, mains, strict=True)
    ]
    return readings, cosines


def _words(
    sae: Autoencoder,
    reference: AbsorptionReference,
    config: AbsorptionConfig,
    letter: int,
    direction: Float[Tensor, " d_in"],
    cosine: Float[Tensor, " d_sae"],
    main: Int[Tensor, " main"],
) -> list[WordReading]:
    chosen = (reference.test_labels[reference.scored] == letter).nonzero().flatten()
    x = reference.scored_activations[chosen]
    f = unit_latents(sae, x).cpu()
    scores = score_words(x, f, direction, cosine, main, config)
    projections = f * cosine
    candidates = projections.clamp(min=0).masked_fill(cosine < config.fraction_min_cosine, 0).index_fill(1, main, 0)
    strongest = candidates.topk(min(config.max_absorbing_latents, f.shape[1]), dim=1)

    def carrier(row: int, latent: int) -> Carrier:
        return Carrier(latent, float(f[row, latent]), float(cosine[latent]))

    readings = [
        WordReading(
            word=reference.test_words[int(reference.scored[index])],
            on_probe=float(x[row] @ direction),
            main=[carrier(row, latent) for latent in main.tolist()],
            others=[carrier(row, int(i)) for i, v in zip(*(s[row] for s in strongest[::-1]), strict=True) if v > 0],
            largest=carrier(row, int(projections[row].argmax())),
            fraction=float(scores.fraction[row]),
            full=bool(scores.full[row]),
        )
        for row, index in enumerate(chosen.tolist())
    ]
    return sorted(readings, key=_rank)


def _rank(reading: WordReading) -> tuple[bool, float, float, str]:
    return not reading.full, -reading.fraction, -reading.absorbed_share, reading.word


def roles(letters: list[LetterReading]) -> dict[int, list[Role]]:
    """Latent -> what it is to letters, for the latents that are something to one; what it absorbs most first."""
    found: dict[int, list[Role]] = {}
    for reading in letters:
        absorbed: dict[int, list[str]] = {}
        for word in reading.words:
            for carrier in word.absorbers:
                absorbed.setdefault(carrier.latent, []).append(word.word)
        for place, latent in enumerate(reading.main):
            found.setdefault(latent, []).append(Role("split" if place else "main", reading.letter, []))
        for latent, words in absorbed.items():
            found.setdefault(latent, []).append(Role("absorber", reading.letter, words))
    order = ("main", "split", "absorber")
    return {
        latent: sorted(held, key=lambda role: (order.index(role.kind), -len(role.words), role.letter))
        for latent, held in found.items()
    }
