"""The library's own training step on a few rows, to hold an equation against that was written out by hand."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.autoencoders.base import Step
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.mechanisms import build_mechanisms
from sae_lib.training.trainer import forward, losses

WINDOW = 16  # consecutive rows


class InLibrary:
    """An SAE of a few latents with its mechanisms, and its steps as `Trainer` makes them, but for the optimiser.

    >>> tried = InLibrary(torch.randn(32, 8), architecture="standard", l1_coefficient=0.1)
    >>> sorted(tried.terms), tried.f.shape
    (['reconstruction', 'sparsity'], torch.Size([32, 16]))
    """

    def __init__(self, x: Float[Tensor, "batch d_in"], d_sae: int = 16, **settings: Any) -> None:
        self.sae = build_autoencoder(sae_config({"d_sae": d_sae, **settings}), x.shape[1])
        noise = torch.Generator().manual_seed(1)
        for parameter in self.sae.parameters():
            if parameter.ndim == 1:  # they start at zero, which would hide whether they are used rightly
                parameter.data += 0.2 * torch.rand(parameter.shape, generator=noise)
        self.mechanisms = build_mechanisms(self.sae.cfg)
        self.generator = torch.Generator().manual_seed(0)
        self.done = 0
        self.forward(x)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """W_enc `[d_in, d_sae]`, b_enc, W_dec `[d_sae, d_in]`, b_dec, as copies without gradient."""
        sae = self.sae
        found = (sae.W_enc, getattr(sae, "b_enc", torch.zeros(sae.d_sae)), sae.W_dec, sae.b_dec)
        return tuple(tensor.detach().clone() for tensor in found)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> None:
        """The next step's forward pass and loss."""
        self.step = Step(
            index=self.done, total=100, x=x, has_predecessor=follows(len(x)),
            dead=torch.zeros(self.sae.d_sae, dtype=torch.bool), any_dead=False, generator=self.generator,
        )  # fmt: skip
        forward(self.sae, self.mechanisms, self.step)
        self.loss, self.terms = losses(self.sae, self.mechanisms, self.step)
        self.done += 1

    def backward(self) -> None:
        """The rest of that step: the gradients, and what mechanisms do with them and with the weights."""
        self.sae.zero_grad(set_to_none=True)
        self.loss.backward()
        optimizer = torch.optim.Adam(self.sae.parameters())
        for mechanism in self.mechanisms:
            mechanism.before_update(self.sae, self.step)
        for mechanism in self.mechanisms:
            mechanism.after_update(self.sae, optimizer, self.step)

    @property
    def f(self) -> Float[Tensor, "batch d_sae"]:
        """The latents that the decoder got."""
        assert self.step.f is not None
        return self.step.f.dense()


def follows(n: int) -> Bool[Tensor, " n"]:
    """Which of `n` rows have a predecessor, in windows of 16."""
    return torch.arange(n) % WINDOW != 0
