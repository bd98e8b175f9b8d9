"""What defines one SAE: architecture, the papers' mechanisms, the optimiser. Typed, validated, no torch.

The defaults of each mechanism are the papers' equations as written; every other reading is a named switch beside it.
The recipe of each method is in `training/recipes.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sae_lib.util.strict import Strict


class TemporalConfig(Strict):
    """TemporalSAE Eq. 3-4: alpha_t ||f_t - f_{t-1}||^2, alpha_t = sigmoid(5 (beta_t - L_recon))."""

    coefficient: float = Field(1e-4, ge=0.0)
    """lambda_2 of Eq. 8."""
    pairing: Literal["adjacent_token", "previous_batch", "variance", "none"] = "adjacent_token"
    """What f_{t-1} is: the previous token of the context; the same row of the previous optimiser step; a shuffled row,
    written as the variance penalty 2 sum Var(f) that it amounts to; or nothing."""
    gradient: Literal["detached", "both"] = "detached"
    """Whether the gradient also flows through f_{t-1}."""
    scale: Literal["raw", "relative", "constant"] = "raw"
    """alpha as written; with (beta - L) / beta in place of beta - L; or alpha = 1."""
    gradient_through_scale: bool = False
    """Whether alpha is differentiated: it would reward a higher reconstruction loss."""
    tracker: Literal["ema", "decayed_max"] = "ema"
    """beta as the formula says (EMA), or the maximum that the text says, decaying with the same momentum."""
    tracker_start: Literal["first_loss", "zero"] = "first_loss"
    momentum: float = Field(0.99, ge=0.0, lt=1.0)
    sharpness: float = Field(5.0, gt=0.0)

    @model_validator(mode="after")
    def _gradient_has_two_ends(self) -> TemporalConfig:
        if self.gradient == "both" and self.pairing != "adjacent_token":
            raise ValueError(f"gradient 'both' needs pairing 'adjacent_token'; with '{self.pairing}' take 'detached'")
        return self


class ResamplingConfig(Strict):
    """TemporalSAE Eq. 5-6: latents whose activation-rate EMA is under the threshold are re-initialised."""

    threshold: float | None = Field(0.005, gt=0.0, lt=1.0)
    """Activation rate under which a latent counts as dead; null: nothing is resampled."""
    momentum: float = Field(0.99, ge=0.0, lt=1.0)
    warmup_steps: int = Field(1000, ge=0)
    warmup_interval: int = Field(100, ge=1)
    interval: int = Field(500, ge=1)
    error_power: Literal[1, 2] = 1
    """Inputs are drawn with probability proportional to this power of their reconstruction error ||x - x_hat||."""
    encoder_norm: Literal["unit", "alive_fraction"] = "unit"
    """Norm of a new encoder row: 1 as written, or 0.2 x the mean norm of the alive rows."""
    stop_fraction: float = Field(1.0, gt=0.0, le=1.0)
    """No resampling after this share of the training steps."""


class GradientScalingConfig(Strict):
    """TemporalSAE Eq. 7: gradients of latent i times clip(1 / (eps + h_i), s_min, s_max)."""

    s_min: float = Field(0.1, gt=0.0)
    s_max: float = Field(10.0, gt=0.0)
    epsilon: float = Field(1e-6, gt=0.0)
    momentum: float = Field(0.99, ge=0.0, lt=1.0)
    placement: Literal["pre_adam", "post_adam"] = "pre_adam"
    """Scale the gradient (as written; Adam then divides most of it out) or the optimiser's update."""

    @model_validator(mode="after")
    def _ordered(self) -> GradientScalingConfig:
        if self.s_min > self.s_max:
            raise ValueError(f"s_min {self.s_min} is above s_max {self.s_max}")
        return self


Component = Literal["magnitude", "frequency", "contribution"]


class MaskingConfig(Strict):
    """ATM: latents with importance under theta = mu + c sigma are masked with p = 1 - exp(-r (theta - I) / theta)."""

    c: float = 1.0
    r: float = Field(1.0, ge=0.0)
    components: tuple[Component, ...] = Field(("magnitude", "frequency", "contribution"), min_length=1)
    """The EMAs that make up the importance."""
    combine: Literal["mean", "product"] = "mean"
    """Each EMA is divided by its mean over latents; then their mean, or their product."""
    contribution: Literal["leave_one_out", "energy"] = "leave_one_out"
    """E[f^2 ||d||^2 + 2 f d.(x - x_hat)], clamped at 0, or E[f^2 ||d||^2] alone."""
    decay: float = Field(0.99, ge=0.0, lt=1.0)
    fed_by: Literal["pre_mask", "post_mask"] = "pre_mask"
    population: Literal["nonzero", "all"] = "nonzero"
    """The latents over which mu and sigma are taken."""
    granularity: Literal["feature", "activation"] = "feature"
    """One draw per latent and step, shared by the batch, or one per activation."""
    rescale: bool = False
    """Divide what is kept by 1 - p, as dropout does."""
    warmup_steps: int = Field(1000, ge=0)
    inference: Literal["off", "prune", "scale"] = "off"
    """At evaluation: no mask; latents with importance < theta removed; or every latent scaled by 1 - p."""

    @model_validator(mode="after")
    def _distinct(self) -> MaskingConfig:
        if len(set(self.components)) != len(self.components):
            raise ValueError(f"components are repeated: {self.components}")
        return self


