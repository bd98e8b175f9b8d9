"""A profile is one scale of the experiment: model, text, sizes, methods, what is evaluated. One YAML file each.

>>> load_profile("pocket").training.seeds
(42, 43, 44, 45, 46)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, field_validator, model_validator

from sae_lib.autoencoders.config import SAEConfig, config_class
from sae_lib.data.config import CorpusConfig, DataConfig, ModelConfig
from sae_lib.mechanisms import methods
from sae_lib.metrics.scores import SCORES
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.training.recipes import Seeds, TrainingConfig, merged, method_recipe
from sae_lib.util.errors import ArtifactError
from sae_lib.util.strict import Strict

PROFILES = Path(__file__).parent
# What else lies in the output folder, beside the folders of profiles.
SHARED_FOLDERS = ("benchmark", "corpus", "docs", "evaluate", "models", "nbval", "oracles", "pocket-lm")


class SweepConfig(Strict):
    """How sparsity is made comparable: every method is trained over a range of L0, with seeds of its own.

    The L1 methods vary their coefficient; the one at which log L0 crosses log target_l0, with L0 measured on the
    calibration documents, is theirs in every other comparison. The others are told their L0.
    """

    target_l0: float = Field(gt=0.0)
    seeds: Seeds = Field((7, 8), min_length=1)
    levels: tuple[int, ...] = Field(min_length=2)
    """L0 of the methods that are told theirs; that of the main comparison is one more level."""
    compare_at: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(min_length=1)
    """L0 at which the methods' curves are read off and compared."""
    coefficients: dict[str, tuple[float, ...]]
    """Method -> values of l1_coefficient, the target's L0 inside their range."""

    @model_validator(mode="after")
    def _brackets(self) -> SweepConfig:
        if min(self.levels) < 1 or len({*self.levels}) != len(self.levels):
            raise ValueError(f"levels needs distinct positive values, got {list(self.levels)}")
        for method, values in self.coefficients.items():
            if len(values) < 2 or min(values) <= 0 or len({*values}) != len(values):
                told = f"needs two or more distinct positive values, got {list(values)}"
                raise ValueError(f"coefficients.{method} {told}")
        return self


class AblationConfig(Strict):
    """The grids of the ablation notebook."""

    papers: bool = True
    """Whether the two papers' mechanisms are taken apart, on the language model and on toys. Without, there is no
    notebook 03, and `make study` compares methods alone."""
    atm_c: tuple[float, ...] = Field((-0.5, 0.0, 1.0), min_length=1)
    atm_r: tuple[Annotated[float, Field(ge=0.0)], ...] = Field((0.5, 1.0, 2.0), min_length=1)
    atm_grid_seeds: Seeds = Field((7, 8, 9), min_length=1)
    """Seeds of the grid that ATM's c and r are chosen on; the choice is judged on `training.seeds`."""
    as_written_seeds: Seeds = ()
    """Seeds of the papers' coefficients as written; without, `training.seeds`."""
    temporal_coefficients: tuple[Annotated[float, Field(ge=0.0)], ...] = (1e-2, 1.0)
    """Values of lambda_2 beside the paper's."""
    resampling_thresholds: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = (1e-5, 5e-4)
    """Values of theta beside the paper's."""
    collapse: bool = False
    """Whether TemporalSAE's collapse is taken apart: its mechanisms alone, as written, other failing SAEs beside them,
    and absorption along its run; and along those of three other methods."""
    masked_tokens: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    """Shares of `data.masked_tokens` that one method is trained with."""
    layer_groups: int = Field(0, ge=0)
    """Groups of layers that share an SAE each; 0: layers are not compared."""
    toy: ToyConfig = ToyConfig()


if TYPE_CHECKING:

    class EvaluationConfig(Strict):
        def __init__(self, **sections: Any) -> None: ...
        def __getattr__(self, score: str) -> Any: ...

