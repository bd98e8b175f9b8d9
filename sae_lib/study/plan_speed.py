"""How fast this machine is beside the one that a profile's rates were measured on.

A matrix product of a training step's shape is timed for a fraction of a second. The best time counts, so that other
work on the machine changes it little: it says what the machine can do, not what it does while it is shared.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lib.profiles.profile import Profile

SECONDS = 0.25
FEWEST = 3


def gemm_gflops(rows: int, d_in: int, d_sae: int, dtype: str, device: str) -> float:
    """GFLOP/s of `[rows, d_in] @ [d_in, d_sae]`, the encoder's product, on a GPU or on one core."""
    import torch

    kind = getattr(torch, dtype)
    x = torch.ones(rows, d_in, dtype=kind, device=device)
    weight = torch.ones(d_in, d_sae, dtype=kind, device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best, count, end = float("inf"), 0, time.perf_counter() + SECONDS
        while count < FEWEST or time.perf_counter() < end:
            started = time.perf_counter()
            x @ weight
            if device != "cpu":
                torch.cuda.synchronize()
            best, count = min(best, time.perf_counter() - started), count + 1
    finally:
        torch.set_num_threads(threads)
    return 2e-9 * rows * d_in * d_sae / best


def speed_here(profile: Profile, d_in: int) -> float | None:
    """How many times as fast this machine is as the one named in `estimates.hardware`; None without a GPU that the
    profile needs."""
    on_gpu = profile.estimates.needs_gpu
    if on_gpu and not has_gpu():
        return None
    data, training = profile.data, profile.training
    dtype = "float32" if training.autocast == "none" else training.autocast
    rate = gemm_gflops(data.batch_tokens, d_in, training.d_sae, dtype, "cuda" if on_gpu else "cpu")
    return rate / profile.estimates.gemm_gflops


def has_gpu() -> bool:
    """Whether torch can use a GPU here."""
    import torch

    return bool(torch.cuda.is_available())
