"""What every training run of a profile shares; and a method's recipe at the length of the run, with values over it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field

from sae_lib.autoencoders.config import SECTIONS, Schedule, config_class
from sae_lib.mechanisms import METHODS
from sae_lib.util.strict import Seed, Strict


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are repeated: {list(seeds)}; a mean over copies has no spread")
    return seeds


Seeds = Annotated[tuple[Seed, ...], AfterValidator(_distinct)]


class TrainingConfig(Strict):
    """What every SAE of the profile shares."""

    d_sae: int = Field(ge=1)
    steps: int = Field(ge=1)
    schedule_scale: float = Field(1.0, gt=0.0)
    """Factor on every count of steps in the recipes (warm-ups, resampling intervals), for runs shorter than theirs."""
    seeds: Seeds = Field(min_length=1)
    ablation_seeds: Seeds = Field(min_length=1)
    workers: int = Field(1, ge=1)
    """SAEs trained or evaluated side by side, each on one core (CPU only)."""
    log_every: int = Field(ge=1)
    checkpoint_every: int = Field(ge=1)
    autocast: Literal["none", "bfloat16"] = "none"
    """On a GPU: bfloat16 in and out of the products."""
    products: Literal["float32", "bfloat16"] = "float32"
    """On a CPU: what the factors of dense products are rounded to; sums and results are float32 in either case. A
    processor without units for that (AMX) multiplies in float32."""


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it, nested mappings merged; a null removes a mechanism."""
    result = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result


def method_recipe(method: str, d_sae: int, overrides: Mapping[str, Any], schedule_scale: float) -> dict[str, Any]:
    """The values of `method` for a dictionary of `d_sae` latents, with every count of steps times `schedule_scale`.

    The published schedules count steps of runs of 5,000 and more; a shorter run keeps their proportions. Moving
    averages keep theirs too: a momentum m per step becomes m^(1 / schedule_scale). Mechanisms that `overrides` add
    follow the same rule; the values that it names are taken as they are.
    """
    known = METHODS[method]
    recipe = merged(known.recipe, (known.at_width(d_sae) if known.at_width else {}) | {"d_sae": d_sae})
    asked = (name for name in SECTIONS if isinstance(overrides.get(name), dict))
    added: dict[str, Any] = {name: {} for name in asked if recipe.get(name) is None}
    architecture = overrides.get("architecture", recipe["architecture"])
    return merged(_fitted(config_class(architecture), recipe | added, schedule_scale), overrides)


def _fitted(model: type[BaseModel], values: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """`values` with every `Schedule` of `model` and its sections fitted to a run of `scale` times the steps."""
    result = dict(values)
    for name, field in model.model_fields.items():
        for section in (field.annotation, *get_args(field.annotation)):
            if isinstance(section, type) and issubclass(section, BaseModel):
                given = values.get(name, {} if field.default is not None else None)
                result[name] = None if given is None else _fitted(section, given, scale)
        for schedule in field.metadata:
            if isinstance(schedule, Schedule):
                result[name] = schedule.fitted(values.get(name, field.default), scale)
    return result