class DropoutConfig(Strict):
    """The control for ATM: every latent masked with the same probability, whatever its importance."""

    probability: float = Field(ge=0.0, lt=1.0)
    warmup_steps: int = Field(1000, ge=0)


class OptimizerConfig(Strict):
    """Adam or AdamW with linear warm-up and a linear decay to zero at the end."""

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(3e-4, gt=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    clip_norm: float | None = Field(None, gt=0.0)
    warmup_steps: int = Field(1000, ge=0)
    decay_fraction: float = Field(0.2, ge=0.0, le=1.0)
    """Share of the steps, at the end, over which the learning rate falls to zero."""


TOPK_FAMILY = ("topk", "batchtopk", "matryoshka")
"""The architectures whose sparsity is set by k."""


class SAEConfig(Strict):
    """One SAE: everything but the data and the seed."""

    architecture: Literal["standard", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"] = "standard"
    d_sae: int = Field(ge=1)
    l1_coefficient: float = Field(0.0, ge=0.0)
    """lambda_1 of Eq. 8 (standard); of the gate's activations (gated)."""
    k: int | None = Field(None, ge=1)
    """Active latents per row (topk) or on average over the batch (batchtopk, matryoshka)."""
    prefixes: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = ()
    """Increasing fractions of d_sae, the last one 1: latents that reconstruct on their own (matryoshka)."""
    target_l0: float | None = Field(None, gt=0.0)
    l0_coefficient: float = Field(1.0, ge=0.0)
    """Weight of (L0 / target - 1)^2 (jumprelu)."""
    bandwidth: float = Field(1e-3, gt=0.0)
    initial_threshold: float = Field(1e-3, gt=0.0)
    auxk_coefficient: float = Field(1 / 32, ge=0.0)
    """Weight of the AuxK loss (topk, batchtopk, matryoshka)."""
    dead_after_tokens: int = Field(10_000_000, ge=1)
    """A latent is dead for AuxK when it has not fired for so many tokens."""
    threshold_momentum: float = Field(0.999, ge=0.0, lt=1.0)
    """Of the EMA that becomes the evaluation threshold (batchtopk, matryoshka)."""
    threshold_start_step: int = Field(1000, ge=0)
    """Step at which that EMA begins."""
    subtract_b_dec: bool = False
    """Encode x - b_dec instead of x."""
    normalize_inputs: bool = True
    """Train on inputs scaled to E||x||^2 = 1; the scale is folded into the saved weights."""
    unit_norm_decoder: bool = True
    """Keep decoder rows at norm 1, with the gradient parallel to them removed."""
    tied_init: bool = True
    """W_enc starts as W_dec^T."""
    encoder_init_norm: float = Field(1.0, gt=0.0)
    """Norm of each latent's encoder weights at the start."""
    sparsity_warmup_steps: int = Field(0, ge=0)
    """The sparsity coefficient rises linearly from 0 over so many steps."""
    temporal: TemporalConfig | None = None
    resampling: ResamplingConfig | None = None
    gradient_scaling: GradientScalingConfig | None = None
    masking: MaskingConfig | None = None
    dropout: DropoutConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _complete(self) -> SAEConfig:
        if self.architecture in TOPK_FAMILY:
            if self.k is None:
                raise ValueError(f"{self.architecture} needs k, the number of active latents")
            if self.k > self.d_sae:
                raise ValueError(f"k = {self.k} is above d_sae = {self.d_sae}; lower k or widen the SAE")
        if self.architecture == "matryoshka":
            self._check_prefixes()
        if self.architecture == "jumprelu":
            if self.target_l0 is None:
                raise ValueError("jumprelu needs target_l0, the number of active latents to reach")
            if self.target_l0 > self.d_sae:
                raise ValueError(f"target_l0 = {self.target_l0} is above d_sae = {self.d_sae}")
        if self.masking and self.dropout:
            raise ValueError("masking and dropout are both set; dropout is the control for masking, choose one")
        if self.masking and self.masking.inference == "scale" and self.architecture in TOPK_FAMILY:
            raise ValueError(f"masking.inference 'scale' would change what {self.architecture} selects; take 'off'")
        return self

    def _check_prefixes(self) -> None:
        given = ", ".join(f"{p:g}" for p in self.prefixes)
        if not self.prefixes or self.prefixes[-1] != 1.0 or list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(f"matryoshka needs prefixes, increasing fractions of d_sae that end in 1, not ({given})")
        sizes = self.prefix_sizes()
        if len({0, *sizes}) <= len(sizes):
            raise ValueError(
                f"prefixes ({given}) of d_sae = {self.d_sae} are {sizes} latents, but each must hold more latents "
                "than the one before it; leave one out or widen the SAE"
            )

    def prefix_sizes(self) -> tuple[int, ...]:
        """The number of latents in each of `prefixes`."""
        return tuple(round(fraction * self.d_sae) for fraction in self.prefixes)
