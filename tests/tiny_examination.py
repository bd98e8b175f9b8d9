"""An SAE on the language model of first letters, looked at whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.share.browser import Examination, examine
from tests.metrics.tiny_saes import make_sae

D_IN, D_SAE = 32, 64
CONFIG = AbsorptionConfig(probe_epochs=20, k_max=2)


def tiny_sae(seed: int = 0) -> Autoencoder:
    """An SAE whose decoder rows have norms between 1/2 and 2, and whose latent 7 never fires."""
    sae = make_sae(d_in=D_IN, seed=seed, architecture="topk", k=4, d_sae=D_SAE)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, D_SAE)[:, None])
        sae.b_enc[7] = -1e6
    return sae


def tiny_text(lm: LanguageModel, contexts: int = 24, length: int = 40) -> Tensor:
    """Random tokens behind BOS, with EOS in the middle of every context."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, len(lm.tokenizer), (contexts, length), generator=generator)
    tokens[:, 0], tokens[:, length // 2] = 0, 1
    return tokens


def tiny_examination(lm: LanguageModel, reference: AbsorptionReference | None, **options: Any) -> Examination:
    return examine(tiny_sae(), lm, tiny_text(lm), reference, CONFIG, batch=5, **options)
