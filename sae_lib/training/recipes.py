"""The recipe of each method, as its authors give it; profiles override single values. No torch."""

from __future__ import annotations

from typing import Any

from sae_lib.autoencoders.config import TOPK_FAMILY, SAEConfig

# The papers' own training recipe (TemporalSAE section 5): raw activations, AdamW, clip 0.1.
PAPER: dict[str, Any] = {
    "architecture": "standard",
    "l1_coefficient": 0.04,
    "normalize_inputs": False,
    "optimizer": {"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01, "clip_norm": 0.1},
}
_TOPK: dict[str, Any] = {"subtract_b_dec": True, "optimizer": {"clip_norm": 1.0}}
_STANDARD: dict[str, Any] = {
    "architecture": "standard",
    "subtract_b_dec": True,
    "encoder_init_norm": 0.1,
    "sparsity_warmup_steps": 2000,
    "optimizer": {"learning_rate": 1e-3},
}

# Each method's recipe: SAEBench's trainers for the baselines (dictionary_learning), the papers for their own.
METHODS: dict[str, dict[str, Any]] = {
    "standard": _STANDARD,
    "gated": {
        "architecture": "gated",
        "subtract_b_dec": True,
        "sparsity_warmup_steps": 2000,
        "optimizer": {"learning_rate": 5e-5, "beta1": 0.0},
    },
    "topk": _TOPK | {"architecture": "topk"},
    "batchtopk": _TOPK | {"architecture": "batchtopk"},
    "matryoshka_2": _TOPK | {"architecture": "matryoshka", "prefixes": (0.25, 1.0)},
    # Groups of latents that double in size, the last one taking what is left: Bussmann et al. 2025 (2,048, 6,144,
    # 14,336, 30,720 of 65,536 latents, i.e. 1/32, 3/32, ...), here with four levels instead of five.
    "matryoshka_4": _TOPK | {"architecture": "matryoshka", "prefixes": (1 / 16, 3 / 16, 7 / 16, 1.0)},
    "jumprelu": {
        "architecture": "jumprelu",
        "sparsity_warmup_steps": 2000,
        "optimizer": {"learning_rate": 7e-5, "beta1": 0.0, "clip_norm": 1.0},
    },
    "temporal_sae": PAPER | {"temporal": {}, "resampling": {}, "gradient_scaling": {}},
    "atm": _STANDARD | {"masking": {}},
    "dropout": _STANDARD | {"dropout": {"probability": 0.3}},
    # The papers' recipe without mechanisms: what TemporalSAE is compared with when its parts are switched.
    "paper_standard": PAPER,
    "paper_atm": PAPER | {"masking": {}},
}


def merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it, nested mappings merged; a null removes a mechanism."""
    result = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result


def method_recipe(method: str, d_sae: int, overrides: dict[str, Any], schedule_scale: float) -> dict[str, Any]:
    """The recipe of `method` for a dictionary of `d_sae` latents, with every count of steps times `schedule_scale`.

    The published schedules count steps of runs of 5,000 and more; a shorter run keeps their proportions. Moving
    averages keep theirs too: a momentum m per step becomes m^(1 / schedule_scale).
    """
    recipe = merged(METHODS[method], {"d_sae": d_sae})
    if recipe["architecture"] in TOPK_FAMILY:
        # Gao et al. 2024: the learning rate falls with the square root of the width.
        recipe = merged(recipe, {"optimizer": {"learning_rate": 2e-4 / (d_sae / 2**14) ** 0.5}})
    # What an architecture needs may come with the overrides: the defaults are filled in without asking for it.
    scaled = SAEConfig.model_validate(recipe | {"architecture": "standard"}).model_dump(mode="json")
    for section, key in SCHEDULE_STEPS:
        where = scaled if section is None else scaled[section]
        if where is not None:
            least = 1 if key.endswith("interval") else 0
            where[key] = max(least, round(where[key] * schedule_scale))
    for section, key in SCHEDULE_MOMENTA:
        where = scaled if section is None else scaled[section]
        if where is not None:
            where[key] = where[key] ** (1.0 / schedule_scale)
    return merged(scaled | {"architecture": recipe["architecture"]}, overrides)


# (section, key) of every count of optimiser steps in an SAEConfig.
SCHEDULE_STEPS: tuple[tuple[str | None, str], ...] = (
    (None, "sparsity_warmup_steps"),
    (None, "threshold_start_step"),
    ("resampling", "warmup_steps"),
    ("resampling", "warmup_interval"),
    ("resampling", "interval"),
    ("masking", "warmup_steps"),
    ("dropout", "warmup_steps"),
    ("optimizer", "warmup_steps"),
)

# (section, key) of every momentum per optimiser step.
SCHEDULE_MOMENTA: tuple[tuple[str | None, str], ...] = (
    (None, "threshold_momentum"),
    ("temporal", "momentum"),
    ("resampling", "momentum"),
    ("gradient_scaling", "momentum"),
    ("masking", "decay"),
)
