"""What defines one SAE, typed and validated: here what all variants share. A mechanism's settings are a section of it;
their defaults are the papers' equations as written, and every other reading is a named switch."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, create_model, model_serializer, model_validator

from sae_lib.util.errors import ArtifactError
from sae_lib.util.strict import Strict


class Schedule(NamedTuple):
    """Marks a field that counts optimiser steps, or is a momentum per step: recipes fit it to the length of a run."""

    fitted: Callable[[float, float], float]
    """A value for a run of so many times the steps."""


Steps = Annotated[int, Field(ge=0), Schedule(lambda steps, scale: round(steps * scale))]
Interval = Annotated[int, Field(ge=1), Schedule(lambda steps, scale: max(1, round(steps * scale)))]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0), Schedule(lambda momentum, scale: momentum ** (1.0 / scale))]


class OptimizerConfig(Strict):
    """Adam or AdamW with linear warm-up and a linear decay to zero at the end."""

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(3e-4, gt=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    clip_norm: float | None = Field(None, gt=0.0)
    warmup_steps: Steps = 1000
    decay_fraction: float = Field(0.2, ge=0.0, le=1.0)
    """Share of the steps, at the end, over which the learning rate falls to zero."""


class SAEConfig(Strict):
    """One SAE: everything but the data and the seed."""

    knob: ClassVar[str] = "l1_coefficient"
    """The field that sets the sparsity."""
    l1_scale: ClassVar[float] = 1.0
    """How much more L1 penalty than the standard SAE's gives the same L0, roughly."""

    architecture: str
    d_sae: int = Field(ge=1)
    dead_after_tokens: int = Field(10_000_000, ge=1)
    subtract_b_dec: bool = False
    """Encode x - b_dec instead of x."""
    normalize_inputs: bool = True
    """Train on inputs scaled to E||x||^2 = 1; the scale is folded into the saved weights."""
    unit_norm_decoder: bool = True
    """Keep decoder rows at norm 1, with the gradient parallel to them removed."""
    tied_init: bool = True
    """W_enc starts as W_dec^T."""
    encoder_init_norm: float = Field(1.0, gt=0.0)
    sparsity_warmup_steps: Steps = 0
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "SAEConfig":
        if self.knob != "l1_coefficient" and self.get(self.knob) > self.d_sae:
            value = f"{self.knob} = {self.get(self.knob)}"
            raise ValueError(f"{value} is above d_sae = {self.d_sae}; lower {self.knob} or widen the SAE")
        for section in SECTIONS:
            if (settings := self.get(section)) is not None:
                settings.check(self)
        return self

    @model_serializer(mode="wrap")
    def _without_absent_sections(self, handler: Any) -> dict[str, Any]:
        """So that a mechanism that is new changes no configuration without it."""
        return {name: value for name, value in handler(self).items() if value is not None or name not in SECTIONS}

    def get(self, name: str) -> Any:
        """The value of a field that not every variant has, or a mechanism's section; None without one."""
        return getattr(self, name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return sae_config, (self.model_dump(),)  # a class with sections is made, and cannot be found by its name


class MechanismConfig(Strict):
    """The settings of one mechanism: a section of an `SAEConfig`."""

    def check(self, config: SAEConfig) -> None:
        """Raise ValueError where the mechanism does not go with the rest of `config`."""


SECTIONS: dict[str, type[MechanismConfig]] = {}
"""The mechanisms' settings by the name of their section; filled by `mechanisms.base.mechanism`."""
CONFIGS: dict[str, type[SAEConfig]] = {}
"""Each architecture's own configuration; filled by `base.architecture`."""


def config_class(architecture: str) -> type[SAEConfig]:
    """An architecture's configuration, with a section for each mechanism. Raises ArtifactError for an unknown one."""
    if architecture not in CONFIGS:
        raise ArtifactError(f"architecture: there is no '{architecture}'; known: {', '.join(CONFIGS)}")
    return _with_sections(CONFIGS[architecture], tuple(SECTIONS.items()))


@cache
def _with_sections(config: type[SAEConfig], sections: tuple[tuple[str, type[MechanismConfig]], ...]) -> type[SAEConfig]:
    fields: dict[str, Any] = {name: (settings | None, None) for name, settings in sections}
    return create_model(config.__name__, __base__=config, __module__=config.__module__, **fields)


def sae_config(values: Mapping[str, Any]) -> SAEConfig:
    """The configuration that `values` give, of the class that their `architecture` names. Raises ValidationError for a
    value that does not fit, ArtifactError for an unknown architecture."""
    return config_class(values.get("architecture", "standard")).model_validate(dict(values))