else:
    _sections = {name: (score.settings, score.settings()) for name, score in SCORES.items() if score.settings}
    _told = "A section of settings for each registered score."
    EvaluationConfig = create_model("EvaluationConfig", __base__=Strict, __doc__=_told, **_sections)


class Cost(Strict):
    """What a run from nothing took, for `make plan`; nothing where no run was measured."""

    hours: float | None = None
    hardware: str = ""
    needs_gpu: bool = False
    probing_tokens: int = Field(0, ge=0)
    """Tokens in the texts of sparse probing: their residual streams are kept on disk."""


class Profile(Strict):
    """One scale of the experiment."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=50)
    """Of its folder under the output folder, which `make clean` removes: so no path, and no folder that is shared."""
    description: str
    model: ModelConfig
    corpus: CorpusConfig
    data: DataConfig
    training: TrainingConfig
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Method -> values laid over its recipe. Those of the main table that are named here or in `sweep.coefficients` are
    trained."""
    beside: tuple[str, ...] = ()
    """Methods that stand in the main table with the ablations' seeds alone, and in no sweep."""
    as_written: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Method -> values of the papers' own coefficients, shown as they are."""
    controls: tuple[Literal["permuted", "soft_frozen"], ...] = ()
    """Controls beside the untrained SAEs, which every profile has; each at the L0 of `topk`, with the same seeds."""
    sweep: SweepConfig
    ablations: AblationConfig = AblationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cost: Cost = Cost()

    @field_validator("name")
    @classmethod
    def _own_folder(cls, name: str) -> str:
        if name.lower() in SHARED_FOLDERS:
            raise ValueError(f"'{name}' is a folder that all profiles share; choose another name")
        return name

    @model_validator(mode="after")
    def _methods_exist(self) -> Profile:
        known = methods("main", "field", "as written")
        sections: dict[str, Iterable[str]] = {
            "methods": self.methods, "beside": self.beside, "as_written": self.as_written,
            "sweep.coefficients": self.sweep.coefficients,
        }  # fmt: skip
        for field, named in sections.items():
            if unknown := [method for method in named if method not in known]:
                raise ValueError(f"{field}.{unknown[0]} is no method{nearest_hint(unknown[0], known)}")
        if unnamed := [method for method in self.beside if method not in self.methods]:
            raise ValueError(f"beside.{unnamed[0]} has no entry in methods; add it there")
        for method in (m for m in known if m in self.methods or m in self.sweep.coefficients):
            config, swept = self.sae_config(method), method in self.sweep.coefficients
            if swept and config.knob != "l1_coefficient":
                raise ValueError(f"sweep.coefficients.{method}: its sparsity is set by {config.knob}; leave it out")
            if not swept and config.knob == "l1_coefficient" and method in self.main_methods:
                raise ValueError(f"sweep.coefficients.{method} is missing: the values of its l1_coefficient to try")
            begins, steps = config.get("threshold_start_step"), self.training.steps
            if begins is not None and begins >= steps:
                told = f"is not before the last of training.steps {steps}; lower it or training.schedule_scale"
                raise ValueError(f"methods.{method}.threshold_start_step {begins} {told}")
        choosing = {"sweep.seeds": self.sweep.seeds, "ablations.atm_grid_seeds": self.ablations.atm_grid_seeds}
        for name, chosen in choosing.items():
            if shared := sorted({*chosen} & {*self.training.seeds}):
                raise ValueError(f"{name} {shared} are among training.seeds; choose others")
        for method, overrides in self.as_written.items():
            self.sae_config(method, overrides, "as_written")
        return self

    @property
    def main_methods(self) -> tuple[str, ...]:
        """The methods of the main table that this profile trains."""
        return tuple(m for m in methods("main", "field") if m in self.methods or m in self.sweep.coefficients)

    def sae_config(self, method: str, overrides: dict[str, Any] | None = None, section: str = "methods") -> SAEConfig:
        """The configuration of `method` at this profile: its recipe, the profile's values, then `overrides`.

        Raises ArtifactError for values that do not fit together, naming `section` as their place.
        """
        values = merged(self.methods.get(method, {}), overrides or {})
        recipe = method_recipe(method, self.training.d_sae, values, self.training.schedule_scale)
        return validated(config_class(recipe["architecture"]), recipe, f"{section}.{method}")


