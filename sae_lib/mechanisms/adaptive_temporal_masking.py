"""ATM: features that look unimportant are switched off at random; and the control that does so to any feature."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import MechanismConfig, Momentum, SAEConfig, Steps
from sae_lib.autoencoders.matryoshka import NESTED, ON_TOYS
from sae_lib.autoencoders.method import Look, Method, register
from sae_lib.autoencoders.standard import HUBEN, PAPER, STANDARD
from sae_lib.autoencoders.topk import TopKConfig, topk_method
from sae_lib.mechanisms.base import Mechanism, mechanism, moving_average

Component = Literal["magnitude", "frequency", "contribution"]
COMPONENTS: tuple[Component, ...] = get_args(Component)


class MaskingConfig(MechanismConfig):
    """ATM: latents with importance under theta = mu + c sigma are masked with p = 1 - exp(-r (theta - I) / theta)."""

    c: float = 1.0
    r: float = Field(1.0, ge=0.0)
    components: tuple[Component, ...] = Field(COMPONENTS, min_length=1)
    combine: Literal["mean", "product"] = "mean"
    """Each EMA is divided by its mean over latents; then their mean, or their product."""
    contribution: Literal["leave_one_out", "energy"] = "leave_one_out"
    """E[f^2 ||d||^2 + 2 f d.(x - x_hat)], clamped at 0, or E[f^2 ||d||^2] alone."""
    decay: Momentum = 0.99
    fed_by: Literal["pre_mask", "post_mask"] = "pre_mask"
    population: Literal["nonzero", "all"] = "nonzero"
    """The latents over which mu and sigma are taken."""
    granularity: Literal["feature", "activation"] = "feature"
    """One draw per latent and step, shared by the batch, or one per activation."""
    rescale: bool = False
    """Divide what is kept by 1 - p, as dropout does."""
    warmup_steps: Steps = 1000
    inference: Literal["off", "prune", "scale"] = "off"
    """At evaluation: no mask; latents with importance < theta removed; or every latent scaled by 1 - p."""

    @model_validator(mode="after")
    def _distinct(self) -> "MaskingConfig":
        if len(set(self.components)) != len(self.components):
            raise ValueError(f"components are repeated: {self.components}")
        return self

    def check(self, config: SAEConfig) -> None:
        if config.get("dropout"):
            raise ValueError("masking and dropout are both set; dropout is the control for masking, choose one")
        if self.inference == "scale" and isinstance(config, TopKConfig):
            raise ValueError(f"masking.inference 'scale' would change what {config.architecture} selects; take 'off'")


class Masking(Mechanism):
    """Latents masked at random, each with its `probability`, once the warm-up is over: one draw per latent and step,
    shared by the batch, without rescaling; or as `MaskingConfig.granularity` and `rescale` say."""

    def __init__(self, settings: Any, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.probability: Tensor = nn.Buffer(torch.zeros(d_sae))
        self.keep_rate: Tensor = nn.Buffer(torch.ones(()))

    @torch.no_grad()
    def mask(self, step: Step) -> Float[Tensor, "..."] | None:
        if step.index < self.cfg.warmup_steps:
            return None
        by_activation = getattr(self.cfg, "granularity", "feature") == "activation"
        shape = (step.latents.n_rows, step.latents.d_sae) if by_activation else self.probability.shape
        uniform = torch.rand(shape, generator=step.generator, device=self.probability.device)
        kept = (uniform >= self.probability).to(self.probability.dtype)
        self.keep_rate.copy_(kept.mean())
        return kept / (1.0 - self.probability).clamp_min(1e-6) if getattr(self.cfg, "rescale", False) else kept

    def log(self) -> dict[str, float]:
        return {"mask_rate": 1.0 - float(self.keep_rate)}


@mechanism("masking", MaskingConfig)
class AdaptiveTemporalMasking(Masking):
    """Three EMAs per latent - activation magnitude, activation frequency, reconstruction contribution - make an
    importance I. With theta = mu + c sigma over latents, a latent with I < theta is masked with probability

        p = 1 - exp(-r (theta - I) / theta)

    and 0 otherwise (ATM, section on adaptive masking); no gradient flows through p. The contribution of latent i is the
    rise in squared error if it were left out, E[f_i^2 ||d_i||^2 + 2 f_i d_i.(x - x_hat)], clamped at 0, on the
    reconstruction without masks.
    """

    cfg: MaskingConfig

    def __init__(self, settings: MaskingConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.magnitude: Tensor = nn.Buffer(torch.zeros(d_sae))
        self.frequency: Tensor = nn.Buffer(torch.zeros(d_sae))
        self.contribution: Tensor = nn.Buffer(torch.zeros(d_sae))
        self.removed = torch.zeros(())

    def importance(self) -> Float[Tensor, " d_sae"]:
        """I per latent: the chosen EMAs, each divided by its mean over latents, averaged or multiplied."""
        parts = [getattr(self, name) for name in self.cfg.components]
        stacked = torch.stack([part / part.mean().clamp_min(1e-12) for part in parts])
        return stacked.mean(dim=0) if self.cfg.combine == "mean" else stacked.prod(dim=0)

    def threshold(self, importance: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """theta = mu + c sigma over the latents with a non-zero EMA (or over all)."""
        counted = self.magnitude > 0 if self.cfg.population == "nonzero" else torch.ones_like(importance)
        weight = counted.to(importance.dtype)
        n = weight.sum().clamp_min(1.0)
        mean = (importance * weight).sum() / n
        variance = ((importance - mean).square() * weight).sum() / n
        return mean + self.cfg.c * variance.sqrt()

    @torch.no_grad()
    def before_update(self, sae: Autoencoder, step: Step) -> None:
        f = step.latents if self.cfg.fed_by == "pre_mask" else step.f
        # Of a batch's whole activation, what a mask at these probabilities takes away.
        whole = step.latents.mean()
        self.removed = (self.probability * whole).sum() / whole.sum().clamp_min(1e-12)
        moving_average(self.magnitude, whole if f is step.latents else f.mean(), self.cfg.decay)
        moving_average(self.frequency, f.rate(), self.cfg.decay)
        gain = f.mean_square() * sae.W_dec.square().sum(dim=1)
        if "contribution" in self.cfg.components and self.cfg.contribution == "leave_one_out":
            masked = step.index >= self.cfg.warmup_steps
            x_hat = step.latents.decode(sae.W_dec) + sae.b_dec if masked else step.x_hat
            # E[f_i d_i.e] = d_i.E[f_i e]: one product for all latents.
            gain = gain + 2.0 * f.mean_product(step.x - x_hat.detach()).mul_(sae.W_dec).sum(dim=1)
        moving_average(self.contribution, gain.clamp_min(0.0), self.cfg.decay)
        importance = self.importance()
        theta = self.threshold(importance)
        below = ((theta - importance) / theta.clamp_min(1e-12)).clamp_min(0.0)
        # theta <= 0 (a low c) is under every importance: nothing is masked.
        self.probability.copy_(torch.where(theta > 0, 1.0 - torch.exp(-self.cfg.r * below), 0.0))

    @torch.no_grad()
    def finish(self, sae: Autoencoder) -> None:
        """Fold the inference rule into the encoder."""
        if self.cfg.inference != "off":
            gain = 1.0 - self.probability if self.cfg.inference == "scale" else (self.probability == 0).to(sae.dtype)
            for name in ("W_enc", *sae.offsets):
                getattr(sae, name).mul_(gain)

    def log(self) -> dict[str, float]:
        return super().log() | {"removed": float(self.removed)}


class DropoutConfig(MechanismConfig):
    """The control for ATM: every latent masked with the same probability, whatever its importance."""

    probability: float = Field(ge=0.0, lt=1.0)
    warmup_steps: Steps = 1000


@mechanism("dropout", DropoutConfig)
class UniformDropout(Masking):
    """The control for ATM: every latent is masked with the same probability at each step, whatever its importance."""

    cfg: DropoutConfig

    def __init__(self, settings: DropoutConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.probability.fill_(settings.probability)


RED = Look("#d55e00", "X", "-.")
DROPOUT: dict[str, Any] = STANDARD | {"dropout": {"probability": 0.3}}
LI_AND_REN = (
    "Li and Ren 2025, *Time-Aware Feature Selection: Adaptive Temporal Masking for Stable Sparse Autoencoder "
    "Training*, arXiv 2510.08855"
)
PINK = Look("#cc78bc", "v", (0, (1, 2)))
register(Method("atm", "ATM", STANDARD | {"masking": {}}, RED, toy_rate=5e-2, papers=(LI_AND_REN,)))
register(Method("dropout", "Uniform dropout", DROPOUT, PINK, toy_rate=5e-2, papers=(HUBEN, LI_AND_REN)))
PAPER_ATM = PAPER | {"masking": {}}
register(Method("paper_atm", "ATM (paper's recipe)", PAPER_ATM, RED, shown="as written", papers=(LI_AND_REN,)))
# The c and r that suited ATM best on pocket, on seeds that are judged nowhere.
MASKED, SLATE = NESTED | {"masking": {"c": 0.0, "r": 2.0}}, Look("#999999", "X", (0, (5, 1, 1, 1)))
topk_method("masked_matryoshka", "Matryoshka (4 levels), ATM's mask", MASKED, SLATE, **ON_TOYS)
