"""SAEs of a few latents, and words whose residual streams are given."""

from typing import Any

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.metrics.absorption.probes import LinearProbes
from sae_lib.metrics.absorption.reference import AbsorptionReference


def make_sae(*, d_in: int, seed: int = 0, **config: Any) -> Autoencoder:
    """An untrained SAE; `config` holds fields of `SAEConfig`."""
    return build_autoencoder(sae_config(config), d_in=d_in, seed=seed)


def sae_of(encoder: Tensor, decoder: Tensor) -> Autoencoder:
    """A standard SAE, f = ReLU(x W_enc), with these weights: a column and a row for each latent."""
    sae = make_sae(architecture="standard", d_sae=len(decoder), d_in=decoder.shape[1])
    with torch.no_grad():
        sae.W_enc.copy_(encoder)
        sae.W_dec.copy_(decoder)
    return sae


def words_with(
    words: list[str], x: Tensor, test: Tensor, probe: Tensor, f1: list[float], fresh: Tensor | None = None
) -> AbsorptionReference:
    """Words with residual streams `x`, and `fresh` ones where they are scored, which all that are tested on are."""
    train, tested = ([words[i] for i in rows.nonzero().flatten().tolist()] for rows in (~test, test))
    return AbsorptionReference(
        train, tested, x[~test], x[test], LinearProbes(probe, torch.zeros(26)), f1 + [0.0] * (26 - len(f1)),
        torch.arange(len(tested)), x[test] if fresh is None else fresh, left_out=0,
    )  # fmt: skip
