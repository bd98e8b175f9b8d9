"""What the two papers add to an SAE. Each is a small object with state; any architecture can use any."""

from __future__ import annotations

from sae_lib.autoencoders.config import SAEConfig
from sae_lib.mechanisms.adaptive_temporal_masking import AdaptiveTemporalMasking, UniformDropout
from sae_lib.mechanisms.base import Mechanism
from sae_lib.mechanisms.gradient_scaling import GradientScaling
from sae_lib.mechanisms.resampling import Resampling
from sae_lib.mechanisms.temporal_penalty import TemporalPenalty

__all__ = [
    "AdaptiveTemporalMasking",
    "GradientScaling",
    "Mechanism",
    "Resampling",
    "TemporalPenalty",
    "UniformDropout",
    "build_mechanisms",
]


def build_mechanisms(config: SAEConfig, d_in: int) -> list[Mechanism]:
    """The mechanisms that `config` switches on, in the order in which they act."""
    chosen: list[Mechanism] = []
    if config.masking:
        chosen.append(AdaptiveTemporalMasking(config.masking, config.d_sae))
    if config.dropout:
        chosen.append(UniformDropout(config.dropout, config.d_sae))
    if config.temporal:
        chosen.append(TemporalPenalty(config.temporal))
    if config.gradient_scaling:
        chosen.append(GradientScaling(config.gradient_scaling, config.d_sae))
    if config.resampling:
        chosen.append(Resampling(config.resampling, config.d_sae))
    return chosen
