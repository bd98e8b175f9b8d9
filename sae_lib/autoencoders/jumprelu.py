"""The JumpReLU SAE: one learned threshold per latent."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step, architecture, indicator
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.autoencoders.latents import Entries, entries_above
from sae_lib.autoencoders.method import Look, Method, register


class _Jump(torch.autograd.Function):
    """(z H(z - theta), its mean L0 over `n_rows` rows). The gradient to theta goes through a rectangle of some width w:

    d(z H(z - theta)) / d theta ~ -(theta / w) rect((z - theta) / w), d H(z - theta) / d theta ~ -(1 / w) rect(...)

    Taken on z H(z - theta), as one release of a peer does, it would see only its upper half, and L0 would miss its
    target.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float, n_rows: int) -> tuple[Tensor, Tensor]:
        above = indicator(torch.gt, z, theta)
        ctx.save_for_backward(z, theta, above)
        ctx.bandwidth, ctx.n_rows = bandwidth, n_rows
        return z * above, above.sum(dtype=torch.float32) / n_rows

    @staticmethod
    def backward(ctx: Any, grad_f: Tensor, grad_l0: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, theta, above = ctx.saved_tensors
        distance = (z - theta).abs_()
        inside = torch.lt(distance, ctx.bandwidth / 2, out=distance)
        through_l0 = grad_l0 / ctx.n_rows * inside.sum_to_size(theta.shape)
        through_f = theta * inside.mul_(grad_f).sum_to_size(theta.shape)
        return grad_f * above, -(through_f + through_l0) / ctx.bandwidth, None, None


class JumpReLUConfig(SAEConfig):
    knob: ClassVar[str] = "target_l0"

    architecture: str = "jumprelu"
    target_l0: float = Field(gt=0.0)
    l0_coefficient: float = Field(1.0, ge=0.0)
    bandwidth: float = Field(1e-3, gt=0.0)
    initial_threshold: float = Field(1e-3, gt=0.0)


@architecture(JumpReLUConfig)
class JumpReLU(Autoencoder):
    """f = z H(z - theta), z = x W_enc + b_enc, L = ||x - x_hat||_2^2 + lambda (L0 / target - 1)^2, aiming at a given L0
    (Rajamanoharan et al. 2024, arXiv 2407.14435). `threshold` is fp32 and is kept above 0."""

    cfg: JumpReLUConfig
    offsets = ("b_enc", "threshold")
    threshold: Tensor

    def _product(self, x: Tensor, W_enc: Tensor, bias: Tensor) -> Tensor:
        """In fp32, under autocast too: above 0.25 bf16 is spaced wider than the kernel, which would miss most of it."""
        with torch.autocast(x.device.type, enabled=False):
            return super()._product(x, W_enc, bias)

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        return pre * indicator(torch.gt, pre, self.threshold.clamp_min(0.0))

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        # What the kernel reaches below the threshold has no activation, but a gradient.
        return entries_above(pre, self.threshold.detach().clamp_min(0.0) - self.cfg.bandwidth / 2)

    def activate_training(self, step: Step) -> Float[Tensor, "..."]:
        # Projected rather than clamped in the graph: a clamp has no gradient below 0, so the latent could never return.
        self.threshold.data.clamp_(min=0.0)
        (theta,) = step.at_places(self.threshold)
        f, step.kept = _Jump.apply(step.pre, theta, self.cfg.bandwidth, len(step.x))
        return f

    activate_entries = activate_training

    def sparsity_loss(self, step: Step) -> Float[Tensor, ""]:
        """`step.kept` is L0."""
        return self.cfg.l0_coefficient * self.sparsity_ramp(step) * (step.kept / self.cfg.target_l0 - 1.0).square()


# SAEBench's trainer, as dictionary_learning has it.
JUMPRELU: dict[str, Any] = {
    "architecture": "jumprelu",
    "sparsity_warmup_steps": 2000,
    "optimizer": {"learning_rate": 7e-5, "beta1": 0.0, "clip_norm": 1.0},
}
SOURCE = (
    "Rajamanoharan et al. 2024, *Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders*, "
    "arXiv 2407.14435"
)
register(Method("jumprelu", "JumpReLU", JUMPRELU, Look("#56b4e9", "^", ":"), toy_rate=2e-2, papers=(SOURCE,)))
