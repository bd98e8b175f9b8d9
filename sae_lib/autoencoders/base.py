"""What every SAE variant shares: four tensors, encode, decode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sae_lib.autoencoders.config import CONFIGS, SAEConfig
from sae_lib.autoencoders.latents import ActiveLatents, Encode, Entries, Latents, encoder_product, worthwhile

LATER: Any = None  # until a step has come so far


@dataclass
class Step:
    """What is known at one optimiser step, filled in as the step goes along. Rows are tokens; row i - 1 is the token
    before row i, in the same context, wherever `has_predecessor[i]`."""

    index: int
    total: int
    x: Float[Tensor, "batch d_in"]
    has_predecessor: Bool[Tensor, " batch"]
    dead: Bool[Tensor, " d_sae"]
    """Latents that have not fired for `dead_after_tokens` tokens."""
    any_dead: bool
    generator: torch.Generator
    entries: Entries | None = None
    """Where latents may be above zero, where they are held so."""
    pre: Float[Tensor, "..."] = LATER
    """Pre-activations: `[batch, d_sae]`, or at `entries`."""
    kept: Any = LATER
    """What the variant's loss needs of its own forward pass."""
    latents: Latents = LATER
    """Activations as the encoder gives them, before any mask."""
    f: Latents = LATER
    """Activations as the decoder gets them, after any mask."""
    x_hat: Float[Tensor, "batch d_in"] = LATER
    reconstruction: Float[Tensor, ""] = LATER
    """||x - x_hat||^2, summed over d_in, mean over the batch."""
    firing_rate: Float[Tensor, " d_sae"] = LATER
    """Share of the batch on which each latent is above zero (Eq. 5's indicator), before any mask."""

    def held(self, values: Float[Tensor, "..."]) -> Latents:
        """Latents with these values in the places of `pre`."""
        return Latents(values) if self.entries is None else ActiveLatents(values, self.entries)

    def at_places(self, *vectors: Float[Tensor, " d_sae"]) -> list[Float[Tensor, "..."]]:
        """What has one number per latent, in the places of `pre`."""
        return [v if self.entries is None else v.index_select(0, self.entries.latent) for v in vectors]


