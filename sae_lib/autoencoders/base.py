"""What every SAE variant shares: four tensors, encode, decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_lib.sae_config import SAEConfig


@dataclass
class Step:
    """What is known at one optimiser step, filled in as the step goes along.

    Rows are tokens. Rows of one window are consecutive tokens of one context, so row i - 1 is the predecessor of row i
    wherever `has_predecessor[i]`.
    """

    index: int
    total: int
    x: Float[Tensor, "batch d_in"]
    has_predecessor: Bool[Tensor, " batch"]
    dead: Bool[Tensor, " d_sae"]
    """Latents that have not fired for `dead_after_tokens` tokens."""
    any_dead: bool
    generator: torch.Generator
    pre: Float[Tensor, "batch d_sae"] | None = None
    """Pre-activations."""
    latents: Float[Tensor, "batch d_sae"] | None = None
    """Activations as the encoder gives them, before any mask."""
    f: Float[Tensor, "batch d_sae"] | None = None
    """Activations as the decoder gets them, after any mask."""
    x_hat: Float[Tensor, "batch d_in"] | None = None
    reconstruction: Float[Tensor, ""] | None = None
    """||x - x_hat||^2, summed over d_in, mean over the batch."""
    firing_rate: Float[Tensor, " d_sae"] | None = None
    """Share of the batch on which each latent is above zero (Eq. 5's indicator), before any mask."""


class Autoencoder(nn.Module):
    """f = activation(x W_enc + b_enc), x_hat = f W_dec + b_dec (TemporalSAE Eq. 1, rows as vectors).

    With `config.subtract_b_dec` the encoder sees x - b_dec. W_enc: `[d_in, d_sae]`, W_dec: `[d_sae, d_in]`. Rows of
    W_dec, one per latent, are the feature directions.
    """

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__()
        self.cfg = config
        self.d_in, self.d_sae = d_in, config.d_sae
        directions = torch.randn(config.d_sae, d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        encoder = directions if config.tied_init else torch.randn(config.d_sae, d_in, generator=generator)
        encoder = encoder / encoder.norm(dim=1, keepdim=True) * config.encoder_init_norm
        self.W_enc = nn.Parameter(encoder.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(directions.clone())
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        if self.cfg.subtract_b_dec:
            # (x - b_dec) W_enc + b_enc, with the bias product on one row instead of on the batch.
            return x @ self.W_enc + (self.b_enc - self.b_dec @ self.W_enc)
        return x @ self.W_enc + self.b_enc

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The activation function, as evaluation uses it."""
        raise NotImplementedError

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        """The activation function, as training uses it; differs where a batch statistic is used (BatchTopK)."""
        assert step.pre is not None
        return self.activate(step.pre)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of `x`; deterministic, without masks."""
        return self.activate(self.pre_activations(x))

    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction from latents."""
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction of `x`."""
        return self.decode(self.encode(x))

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Set what depends on data, from the first batch. Nothing by default."""

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""] | None:
        """The family's own sparsity term, coefficient included."""
        return None

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""] | None:
        """The family's other terms, coefficient included."""
        return None

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turn an SAE of `scale * x` into the same SAE of x. Weights stay; everything in units of x is divided."""
        for tensor in self.in_units_of_x():
            tensor.div_(scale)

    def in_units_of_x(self) -> list[Tensor]:
        return [self.b_enc, self.b_dec]

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale each decoder row to norm 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take out of each decoder row's gradient the part along the row, which normalising would undo."""
        gradient = self.W_dec.grad
        if gradient is not None:
            along = (gradient * self.W_dec).sum(dim=1, keepdim=True)
            norms = self.W_dec.square().sum(dim=1, keepdim=True).clamp_min(1e-8)
            gradient.addcmul_(along / norms, self.W_dec, value=-1)
