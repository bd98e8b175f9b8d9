"""What every training run of a profile shares. In a module of its own, because the weights of an SAE depend on it and
on nothing else of a profile: an edit of a metric's settings makes no SAE stale."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sae_lib.util.strict import Seed, Strict


def distinct_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """A check for fields that list seeds."""
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are repeated: {list(seeds)}; a mean over copies has no spread")
    return seeds


class TrainingConfig(Strict):
    """What every SAE of the profile shares."""

    d_sae: int = Field(ge=1)
    steps: int = Field(ge=1)
    schedule_scale: float = Field(1.0, gt=0.0)
    """Factor on every count of steps in the recipes (warm-ups, resampling intervals), for runs shorter than theirs."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    ablation_seeds: tuple[Seed, ...] = Field(min_length=1)
    workers: int = Field(1, ge=1)
    """SAEs trained or evaluated side by side, each on one core (CPU only)."""
    log_every: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    autocast: Literal["none", "bfloat16"] = "none"
    """On a GPU: bfloat16 in and out of the products."""
    products: Literal["float32", "bfloat16"] = "float32"
    """On a CPU: what the factors of dense products are rounded to; sums and results are float32 in either case. A
    processor without units for that (AMX) multiplies in float32."""

    _seeds = field_validator("seeds", "ablation_seeds")(distinct_seeds)
