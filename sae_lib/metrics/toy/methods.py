"""What is trained on a toy: the methods of the main table at a toy's size, and controls for the temporal penalty.

The sparsity coefficient at which a method has a given L0, from a few that were tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_lib.autoencoders.config import TOPK_FAMILY, SAEConfig
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import Toy
from sae_lib.training.recipes import METHODS, merged, method_recipe


def crossing(values: Sequence[float], l0: Sequence[float], target: float) -> float:
    """The value where log L0, linear in log value between neighbours, meets log target; the smallest one, if several.

    Where no two neighbours bracket the target, the value that came nearest: beyond the range lies what was not seen,
    and a method may collapse there.

    >>> round(crossing([0.01, 0.1], [4.0, 1.0], 2.0), 4)
    0.0316
    """
    order = np.argsort(values)
    x, y = np.log(np.array(values)[order]), np.log(np.maximum(np.array(l0)[order], 1e-3)) - np.log(target)
    for i in range(len(x) - 1):
        if y[i] * y[i + 1] <= 0 and y[i] != y[i + 1]:
            return float(np.exp(x[i] - y[i] / (y[i + 1] - y[i]) * (x[i + 1] - x[i])))
    return float(np.array(values)[order][np.abs(y).argmin()])


PUBLISHED_STEPS = 4882  # the recipes' counts of steps and momenta are for runs of this length
# A toy has 20 latents and some hundred steps: at these rates each architecture has settled by then.
LEARNING_RATES = {
    "standard": 5e-2, "gated": 2e-2, "topk": 1e-2, "batchtopk": 1e-2, "matryoshka": 1e-2, "jumprelu": 2e-2,
}  # fmt: skip
GATED_L1 = 10.0  # the Gated SAE's L1 penalty is on the gate alone; it takes so much more for the same L0
L1_COEFFICIENT = 0.05  # until it is matched

# Standard with nothing but a penalty on changes of the latents, alpha as published, lambda_2 large enough to matter.
# Against a detached predecessor the gradient of the penalty is half of that of 2 sum Var(f): the variance penalty gets
# half the coefficient, so that all three are the same on tokens without order.
PAIRINGS = {"temporal_strong": "adjacent_token", "temporal_previous": "previous_batch", "variance": "variance"}
# Three parents, then as many as families have levels of detail, then all: 3, 8 and 20 of 20 latents.
PREFIXES = (3 / 20, 8 / 20, 1.0)

TOY_METHODS = (
    "standard", "gated", "topk", "batchtopk", "matryoshka", "jumprelu", "temporal_sae", *PAIRINGS, "atm", "dropout",
)  # fmt: skip


def toy_config(
    method: str, toy: Toy, settings: ToyConfig | None = None, overrides: Mapping[str, Any] | None = None
) -> SAEConfig:
    """The recipe of `method` at the size of `toy`: one latent per feature; schedules and momenta for `settings.steps`.

    `k` is 1, the nearest whole number to the true L0 of the toys, and JumpReLU's target is the true L0 itself.
    """
    settings = settings or ToyConfig()
    base, extra = _recipe(method, settings)
    architecture = extra.get("architecture", METHODS[base]["architecture"])
    values: dict[str, Any] = {
        "dead_after_tokens": settings.steps * settings.batch // 10,
        "optimizer": {"learning_rate": LEARNING_RATES[architecture]},
    }
    if architecture in TOPK_FAMILY:
        values |= {"k": 1}
    elif architecture == "jumprelu":
        values |= {"target_l0": toy.true_l0}
    else:
        values |= {"l1_coefficient": L1_COEFFICIENT * (GATED_L1 if architecture == "gated" else 1.0)}
    values = merged(merged(values, extra), dict(overrides or {}))
    return SAEConfig.model_validate(method_recipe(base, toy.n_features, values, settings.steps / PUBLISHED_STEPS))


def _recipe(method: str, settings: ToyConfig) -> tuple[str, dict[str, Any]]:
    """The main table's recipe that `method` starts from, and what it changes."""
    if method in PAIRINGS:
        share = 0.5 if method == "variance" else 1.0
        penalty = {"coefficient": share * settings.temporal_coefficient, "pairing": PAIRINGS[method]}
        return "standard", {"temporal": as_published("temporal", settings) | penalty}
    if method == "matryoshka":
        return "batchtopk", {"architecture": "matryoshka", "prefixes": PREFIXES}
    return method, {}


def as_published(mechanism: str, settings: ToyConfig) -> dict[str, Any]:
    """The section of one of TemporalSAE's mechanisms, its counts of steps and momenta scaled to `settings.steps`."""
    section: dict[str, Any] = method_recipe("temporal_sae", 1, {}, settings.steps / PUBLISHED_STEPS)[mechanism]
    return section


def sparsity_knob(config: SAEConfig) -> str:
    """The field of `config` that sets its sparsity."""
    if config.architecture in TOPK_FAMILY:
        return "k"
    return "target_l0" if config.architecture == "jumprelu" else "l1_coefficient"


def at_level(config: SAEConfig, value: float) -> SAEConfig:
    """`config` with its sparsity set to `value`."""
    return SAEConfig.model_validate(config.model_dump() | {sparsity_knob(config): value})
