"""Encoder rows that follow the decoder's: tied to them, or free only at right angles to them."""

from typing import Literal

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import MechanismConfig, SAEConfig
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import BATCHTOPK, topk_method
from sae_lib.mechanisms.base import Mechanism, mechanism


class AlignmentConfig(MechanismConfig):
    """e_i = d_i, or e_i . d_i = 1."""

    kind: Literal["tied", "aligned"] = "aligned"

    def check(self, config: SAEConfig) -> None:
        """Both begin with encoder rows that are the decoder's."""
        if not (config.unit_norm_decoder and config.tied_init and config.encoder_init_norm == 1.0):
            raise ValueError("alignment needs unit_norm_decoder: true, tied_init: true and encoder_init_norm: 1")
        if config.get("resampling"):
            raise ValueError("alignment and resampling both write encoder rows; leave one out")


@mechanism("alignment", AlignmentConfig)
class Alignment(Mechanism):
    """Encoder rows are e_i = d_i + o_i, with o_i at a right angle to the decoder row d_i of norm 1, so that
    e_i . d_i = 1 (`aligned`); or o_i = 0 (`tied`). What is trained is d and o: with g the gradient of e,

        grad d += g - (g . d) o,    grad o = g - (g . d) d

    An encoder that can point away from its decoder row along a child is what lets an L1 SAE absorb the parent: tied
    weights end that on toys (Chanin et al., lesswrong.com/posts/kcg58WhRxFA9hv9vN), at a price where features overlap.
    `aligned` leaves inhibition at right angles to the row (arXiv 2605.18629 sets e_i . d_i = 1 by a parametrisation
    without settings of its own; that it is this one is our reading).
    """

    cfg: AlignmentConfig
    _before: Tensor  # the decoder of the current training step

    @torch.no_grad()
    def before_update(self, sae: Autoencoder, step: Step) -> None:
        self._before = sae.W_dec.detach().clone()
        gradient = sae.W_enc.grad
        if gradient is None or sae.W_dec.grad is None:
            return
        g, d = gradient.T, sae.W_dec
        along = (g * d).sum(dim=1, keepdim=True)
        sae.W_dec.grad.add_(g - along * (sae.W_enc.T - d))
        if self.cfg.kind == "tied":
            gradient.zero_()
        else:
            gradient.sub_((along * d).T)

    @torch.no_grad()
    def after_update(self, sae: Autoencoder, optimizer: torch.optim.Optimizer, step: Step) -> None:
        sae.normalise_decoder()
        encoder: Tensor = sae.W_dec
        if self.cfg.kind == "aligned":
            aside = sae.W_enc.T - self._before
            encoder = encoder + aside - (aside * sae.W_dec).sum(dim=1, keepdim=True) * sae.W_dec
        sae.W_enc.copy_(encoder.T)


# BatchTopK in all else, which is the control.
TIED, ALIGNED = (BATCHTOPK | {"alignment": {"kind": kind}} for kind in ("tied", "aligned"))
CHANIN = "Chanin et al. 2024, *Toy Models of Feature Absorption in SAEs*, LessWrong"
BRICK, CORAL = Look("#661100", "1", (0, (1, 2))), Look("#cc6677", "2", (0, (2, 4)))
SOURCE = "*Aligned Training*, arXiv 2605.18629"
topk_method("tied", "Tied weights", TIED, BRICK, papers=(CHANIN,))
topk_method("aligned", "Aligned training", ALIGNED, CORAL, papers=(SOURCE,))