def nearest_hint(word: str, known: Any) -> str:
    """'; did you mean 'x'?' or the list of what is known."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(sorted(known))}"


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: object, where: str) -> Model:
    """`values` as a `model`. Raises ArtifactError, which names the first field that does not fit as one of `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(_explain(error, model, where)) from None


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """One line for the first problem of a validation error: the field, what is wrong, and the nearest known key."""
    errors = error.errors()
    # A misspelt key also leaves the right one missing: the misspelling is what to tell.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    # The place of a key that is no text is told as a number, which the file does not have.
    loc = (*first["loc"][:-1], first["input"]) if first["type"] == "invalid_key" else first["loc"]
    path = ".".join([where, *(str(part) for part in loc)]).strip(".")
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, first["loc"][:-1])
        fault = f"unknown key{nearest_hint(str(first['loc'][-1]), owner.model_fields if owner else [])}"
    else:
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        fault = f"{first['msg'].removeprefix('Value error, ')}{got}"
    return " ".join(f"{path}: {fault}".removeprefix(": ").split())


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    for part in path:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def load_profile(name: str | Path) -> Profile:
    """The profile `name` (a file of `sae_lib/profiles` without its ending) or the one in the YAML file at a path.

    A file that begins with `extends: <name or path>` says only what differs from that profile; a method that it sets to
    null is left out.

    Raises ArtifactError: unknown profile, unknown key (with the nearest known one), value out of range, the name of a
    packaged profile in another file, whose results it would overwrite, profiles that extend one another in a circle.
    """
    path = _file(name)
    profile = validated(Profile, _content(path, ()), "")
    own = _packaged().get(profile.name.lower())
    if own is not None and not path.samefile(own):
        raise ArtifactError(f"name: '{profile.name}' is a packaged profile; give {path.name} a name of its own")
    return profile


def _packaged() -> dict[str, Path]:
    return {path.stem: path for path in PROFILES.glob("*.yaml")}


def _file(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        if Path(name).is_dir():
            raise ArtifactError(f"profile: {name} is a folder; name a YAML file")
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ArtifactError(f"profile: no profile '{name}'{where}{nearest_hint(str(name), _packaged())}")
    return path


def _content(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """Keys and values of a file, laid over those of the profile that it extends."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf8"))
    except UnicodeDecodeError:
        raise ArtifactError(f"profile {path.name}: not UTF-8; save it with that encoding") from None
    except OSError as error:
        raise ArtifactError(f"profile: {path} cannot be read ({error.strerror})") from None
    except Exception as error:  # beside its own errors, YAML passes on those of int(), of dates and of recursion
        raise ArtifactError(f"profile {path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"profile {path.name}: expected keys and values, got {type(content).__name__}")
    base = content.pop("extends", None)
    if base is None:
        return content
    here = path.resolve()
    if not isinstance(base, str) or here in extending:
        told = "a circle of profiles" if isinstance(base, str) else f"expected a name or path, got {base!r}"
        raise ArtifactError(f"profile {path.name}: extends: {told}")
    beside = path.parent / base
    below = _file(beside if beside.suffix in (".yaml", ".yml") and beside.is_file() else base)
    content = merged(_content(below, (*extending, here)), content)
    sweep = content.get("sweep")
    for owner, section in ((content, "methods"), (content, "as_written"), (sweep, "coefficients")):
        if isinstance(owner, dict) and isinstance(owner.get(section), dict):
            owner[section] = {name: values for name, values in owner[section].items() if values is not None}
    return content
