"""What every training run of a profile shares. In a module of its own, because the weights of an SAE depend on it and
on nothing else of a profile: an edit of a metric's settings makes no SAE stale."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sae_lib.sae_config import Strict

Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
"""An integer that every generator here takes: PyTorch's, NumPy's and scikit-learn's."""


class DataConfig(Strict):
    """Sizes of the activation store and of its batches."""

    context_length: int = Field(128, ge=8)
    train_tokens: int = Field(ge=1)
    """Rows of the activation store (BOS and EOS not counted)."""
    held_out_contexts: int = Field(ge=1)
    calibration_contexts: int = Field(ge=1)
    window: int = Field(ge=1)
    """Consecutive tokens that stay together in a batch; 1 is the ordinary shuffle of single tokens."""
    batch_tokens: int = Field(ge=1)
    shard_rows: int = Field(ge=1)
    store: Literal["disk", "memory", "auto"] = "auto"
    """Where the activations are kept. On disk they are harvested once, and held in memory too where they fit. In memory
    alone (the GPU's, where there is one) they need no disk, but every process that reads them harvests again, such as
    the kernel of each notebook. auto: on disk, or in memory where the disk is too small."""
    stream_seed: Seed = 0
    """Order of the windows: the same for every method and seed."""

    @model_validator(mode="after")
    def _whole_windows(self) -> DataConfig:
        if self.batch_tokens % self.window:
            nearest = max(1, round(self.batch_tokens / self.window)) * self.window
            raise ValueError(f"batch_tokens {self.batch_tokens} is no multiple of window {self.window}; try {nearest}")
        if self.batch_tokens > self.train_tokens:
            raise ValueError(f"batch_tokens {self.batch_tokens} is above train_tokens {self.train_tokens}")
        return self


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
    compile: bool = False
    """torch.compile for passes over all latents of a batch, which is for GPUs. Changes rounding only."""
    shard_dictionary: bool = False
    """In a distributed run, train one SAE after the other on all GPUs together, each with a piece of the dictionary,
    instead of one SAE on each: for SAEs whose training does not fit on one. The weights agree but for rounding, so this
    is not part of what makes a run another run."""

    _seeds = field_validator("seeds", "ablation_seeds")(distinct_seeds)
