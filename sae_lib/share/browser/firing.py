"""Where an SAE's latents fire in a text, and the contexts that show it best."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.latents import unit_latents

STRONGEST = 8
SPREAD = 4
BEFORE, AFTER = 20, 8  # tokens shown on both sides of the peak
# Two contexts with the same so many tokens up to the peak show the same thing twice.
SAME_TOKENS = 4
_CANDIDATES = 256  # contexts of a latent that are looked at for its strongest ones


class Example(NamedTuple):
    """A stretch of a context around the token on which a latent is strongest there."""

    context: int
    start: int
    """Position in the context of the first token shown."""
    peak: int
    """Position in the context of the strongest token."""
    activations: list[float]
    """One for each token shown."""
    strongest: bool
    """One of the latent's strongest contexts; otherwise taken from the rest of its range."""


@dataclass(frozen=True)
class Firing:
    """Activations of every latent at every token of a text, for decoder rows of unit norm.

    Takes 8 bytes for each token and latent that is on.
    """

    tokens: Int[Tensor, "context position"]
    activations: csc_array
    """`[context * position, d_sae]`; empty at special tokens."""
    kept: int
    """Tokens that are not special."""

    @cached_property
    def density(self) -> Float[np.ndarray, " d_sae"]:
        """Share of the tokens, special ones left out, on which each latent fires."""
        return np.diff(self.activations.indptr) / self.kept

    @cached_property
    def maximum(self) -> Float[np.ndarray, " d_sae"]:
        """The largest activation of each latent; 0 where it never fires."""
        return np.array([values.max(initial=0.0) for _, values in map(self.column, range(self.activations.shape[1]))])

    def column(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The places (context * length + position, ascending) at which a latent fires, and its activations there."""
        part = slice(*self.activations.indptr[latent : latent + 2])
        return self.activations.indices[part].astype(np.int64), self.activations.data[part]

    def examples(self, latent: int, strongest: int = STRONGEST, spread: int = SPREAD) -> list[Example]:
        """The strongest contexts of a latent, and some from the rest of its range, the strongest first.

        A context is shown once, at its strongest token. Among the strongest, contexts that repeat the tokens up to the
        peak come in only where there are not enough others. The rest are evenly spaced in rank: what a latent does
        on most days, which its strongest contexts do not show.
        """
        places, values = self.column(latent)
        by_value = np.lexsort((places, -values))
        _, first = np.unique(places[by_value] // self.tokens.shape[1], return_index=True)
        peaks = places[by_value][np.sort(first)]
        top = self._different(peaks[:_CANDIDATES])[:strongest]
        rest = peaks[~np.isin(peaks, top)]
        others = rest[np.linspace(0, len(rest) - 1, min(spread, len(rest)) + 1).astype(int)[1:]] if len(rest) else rest
        return [self._example(latent, int(place), True) for place in peaks[np.isin(peaks, top)]] + [
            self._example(latent, int(place), False) for place in others
        ]

    def _different(self, peaks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The peaks, those that repeat the tokens of a stronger one last."""
        fresh: list[int] = []
        repeated: list[int] = []
        seen: set[bytes] = set()
        length = self.tokens.shape[1]
        flat = self._flat_tokens
        for place in peaks:
            first = max(place - SAME_TOKENS + 1, place // length * length)
            shown = flat[first : place + 1].tobytes()
            (repeated if shown in seen else fresh).append(place)
            seen.add(shown)
        return np.array([*fresh, *repeated], dtype=np.int64)

    @cached_property
    def _flat_tokens(self) -> NDArray[np.int64]:
        return self.tokens.reshape(-1).numpy()

    def _example(self, latent: int, place: int, strongest: bool) -> Example:
        length = self.tokens.shape[1]
        context, peak = divmod(place, length)
        start, stop = max(0, peak - BEFORE), min(length, peak + AFTER + 1)
        places, values = self.column(latent)
        window = np.zeros(stop - start)
        inside = slice(*np.searchsorted(places, [context * length + start, context * length + stop]))
        window[places[inside] - context * length - start] = values[inside]
        return Example(context, start, peak, window.tolist(), strongest)


@torch.no_grad()
def read_firing(
    sae: Autoencoder, lm: LanguageModel, tokens: Int[Tensor, "context position"], batch: int = 16
) -> Firing:
    """Run a text through the language model and the SAE.

    Args:
        tokens: contexts with BOS in front, on the CPU.
        batch: contexts in one forward pass.

    Raises:
        ArtifactError: some latent is NaN or infinite.
    """
    tokens = tokens.long()
    kept = lm.not_special(tokens)
    parts = []
    for part, mask in zip(tokens.split(batch), kept.split(batch), strict=True):
        residual = lm.finite_stream(part).reshape(-1, lm.d_in)
        latents = unit_latents(sae, residual).cpu()
        parts.append(csr_array(latents.masked_fill_(~mask.reshape(-1, 1), 0).numpy()))
    activations = vstack(parts, format="csc")
    activations.sort_indices()
    return Firing(tokens, activations, int(kept.sum()))
