"""Passes over all latents of a batch, several made one by `torch.compile` (`training.compile`).

On a GPU a pass over `[batch, d_sae]` is a trip to memory and back, and TemporalSAE and ATM make several. On a CPU
latents are held by their entries, and there is nothing to gain.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BACKEND = "inductor"


def moments(
    f: Float[Tensor, "batch d_sae"],
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Share of the rows above zero, mean and mean square of each latent, in fp32."""
    f = f.float()
    return f.sign().mean(dim=0), f.mean(dim=0), f.square().mean(dim=0)


def squared_change(f: Float[Tensor, "batch d_sae"], paired: Float[Tensor, " pairs"], both: bool) -> Float[Tensor, ""]:
    """What `change.squared_change` gives."""
    f = f.float()
    before = f[:-1] if both else f[:-1].detach()
    return ((f[1:] - before).square() * paired[:, None]).sum()


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled once in this process, when it is first called."""
    plain = inspect.unwrap(function)  # without the shape checks that tests put around it
    return torch.compile(plain, backend=BACKEND, dynamic=False)
