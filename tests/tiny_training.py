"""Small pieces of a training run: a step made by hand, and a store whose rows have structure to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Step
from sae_lib.autoencoders.config import config_class, sae_config
from sae_lib.autoencoders.latents import Latents
from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import DataConfig
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.mechanisms import METHODS
from sae_lib.training.recipes import TrainingConfig, merged, method_recipe
from tests.tiny_models import VOCABULARY, random_tokens

D_IN, D_SAE = 8, 16
DATA = DataConfig(
    train_tokens=1500, held_out_contexts=1, calibration_contexts=1, window=4, batch_tokens=64, shard_rows=700
)


def make_step(f: Tensor, **known: Any) -> Step:
    """A step with these latents; without more, `x` is zero and every row but the first has a predecessor."""
    linked = torch.ones(len(f), dtype=torch.bool)
    linked[0] = False
    values: dict[str, Any] = {
        "index": 0, "total": 100, "x": torch.zeros(len(f), 2), "has_predecessor": linked,
        "dead": torch.zeros(f.shape[1], dtype=torch.bool), "any_dead": False,
        "generator": torch.Generator().manual_seed(0), "latents": Latents(f), "f": Latents(f),
        "reconstruction": torch.tensor(1.0),
        "firing_rate": (f > 0).float().mean(dim=0),
    }  # fmt: skip
    return Step(**(values | known))


def tiny_store(folder: Path) -> ActivationStore:
    """1,600 rows or so in R^8: each token has a direction of its own, each position adds a little."""
    table = torch.randn(VOCABULARY, D_IN, generator=torch.Generator().manual_seed(1)) * 3.0

    def residual_stream(tokens: Tensor) -> Tensor:
        position = torch.arange(tokens.shape[1]) / 20.0
        return table[tokens] + position[:, None]

    lm = LanguageModel.__new__(LanguageModel)
    lm.name, lm.identity, lm.layer, lm.d_in, lm.dtype = "tiny", "t" * 64, 1, D_IN, torch.float32
    lm.vocab_size, lm.special_ids, lm.device = VOCABULARY, frozenset({0, 1, 2, 3}), torch.device("cpu")
    lm.max_positions = None
    lm.residual_stream = residual_stream  # type: ignore[method-assign]
    return harvest(lm, random_tokens(120, 16, seed=2), folder, shard_rows=DATA.shard_rows, max_rows=1500)


def tiny_config(method: str, overrides: dict[str, Any] | None = None) -> Any:
    """A method's recipe for 16 latents, with its schedules at a hundredth and a learning rate for tens of steps."""
    kind = config_class(METHODS[method].recipe["architecture"])
    knob = kind.knob
    values: dict[str, Any] = {"optimizer": {"learning_rate": 1e-2}, "dead_after_tokens": 200}
    levels = len(METHODS[method].recipe.get("shares", ()))
    values |= {} if knob == "l1_coefficient" else {knob: max(3, levels)}
    if METHODS[method].recipe["architecture"] == "lista_matryoshka":
        # Prefixes that 16 latents can hold and that learn in tens of steps; k stays, since the loss may rise with it.
        values |= {"prefixes": (1 / 4, 1 / 2, 1.0), "k_annealing": {"start": 1.0}}
    return sae_config(method_recipe(method, D_SAE, merged(values, overrides or {}), 0.01))


def tiny_training(**changes: Any) -> TrainingConfig:
    values = {
        "d_sae": D_SAE,
        "steps": 40,
        "seeds": (0,),
        "ablation_seeds": (0,),
        "log_every": 5,
        "checkpoint_every": 10,
    }
    return TrainingConfig.model_validate(values | changes)
