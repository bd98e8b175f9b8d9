"""Absorption that was put there: how much of it the score finds.

A trained SAE is made to absorb a known share of each letter's words. On such a word the letter's main latents are set
to zero, and a new latent, which fires on this word alone, writes what they wrote of the letter's direction:

    d_w = (p + o_w) / sqrt(2),    act_w = M_w / (d_w . p)

with p the letter's direction (norm 1), o_w the direction of what else the word's residual stream holds, and M_w the
main latents' projection onto p on that word, or the mean over the letter's words where they are silent already.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import ROWS, MainLatents, main_latents, unit_latents
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.absorption.score import evaluate_absorption, letters_of, score_letters
from sae_lib.util.errors import ArtifactError

SEED = 0
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class PlantedAutoencoder(Autoencoder):
    """An SAE with a latent for each absorbed word behind its own, known by the words' residual streams."""

    def __init__(
        self,
        sae: Autoencoder,
        rows: Float[Tensor, "row d_in"],
        latent: Int[Tensor, " row"],
        activation: Float[Tensor, " row"],
        inhibited: Bool[Tensor, "row d_sae"],
        decoder: Float[Tensor, "word d_in"],
    ) -> None:
        """`rows` are residual streams of absorbed words, one for each prompt: which of the new latents each fires, how
        strongly, and which of `sae`'s it silences; `decoder` has the new latents' rows. Raises ArtifactError: two rows
        are equal, so that no SAE tells their words apart."""
        nn.Module.__init__(self)
        self._sae = sae
        self.cfg, self.d_in, self.d_sae = sae.cfg, sae.d_in, sae.d_sae + len(decoder)
        self.W_dec = nn.Parameter(torch.cat([sae.W_dec.detach(), decoder.to(sae.W_dec)]))
        self.b_dec = sae.b_dec
        self._known = {row: place for place, row in enumerate(_bytes(rows.to(sae.dtype)))}
        if len(self._known) < len(rows):
            raise ArtifactError("reference: two of its words have the same residual stream; take other words")
        self._latent, self._activation, self._inhibited = (
            t.to(sae.device) for t in (latent, activation.to(sae.dtype), inhibited)
        )

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        f = torch.cat([self._sae.encode(x), x.new_zeros(len(x), self.d_sae - self._sae.d_sae)], dim=1)
        place = torch.tensor([self._known.get(row, -1) for row in _bytes(x)], dtype=torch.long, device=x.device)
        here = (place >= 0).nonzero().flatten()
        place = place[here]
        f[here, : self._sae.d_sae] = f[here, : self._sae.d_sae].masked_fill(self._inhibited[place], 0)
        f[here, self._sae.d_sae + self._latent[place]] = self._activation[place]
        return f


def _bytes(rows: Float[Tensor, "row d_in"]) -> list[bytes]:
    return [row.tobytes() for row in rows.float().cpu().numpy()]


def plant(sae: Autoencoder, reference: AbsorptionReference, mains: MainLatents, share: float) -> PlantedAutoencoder:
    """`sae`, with these main latents, and `share` of the words of each of their letters absorbed, among the training
    words, the test words and those that are scored alike. A larger share absorbs the words of a smaller one too."""
    probe, cosines, is_main = (each.cpu() for each in letters_of(sae, reference, mains))
    labels, train = torch.cat([reference.train_labels, reference.test_labels]), len(reference.train_labels)
    kind = torch.full_like(labels, 2)  # words to train on, those that are scored, others to test on
    kind[:train], kind[train + reference.scored] = 0, 1
    generator, chosen = torch.Generator().manual_seed(SEED), torch.zeros(len(labels), dtype=torch.bool)
    for letter in mains:
        for each in range(3):
            places = ((labels == letter) & (kind == each)).nonzero().flatten()
            order = torch.randperm(len(places), generator=generator)
            chosen[places[order[: round(share * len(places))]]] = True
    # A word is read in one prompt, and where it is scored in a second one; both fire its own latent.
    again = chosen[train + reference.scored]
    twice = train + reference.scored[again]
    first = torch.cat([reference.train_activations, reference.test_activations])[chosen]
    rows = torch.cat([first, reference.scored_activations[again]])
    latent = (chosen.cumsum(0) - 1)[torch.cat([chosen.nonzero().flatten(), twice])]
    letters = torch.cat([labels[chosen], labels[twice]])
    # M: what the main latents write along their letter's direction; the letter's mean where that is nothing.
    of_main, parts = cosines.masked_fill(~is_main, 0), zip(rows.split(ROWS), letters.split(ROWS), strict=True)
    written = torch.cat([(unit_latents(sae, x).cpu() * of_main[letter]).sum(dim=1) for x, letter in parts])
    some = written > 0
    sums = torch.zeros(len(LETTERS)).index_add_(0, letters[some], written[some])
    mean = sums / letters[some].bincount(minlength=len(LETTERS)).clamp(min=1)
    written = torch.where(some, written, mean[letters])
    of_word = letters[: len(first)]
    aside = first - (first * probe[of_word]).sum(dim=1, keepdim=True) * probe[of_word]
    decoder = (probe[of_word] + F.normalize(aside, dim=1)) / 2**0.5
    along = (decoder * probe[of_word]).sum(dim=1)[latent]
    return PlantedAutoencoder(sae, rows, latent, written / along, is_main[letters], decoder)


@torch.no_grad()
def planted_absorption(
    sae: Autoencoder, reference: AbsorptionReference, config: AbsorptionConfig, shares: Sequence[float] = SHARES
) -> pd.DataFrame:
    """How much planted absorption the score finds. Each share costs as much as a score.

    One row per share, `planted`: absorption_fraction, absorption_full and main_latent_f1 as the score finds them;
    absorption_fraction_known and absorption_full_known with the main latents that were silenced, which leaves out the
    search for them. The share 0 has the SAE's own score.

    Raises ArtifactError: as `evaluate_absorption`; two words have the same residual stream.
    """
    mains, names = main_latents(sae, reference, config), ("absorption_fraction", "absorption_full")
    rows = []
    for share in shares:
        planted = plant(sae, reference, mains, share)
        found = evaluate_absorption(planted, reference, config).summary
        known = score_letters(planted, reference, mains, config)
        rows.append(
            {"planted": share}
            | {name: found[name] for name in (*names, "main_latent_f1")}
            | {f"{name}_known": float(known[name].mean()) for name in names}
        )
    return pd.DataFrame(rows)
