"""Freshly initialised SAEs of a few latents."""

from typing import Any

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config


def make_sae(*, d_in: int, seed: int = 0, **config: Any) -> Autoencoder:
    """An untrained SAE; `config` holds fields of `SAEConfig`."""
    return build_autoencoder(sae_config(config), d_in=d_in, seed=seed)
