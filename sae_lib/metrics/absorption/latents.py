"""An SAE's latents on the words of the metric, encoded once and kept in the form that is cheapest to train on."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, vstack
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.stored_reference import require_finite

# Rows that are encoded at a time.
ROWS = 2048

# On a CPU, products with the probes' few columns are faster in compressed rows up to this share of active latents.
_SPARSE_BELOW = 0.08


@torch.no_grad()
def unit_latents(sae: Autoencoder, rows: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
    """Latents as they are when every decoder row has unit norm and its former norm is in the activation.

    Raises ArtifactError: some latent is NaN or infinite.
    """
    latents = sae.encode(rows.to(sae.device, sae.dtype)).float() * sae.W_dec.float().norm(dim=1)
    require_finite(latents)
    return latents


def latent_bytes(sae: Autoencoder, words: int) -> int:
    """Memory that the latents of so many words take."""
    return words * sae.d_sae * 4


class WordLatents:
    """Latents of words that are read in batches again and again.

    Attributes:
        live: latents that some word turns on; the others cannot change a logit.
    """

    live: Bool[Tensor, " d_sae"]

    def __init__(self, sae: Autoencoder, activations: Float[Tensor, "word d_in"], keep: bool) -> None:
        """Encode the words; without `keep` they are encoded again whenever they are read."""
        self._sae = sae
        self._activations = activations.to(sae.device)
        self.live = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
        kept = []
        for chunk in self._activations.split(ROWS):
            latents = unit_latents(sae, chunk)
            self.live |= latents.any(dim=0)
            if keep:
                kept.append(latents)
        self._dense: Tensor | None = None
        self._sparse: csr_array | None = None
        active = sum(int(latents.count_nonzero()) for latents in kept)
        if keep and sae.device.type == "cpu" and active < _SPARSE_BELOW * len(activations) * sae.d_sae:
            self._sparse = vstack([csr_array(latents[:, self.live].numpy()) for latents in kept], format="csr")
        elif keep:
            self._dense = torch.cat([latents[:, self.live] for latents in kept])

    def rows(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch live"] | csr_array:
        """The live latents of some words."""
        if self._sparse is not None:
            return self._sparse[index.numpy()]
        if self._dense is not None:
            return self._dense.index_select(0, index)
        return unit_latents(self._sae, self._activations[index])[:, self.live]

    def columns(self, latents: Int[Tensor, " chosen"]) -> Float[np.ndarray, "word chosen"]:
        """Some latents of every word."""
        if self._sparse is None and self._dense is None:
            return latent_columns(self._sae, self._activations, latents)
        alive = self.live[latents]
        place = (self.live.cumsum(0) - 1)[latents[alive]]
        chosen = np.zeros((len(self._activations), len(latents)), dtype=np.float32)
        if self._sparse is not None:
            chosen[:, alive.numpy()] = self._sparse[:, place.numpy()].toarray()
        elif self._dense is not None:
            chosen[:, alive.cpu().numpy()] = self._dense[:, place].cpu().numpy()
        return chosen


def latent_columns(
    sae: Autoencoder, activations: Float[Tensor, "word d_in"], latents: Int[Tensor, " chosen"]
) -> Float[np.ndarray, "word chosen"]:
    """Some latents of every word, from the activations."""
    return torch.cat([unit_latents(sae, chunk)[:, latents].cpu() for chunk in activations.split(ROWS)]).numpy()