def squared_error(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """||x - x_hat||^2, summed over d_in, mean over the batch."""
    return functional.mse_loss(x_hat, x, reduction="sum") / len(x)


def indicator(
    compare: Callable[..., Tensor], values: Float[Tensor, "*batch d_sae"], bound: Float[Tensor, "..."]
) -> Float[Tensor, "*batch d_sae"]:
    """1.0 where `compare(values, bound)` (torch.gt, torch.ge), else 0.0, without gradient. Multiplying by it is several
    times faster on a CPU than `torch.where`, which branches at each element."""
    return compare(values.detach(), bound.detach().to(values.device), out=torch.empty_like(values))


class _ProductOffset(torch.autograd.Function):
    """The bias b of (x - b_dec) W_enc + b where x has no gradient: that of b_dec is -W_enc times the gradient of b."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
        ctx.save_for_backward(W_enc)
        return bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (W_enc,) = ctx.saved_tensors
        return grad, -(W_enc @ grad), None


class Autoencoder(nn.Module):
    """f = activation(x W_enc + b_enc), x_hat = f W_dec + b_dec (TemporalSAE Eq. 1, rows as vectors).

    With `config.subtract_b_dec` the encoder sees x - b_dec. W_enc: `[d_in, d_sae]`, W_dec: `[d_sae, d_in]`. Rows of
    W_dec, one per latent, are the feature directions.
    """

    exportable: ClassVar[bool] = True
    """Whether its latents are those of one pass of one encoder, as other libraries' formats have it."""
    offsets: ClassVar[tuple[str, ...]] = ("b_enc",)
    """What is added to or compared with x W_enc, one entry per latent."""
    scaled: ClassVar[tuple[str, ...]] = ("b_dec",)
    """What else is in units of x."""
    gains: ClassVar[tuple[str, ...]] = ()
    """Other parameters with one number per latent."""

    def __init__(self, config: SAEConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__()
        self.cfg = config
        self.d_in, self.d_sae = d_in, config.d_sae
        directions = torch.randn(config.d_sae, d_in, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        encoder = directions if config.tied_init else torch.randn(config.d_sae, d_in, generator=generator)
        encoder = encoder / encoder.norm(dim=1, keepdim=True) * config.encoder_init_norm
        self.W_enc = nn.Parameter(encoder.contiguous().T)  # the memory layout that products and gradients have
        if "b_enc" in self.offsets:  # here, since parameters are clipped and kept in the order in which they are made
            self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(directions.clone())
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        for name, start in self.starts().items():
            setattr(self, name, nn.Parameter(torch.full((config.d_sae,), start)))

    def starts(self) -> dict[str, float]:
        """The parameters with one number per latent, and where they start."""
        return {name: self.cfg.get(f"initial_{name}") or 0.0 for name in (*self.offsets, *self.gains)}

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    def pre_activations(
        self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "*batch n_latents"]:
        """x W_enc + b_enc, or (x - b_dec) W_enc + b_enc; of all latents, or of `latents`."""
        x, W_enc, offset = self._encoder_inputs(x)
        if latents is not None:
            W_enc, offset = W_enc.index_select(1, latents), offset[latents]
        return self._product(x, W_enc, offset)

    def _product(self, x: Tensor, W_enc: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, W_enc.T, bias)

    def _encoder_inputs(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """x (or x - b_dec), W_enc, and the bias: b_enc, or zeros where there is none. b_dec gets its gradient through
        the bias: through x - b_dec that would cost a product over the batch."""
        bias = self.b_enc if "b_enc" in self.offsets else self.W_dec.new_zeros(self.d_sae)
        if not self.cfg.subtract_b_dec:
            return x, self.W_enc, bias
        return x - self.b_dec.detach(), self.W_enc, _ProductOffset.apply(bias, self.b_dec, self.W_enc)

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The activation function, as evaluation uses it."""
        raise NotImplementedError

    def activate_training(self, step: Step) -> Float[Tensor, "..."]:
        """The activation function, as training uses it; differs where a batch statistic is used (BatchTopK)."""
        return self.activate(step.pre)

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        """Where latents, or their gradients, may differ from zero; None where they are to be held as a matrix."""
        return None

    def activate_entries(self, step: Step) -> Float[Tensor, " entry"]:
        """What `activate_training` gives at `step.entries`: the pre-activations, unless the variant knows better."""
        return step.pre

    def encode_training(self, step: Step) -> Latents:
        """Latents of `step.x`."""
        return self._encode_product(step, *self._encoder_inputs(step.x))

    def _encode_product(self, step: Step, x: Tensor, W_enc: Tensor, bias: Tensor) -> Latents:
        if worthwhile(x, self.d_sae, self.k_at(step)):
            product = encoder_product(x, W_enc, bias)
            step.entries = self.entries(step, product)
            step.pre = Encode.apply(x, W_enc, bias, product, step.entries)
        else:
            step.entries, step.pre = None, self._product(x, W_enc, bias)
        return step.held(self.activate_training(step) if step.entries is None else self.activate_entries(step))

    def k_at(self, step: Step) -> Any:
        """k where there is one, or what it is while it is annealed (`k_annealing`)."""
        k, annealing = self.cfg.get("k"), self.cfg.get("k_annealing")
        return k if annealing is None else annealing.k_at(k, step.index / step.total)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of `x`; deterministic, without masks."""
        return self.activate(self.pre_activations(x))

    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x))

    def initialise(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Set what depends on data, from the first batch."""

    def decode_training(self, step: Step) -> Float[Tensor, "batch d_in"]:
        """The reconstruction from `step.f`, as training uses it."""
        return step.f.decode(self.W_dec) + self.b_dec

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        """The reconstruction term of the loss."""
        return step.reconstruction

    def sparsity_ramp(self, step: Step) -> float:
        """Factor on the sparsity coefficient: rises linearly from 0 to 1 over the warm-up."""
        warmup = self.cfg.sparsity_warmup_steps
        return min(1.0, step.index / warmup) if warmup else 1.0

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""] | None:
        """The family's own sparsity term, coefficient included."""
        return None

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""] | None:
        """The family's other terms, coefficient included."""
        return None

    def after_step(self, step: Step) -> None:
        """At the end of each training step: what the family keeps count of."""

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turn an SAE of `scale * x` into the same SAE of x. Weights stay; everything in units of x is divided."""
        for name in (*self.offsets, *self.scaled):
            getattr(self, name).div_(scale)

    def per_latent(self) -> list[tuple[Tensor, int]]:
        """The parameters that belong to single latents, each with the dimension that counts them."""
        return [(self.W_enc, 1), (self.W_dec, 0), *((getattr(self, name), 0) for name in self.starts())]

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take out of each decoder row's gradient the part along the row (of norm 1), which normalising would undo."""
        if (gradient := self.W_dec.grad) is not None:
            along = (gradient * self.W_dec).sum(dim=1, keepdim=True)
            gradient.addcmul_(along, self.W_dec, value=-1)


ARCHITECTURES: dict[str, type[Autoencoder]] = {}
Variant = TypeVar("Variant", bound=type[Autoencoder])


def architecture(config: type[SAEConfig]) -> Callable[[Variant], Variant]:
    """Decorates the `Autoencoder` that is made from `config`, whose `architecture` gives it its name."""

    def registered(variant: Variant) -> Variant:
        name = config.model_fields["architecture"].default
        CONFIGS[name], ARCHITECTURES[name] = config, variant
        return variant

    return registered
