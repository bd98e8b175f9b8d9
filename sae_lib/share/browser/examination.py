"""Everything that is to be seen of one SAE, computed once and then only looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.stored_reference import require_width
from sae_lib.share.browser.directions import LogitEffects, Ranked, SeedMatch, logit_effects, match_seeds, neighbours
from sae_lib.share.browser.firing import Firing, read_firing
from sae_lib.share.browser.letters import LetterReading, Role, read_letters, roles
from sae_lib.share.browser.pieces import Pieces
from sae_lib.util.errors import ArtifactError


@dataclass(frozen=True)
class Examination:
    """An SAE on a language model and a text. Activations are those of decoder rows of unit norm throughout."""

    title: str
    facts: dict[str, str]
    """What the reader should know about the SAE and the text, by name."""
    d_sae: int
    pieces: Pieces
    firing: Firing
    effects: LogitEffects
    neighbours: Ranked
    match: SeedMatch
    letters: list[LetterReading] = field(default_factory=list)
    """The letters that count, in alphabetical order; empty without an absorption reference."""
    probe_cosines: Float[Tensor, "letter d_sae"] | None = None
    """Cosine of each letter's probe with each decoder row."""

    @cached_property
    def roles(self) -> dict[int, list[Role]]:
        """Latent -> what it is to first letters."""
        return roles(self.letters)

    def letter(self, name: str | None = None) -> LetterReading:
        """The reading of a letter; without a name, of the one where absorption is seen best (`LetterReading.seen`, then
        the highest fraction).

        Raises:
            ArtifactError: no letter counts, or not this one.
        """
        if not self.letters:
            raise ArtifactError("letters: none counts here; give an absorption reference whose probe finds letters")
        if name is None:
            return max(self.letters, key=lambda reading: (reading.seen, reading.fraction))
        for reading in self.letters:
            if reading.letter == name.lower():
                return reading
        known = "".join(reading.letter for reading in self.letters)
        raise ArtifactError(f"letter: {name!r} does not count here; choose one of {known}")

    def nearest_letter(self, latent: int) -> tuple[str, float] | None:
        """The letter whose probe has the largest cosine with a latent's direction, among those that count."""
        if self.probe_cosines is None or not self.letters:
            return None
        counted = [LETTERS.index(reading.letter) for reading in self.letters]
        cosine, place = self.probe_cosines[counted, latent].max(dim=0)
        return self.letters[int(place)].letter, float(cosine)


def examine(
    sae: Autoencoder,
    lm: LanguageModel,
    tokens: Int[Tensor, "context position"],
    reference: AbsorptionReference | None = None,
    config: AbsorptionConfig | None = None,
    *,
    seeds: Mapping[int, Autoencoder] | None = None,
    title: str = "SAE",
    text: str = "text",
    batch: int = 16,
) -> Examination:
    """Look at every latent of an SAE.

    Args:
        lm: a whole model, on the device of the SAE.
        tokens: contexts with BOS in front, on the CPU; where the examples come from.
        reference: words and probes of first letters; without it nothing is said about letters.
        config: of the absorption metric; its defaults (SAEBench's) where it is None.
        seeds: SAEs that differ from this one in their seed only, by seed.
        title: names the SAE.
        text: says what `tokens` are.
        batch: contexts in one forward pass.

    Raises:
        ArtifactError: the SAE, the model and the reference do not fit each other; the model was cut; or some latent is
            NaN or infinite.
    """
    require_width(sae, lm.d_in, f"the residual stream of {lm.name} is")
    firing = read_firing(sae, lm, tokens, batch)
    letters, cosines = ([], None) if reference is None else read_letters(sae, reference, config or AbsorptionConfig())
    silent = int((firing.density == 0).sum())
    facts = {
        "language model": f"{lm.name}, residual stream after block {lm.layer} (counted from 0)",
        "latents": f"{sae.d_sae:,}, of which {silent:,} never fire in this text",
        "active per token (L0)": f"{firing.density.sum():.1f}",
        "text": f"{len(tokens):,} contexts, {firing.kept:,} tokens of {text}",
    }
    return Examination(
        title=title,
        facts=facts,
        d_sae=sae.d_sae,
        pieces=Pieces(lm.tokenizer),
        firing=firing,
        effects=logit_effects(sae, lm),
        neighbours=neighbours(sae),
        match=match_seeds(sae, seeds or {}),
        letters=letters,
        probe_cosines=cosines,
    )
