"""The hooks through which a mechanism takes part in training, and how one is added."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.config import SECTIONS, MechanismConfig, SAEConfig


class Mechanism(nn.Module):
    """Hooks in the order of one optimiser step. State lives in buffers, which checkpoints save; one that has dimensions
    counts the latents in its last."""

    term: ClassVar[str]
    """Its section of a configuration, which names its `loss` in the training history."""

    def __init__(self, settings: Any, d_sae: int) -> None:
        super().__init__()
        self.cfg = settings

    def mask(self, step: Step) -> Float[Tensor, "..."] | None:
        """Factor on the latents between encoder and decoder, broadcast to `[batch, d_sae]`; None leaves them alone."""
        return None

    def loss(self, step: Step) -> Float[Tensor, ""] | None:
        """A term added to the loss, coefficient included."""
        return None

    def before_update(self, sae: Autoencoder, step: Step) -> None:
        """After the backward pass, before clipping and the optimiser: see statistics, change gradients."""

    def after_update(self, sae: Autoencoder, optimizer: torch.optim.Optimizer, step: Step) -> None:
        """After the optimiser's step: change weights."""

    def finish(self, sae: Autoencoder) -> None:
        """Once, after the last step: write what evaluation needs into the weights."""

    def log(self) -> dict[str, float]:
        """Figures for the training history since the last call."""
        return {}


def moving_average(average: Tensor, value: Tensor, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * value, in place."""
    average.mul_(momentum).add_(value, alpha=1.0 - momentum)


MECHANISMS: dict[str, type[Mechanism]] = {}
"""By the name of their section in an `SAEConfig`, in the order in which they act."""
Kind = TypeVar("Kind", bound=type[Mechanism])


def mechanism(section: str, settings: type[MechanismConfig]) -> Callable[[Kind], Kind]:
    """Decorates the `Mechanism` that the settings in `section` of an SAE's configuration switch on."""

    def registered(kind: Kind) -> Kind:
        SECTIONS[section], MECHANISMS[section], kind.term = settings, kind, section
        return kind

    return registered


def build_mechanisms(config: SAEConfig) -> list[Mechanism]:
    """The mechanisms that `config` switches on, in the order in which they act."""
    return [kind(config.get(name), config.d_sae) for name, kind in MECHANISMS.items() if config.get(name) is not None]
