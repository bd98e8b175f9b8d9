"""TemporalSAE's second mechanism: features that hardly fire are started again from badly reconstructed inputs."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import Interval, MechanismConfig, Momentum, Steps
from sae_lib.mechanisms.base import Mechanism, mechanism, moving_average

ALIVE_FRACTION = 0.2  # of the mean norm of the alive encoder rows, for `encoder_norm: alive_fraction`


class ResamplingConfig(MechanismConfig):
    """TemporalSAE Eq. 5-6: latents whose activation-rate EMA is under the threshold are re-initialised."""

    threshold: float | None = Field(0.005, gt=0.0, lt=1.0)
    """Activation rate under which a latent counts as dead; null: nothing is resampled."""
    momentum: Momentum = 0.99
    warmup_steps: Steps = 1000
    warmup_interval: Interval = 100
    interval: Interval = 500
    error_power: Literal[1, 2] = 1
    """Inputs are drawn with probability proportional to this power of their reconstruction error ||x - x_hat||."""
    encoder_norm: Literal["unit", "alive_fraction"] = "unit"
    """Norm of a new encoder row: 1 as written, or 0.2 x the mean norm of the alive rows."""
    stop_fraction: float = Field(1.0, gt=0.0, le=1.0)
    """No resampling after this share of the training steps."""


@mechanism("resampling", ResamplingConfig)
class Resampling(Mechanism):
    """h_t = gamma h_{t-1} + (1 - gamma) 1[f_t > 0] (TemporalSAE Eq. 5). Every 100 steps in warm-up and every 500 after
    it (Eq. 6), each latent with h < theta gets w_e = w_d = x_k / ||x_k||, b_e = 0 and fresh optimiser state; x_k is
    drawn from the batch with probability proportional to its reconstruction error.

    theta = 0.005 as published is far from "dead": it restarts every latent that fires on fewer than one token in 200.
    """

    cfg: ResamplingConfig

    def __init__(self, settings: ResamplingConfig, d_sae: int) -> None:
        super().__init__(settings, d_sae)
        self.rate: Tensor = nn.Buffer(torch.zeros(d_sae))
        self.resampled: Tensor = nn.Buffer(torch.zeros((), dtype=torch.long))

    def due(self, step: Step) -> bool:
        """Whether latents are resampled after this step (Eq. 6)."""
        done = step.index + 1
        interval = self.cfg.warmup_interval if done < self.cfg.warmup_steps else self.cfg.interval
        stopped = self.cfg.threshold is None or done > self.cfg.stop_fraction * step.total
        return not stopped and done % interval == 0

    @torch.no_grad()
    def before_update(self, sae: Autoencoder, step: Step) -> None:
        moving_average(self.rate, step.firing_rate, self.cfg.momentum)

    @torch.no_grad()
    def after_update(self, sae: Autoencoder, optimizer: torch.optim.Optimizer, step: Step) -> None:
        if not self.due(step):
            return
        alive = self.rate >= (self.cfg.threshold or 0.0)
        dead = (~alive).nonzero().squeeze(1)
        if not len(dead):
            return
        error = (step.x - step.x_hat.detach()).square().sum(dim=1)
        # The floor lets the draw go on where fewer inputs than dead latents have any error.
        weight = (error.sqrt() if self.cfg.error_power == 1 else error).clamp_min(1e-12)
        rows = torch.multinomial(weight, len(dead), replacement=len(dead) > len(weight), generator=step.generator)
        direction = step.x[rows] / step.x[rows].norm(dim=1, keepdim=True).clamp_min(1e-8)
        norm: Tensor | float = 1.0
        if self.cfg.encoder_norm == "alive_fraction":
            norms = sae.W_enc.norm(dim=0)[alive]
            norm = ALIVE_FRACTION * (norms.sum() / len(norms) if len(norms) else 1.0)
        sae.W_enc.index_copy_(1, dead, (direction * norm).T.to(sae.dtype))
        sae.W_dec.index_copy_(0, dead, direction.to(sae.dtype))
        for name, start in sae.starts().items():
            sae.get_parameter(name).index_fill_(0, dead, start)
        for tensor, dim in sae.per_latent():
            for moment in optimizer.state.get(tensor, {}).values():
                if isinstance(moment, Tensor) and moment.shape == tensor.shape:
                    moment.index_fill_(dim, dead, 0.0)
        self.resampled += len(dead)

    def log(self) -> dict[str, float]:
        count = float(self.resampled)
        self.resampled.zero_()
        return {"resampled": count}
