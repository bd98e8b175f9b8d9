"""ATM: features that look unimportant are switched off at random; and the control that does so to any feature."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import DropoutConfig, MaskingConfig
from sae_lib.mechanisms.base import Mechanism, moving_average


class AdaptiveTemporalMasking(Mechanism):
    """Three EMAs per latent - activation magnitude, activation frequency, reconstruction contribution - make an
    importance I. With theta = mu + c sigma over latents, a latent with I < theta is masked with probability

        p = 1 - exp(-r (theta - I) / theta)

    and 0 otherwise (ATM, section on adaptive masking). The mask is one draw per latent and step, shared by the batch,
    without rescaling; no gradient flows through p. The contribution of latent i is the rise in squared error if it
    were left out, E[f_i^2 ||d_i||^2 + 2 f_i d_i.(x - x_hat)], clamped at 0, on the reconstruction without masks.
    """

    magnitude: Tensor
    frequency: Tensor
    contribution: Tensor
    probability: Tensor
    keep_rate: Tensor

    def __init__(self, config: MaskingConfig, d_sae: int) -> None:
        super().__init__()
        self.cfg = config
        for name in ("magnitude", "frequency", "contribution", "probability"):
            self.register_buffer(name, torch.zeros(d_sae))
        self.register_buffer("keep_rate", torch.ones(()))
        self.needs_unmasked_reconstruction = "contribution" in config.components and (
            config.contribution == "leave_one_out"
        )

    def importance(self) -> Float[Tensor, " d_sae"]:
        """I per latent: the chosen EMAs, each divided by its mean over latents, averaged or multiplied."""
        parts = [getattr(self, name) for name in self.cfg.components]
        stacked = torch.stack([part / part.mean().clamp_min(1e-12) for part in parts])
        return stacked.mean(dim=0) if self.cfg.combine == "mean" else stacked.prod(dim=0)

    def threshold(self, importance: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """theta = mu + c sigma over the latents with a non-zero EMA (or over all)."""
        counted = (
            self.magnitude > 0 if self.cfg.population == "nonzero" else torch.ones_like(importance, dtype=torch.bool)
        )
        weight = counted.to(importance.dtype)
        n = weight.sum().clamp_min(1.0)
        mean = (importance * weight).sum() / n
        variance = ((importance - mean).square() * weight).sum() / n
        return mean + self.cfg.c * variance.sqrt()

    @torch.no_grad()
    def _update_probability(self) -> None:
        importance = self.importance()
        theta = self.threshold(importance)
        below = ((theta - importance) / theta.clamp_min(1e-12)).clamp_min(0.0)
        # theta <= 0 (a low c) is under every importance: nothing is masked.
        self.probability.copy_(torch.where(theta > 0, 1.0 - torch.exp(-self.cfg.r * below), 0.0))

    def mask(self, step: Step) -> Float[Tensor, "..."] | None:
        if step.index < self.cfg.warmup_steps:
            return None
        assert step.latents is not None
        shape = self.probability.shape
        if self.cfg.granularity == "activation":
            shape = torch.Size((step.latents.n_rows, step.latents.d_sae))
        return draw_mask(self.probability, shape, step, self.cfg.rescale, self.keep_rate)

    @torch.no_grad()
    def before_update(self, sae: Autoencoder, step: Step) -> None:
        assert step.latents is not None and step.f is not None
        f = step.latents if self.cfg.fed_by == "pre_mask" else step.f
        moving_average(self.magnitude, f.mean(), self.cfg.decay)
        moving_average(self.frequency, f.rate(), self.cfg.decay)
        gain = f.mean_square() * sae.W_dec.square().sum(dim=1)
        if self.needs_unmasked_reconstruction:
            masked = step.index >= self.cfg.warmup_steps
            x_hat = step.latents.decode(sae.W_dec) + sae.b_dec if masked else step.x_hat
            assert x_hat is not None
            # E[f_i d_i.e] = d_i.E[f_i e]: one product for all latents.
            gain = gain + 2.0 * f.mean_product(step.x - x_hat.detach()).mul_(sae.W_dec).sum(dim=1)
        moving_average(self.contribution, gain.clamp_min(0.0), self.cfg.decay)
        self._update_probability()

    @torch.no_grad()
    def finish(self, sae: Autoencoder) -> None:
        """Fold the inference rule into the encoder."""
        if self.cfg.inference == "off":
            return
        gain = 1.0 - self.probability if self.cfg.inference == "scale" else (self.probability == 0).to(sae.dtype)
        sae.scale_latents(gain)

    def log(self) -> dict[str, float]:
        return {"mask_rate": 1.0 - float(self.keep_rate)}


class UniformDropout(Mechanism):
    """The control for ATM: every latent is masked with the same probability at each step, whatever its importance."""

    keep_rate: Tensor
    probability: Tensor

    def __init__(self, config: DropoutConfig, d_sae: int) -> None:
        super().__init__()
        self.cfg = config
        self.register_buffer("probability", torch.full((d_sae,), config.probability))
        self.register_buffer("keep_rate", torch.ones(()))

    def mask(self, step: Step) -> Float[Tensor, "..."] | None:
        if step.index < self.cfg.warmup_steps:
            return None
        return draw_mask(self.probability, self.probability.shape, step, False, self.keep_rate)

    def log(self) -> dict[str, float]:
        return {"mask_rate": 1.0 - float(self.keep_rate)}


@torch.no_grad()
def draw_mask(
    probability: Float[Tensor, " d_sae"],
    shape: torch.Size,
    step: Step,
    rescale: bool,
    keep_rate: Float[Tensor, ""],
) -> Float[Tensor, "..."]:
    """Bernoulli(1 - p) of `shape`, divided by 1 - p if `rescale`; the share that is kept is written to `keep_rate`."""
    uniform = torch.rand(shape, generator=step.generator, device=probability.device)
    kept = (uniform >= probability).to(probability.dtype)
    keep_rate.copy_(kept.mean())
    return kept / (1.0 - probability).clamp_min(1e-6) if rescale else kept
