"""What is trained on a toy; and the sparsity at which a method has a given L0, from a few that were tried."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_lib.autoencoders.config import SAEConfig, config_class, sae_config
from sae_lib.mechanisms import METHODS
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import Toy
from sae_lib.training.recipes import merged, method_recipe

PUBLISHED_STEPS = 4882  # the recipes' counts of steps and momenta are for runs of this length
L1_COEFFICIENT = 0.05  # until it is matched
# The penalty on changes, alpha as published, is given a lambda_2 large enough to matter. Against a detached predecessor
# the gradient of the penalty is half of that of 2 sum Var(f): the variance penalty gets half the coefficient, so that
# all three are the same on tokens without order.
SHARES = {"temporal_strong": 1.0, "temporal_previous": 1.0, "variance": 0.5}


def crossing(values: Sequence[float], l0: Sequence[float], target: float) -> float:
    """The value where log L0, linear in log value between neighbours, meets log target; the smallest one, if several.
    Where no two neighbours bracket the target, the value that came nearest: beyond the range a method may collapse.

    >>> round(crossing([0.01, 0.1], [4.0, 1.0], 2.0), 4)
    0.0316
    """
    order = np.argsort(values)
    x, y = np.log(np.array(values)[order]), np.log(np.maximum(np.array(l0)[order], 1e-3)) - np.log(target)
    found = zero(x, y)
    return float(np.array(values)[order][np.abs(y).argmin()]) if found is None else float(np.exp(found))


def zero(x: Float[np.ndarray, " level"], y: Float[np.ndarray, " level"]) -> float | None:
    """The first x at which y, linear between neighbours, is zero; None where it never is.

    >>> zero(np.array([0.0, 1.0, 3.0]), np.array([2.0, 1.0, -1.0]))
    2.0
    """
    for i in range(len(x) - 1):
        if y[i] * y[i + 1] <= 0 and y[i] != y[i + 1]:
            return float(x[i] - y[i] / (y[i + 1] - y[i]) * (x[i + 1] - x[i]))
    return None


def toy_methods() -> tuple[str, ...]:
    """The methods that the ground-truth study trains; `toy_config` knows all that have a `toy_rate`."""
    return tuple(key for key, method in METHODS.items() if method.toy_rate is not None and method.shown != "field")


def toy_config(
    method: str, toy: Toy, settings: ToyConfig | None = None, overrides: Mapping[str, Any] | None = None
) -> SAEConfig:
    """The recipe of `method` at the size of `toy`; schedules and momenta for `settings.steps`. `k` is the nearest whole
    number to the true L0, at least 1 (in a Tree SAE one for each level), and JumpReLU's target is the true L0
    itself."""
    settings, known = settings or ToyConfig(), METHODS[method]
    kind, levels = config_class(known.recipe["architecture"]), known.recipe.get("shares", ())
    told = {"k": max(1, round(toy.true_l0), len(levels)), "target_l0": toy.true_l0}
    values: dict[str, Any] = {
        "dead_after_tokens": settings.steps * settings.batch // 10,
        "optimizer": {"learning_rate": known.toy_rate},
        kind.knob: told.get(kind.knob, L1_COEFFICIENT * kind.l1_scale),
    }
    if method in SHARES:
        values["temporal"] = {"coefficient": SHARES[method] * settings.temporal_coefficient}
    values = merged(merged(values, known.toy), overrides or {})
    return sae_config(method_recipe(method, toy.n_latents, values, settings.steps / PUBLISHED_STEPS))


def at_level(config: SAEConfig, value: float) -> SAEConfig:
    """`config` with its sparsity set to `value`."""
    return sae_config(config.model_dump() | {config.knob: value})
