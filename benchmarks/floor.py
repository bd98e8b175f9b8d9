"""What a training step cannot do without, measured: five matrix products and one pass over the optimiser's state.

    x W_enc        [batch, d_in] x [d_in, d_sae]     encoder
    f W_dec        [batch, d_sae] x [d_sae, d_in]    decoder
    g W_dec^T      [batch, d_in] x [d_in, d_sae]     gradient of the latents
    f^T g          [d_sae, batch] x [batch, d_in]    gradient of W_dec
    x^T h          [d_in, batch] x [batch, d_sae]    gradient of W_enc

Adam reads weight, gradient and two moments and writes weight and moments, in float32: 28 bytes per weight, at the rate
of a sum of two arrays of that size. An SAE that does less than these five (sparse products of k latents) can go below.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sae_lib.study import plan
from sae_lib.study.plan import ADAM_BYTES

BYTES_PER_SUM = 12  # two numbers read, one written


def products(d_in: int, d_sae: int, batch: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """The five products, of random matrices."""
    x, g = (torch.randn(batch, d_in, device=device).to(dtype) for _ in range(2))
    f, h = (torch.randn(batch, d_sae, device=device).to(dtype) for _ in range(2))
    w_enc = torch.randn(d_in, d_sae, device=device).to(dtype)
    w_dec = torch.randn(d_sae, d_in, device=device).to(dtype)

    def run() -> None:
        for left, right in ((x, w_enc), (f, w_dec), (g, w_dec.T), (f.T, g), (x.T, h)):
            torch.mm(left, right)

    return run


def encoder(d_in: int, d_sae: int, batch: int, device: str) -> Callable[[], None]:
    """The first of them alone, in float32, as an SAE multiplies by its W_enc."""
    x, w_enc = torch.randn(batch, d_in, device=device), torch.randn(d_sae, d_in, device=device)

    def run() -> None:
        torch.mm(x, w_enc.T)

    return run


def memory_pass(d_in: int, d_sae: int, device: str) -> Callable[[], None]:
    """A sum of two float32 arrays with as many entries as the SAE has weights."""
    a, b, total = (torch.ones(2 * d_in * d_sae, device=device) for _ in range(3))

    def run() -> None:
        torch.add(a, b, out=total)

    return run


def floor_seconds(product_seconds: float, memory_seconds: float) -> float:
    """Seconds per step at least, from the times of `products` and `memory_pass`."""
    return product_seconds + memory_seconds * ADAM_BYTES / BYTES_PER_SUM


def product_flop(d_in: int, d_sae: int, batch: int) -> int:
    """Floating-point operations of the five products.

    >>> round(product_flop(2304, 16384, 2048) / 1e9)
    773
    """
    return 5 * plan.product_flop(d_in, d_sae, batch)
