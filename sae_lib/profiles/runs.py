"""Which SAEs a profile trains: every row of every table and figure, as a list.

Sparsity is made comparable first: every method is trained over a range of L0 (group `sweep`), and the L1 methods' part
of it decides the coefficients of all other groups (`Calibration`). Before that is known, the plan uses the middle of
the range, which is enough to count.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from pydantic import Field

from sae_lib.autoencoders.config import SAEConfig
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.profiles.profile import Profile
from sae_lib.training.recipes import merged
from sae_lib.util.strict import Strict

MAIN_GROUPS = ("main", "untrained", "control", "as_written", "sweep")
ABLATION_GROUPS = (
    "factorial", "sequence", "collapse", "sensitivity", "atm_importance", "atm_grid", "fair_sweep", "atm_fair",
)  # fmt: skip
ABLATION_SCORES = ("reconstruction", "absorption")
# Run 1 of the paper is before "reducing gradient norm to 0.1 and temporal coefficient to 0.0001"; it does not say from
# what. Ten times both is our reading.
RUN_1: dict[str, Any] = {"optimizer": {"clip_norm": 1.0}, "temporal": {"coefficient": 1e-3}}

# Group `collapse`: each mechanism of TemporalSAE without the others, and its label; the learning rate that no SAE
# survives, as a multiple of the baseline's; and one without training.
ALONE = {
    "temporal": "temporal penalty alone", "gradient_scaling": "gradient scaling alone",
    "resampling": "resampling alone",
}  # fmt: skip
FASTER = 100
UNTRAINED_BASELINE = "baseline, untrained"
# Absorption is followed along the runs of these methods, by group.
FOLLOWED = {"as_written": ("paper_standard", "temporal_sae"), "main": ("topk", "matryoshka_4", "jumprelu")}
# ATM, and the control that it is compared with at the c and r that suit it.
FAIR = ("atm", "dropout")
# Methods in whose SAEs absorption is planted, with the seeds of an ablation.
PLANTED = ("topk", "matryoshka_4")
# What group `sensitivity` varies, one at a time (column `varied`).
WARM_UP = "warm_up"
VARIED = ("temporal_coefficient", "resampling_threshold", WARM_UP)
# Every schedule of the first steps: the ramps of the learning rate and of the sparsity penalty, the early resampling.
WITHOUT_WARM_UP = {
    "optimizer": {"warmup_steps": 0}, "sparsity_warmup_steps": 0, "resampling": {"warmup_steps": 0},
}  # fmt: skip


class FairATM(Strict):
    """What the grid decided: ATM at the c and r that suit it, and dropout that takes away as much activation."""

    c: float
    r: float
    coefficients: dict[str, float] = Field(default_factory=dict)
    """'atm' and 'dropout' -> l1_coefficient at which L0 on the calibration documents meets the target."""
    dropout_probability: float = 0.3
    """Mean share of a batch's activation that ATM's mask takes away: what dropout at this rate takes away too."""


class Calibration(Strict):
    """What the sweep decided."""

    coefficients: dict[str, float]
    """Method -> l1_coefficient at which L0 on the calibration documents meets the target."""
    dropout_probability: float
    """Mean mask rate of ATM at its coefficient: the control masks as much, blindly."""
    fair: FairATM | None = None
    """Decided later, by group `atm_grid`."""


Made = Literal["trained", "untrained", "permuted"]


@dataclass(frozen=True)
class RunSpec:
    """One SAE: the group it is shown in, the method, what sets it apart there, and its configuration."""

    group: str
    method: str
    label: str
    seed: int
    config: SAEConfig
    made: Made = "trained"
    """By training; as it is before the first step; or from the trained one of this configuration and seed, by dealing
    its decoder rows out to other latents."""
    fields: dict[str, Any] = field(default_factory=dict, compare=False)
    """Columns of the result rows that say where it stands in its group: `level`, the sparsity of a `sweep`;
    `paper_run`, 'run_1' to 'run_4' of `sequence`; `varied`, one of `VARIED`; `importance` and the part that is
    `dropped` from it ('nothing', or None for the product)."""

    @property
    def trained(self) -> bool:
        return self.made == "trained"

    @property
    def permuted_from(self) -> RunSpec:
        """The trained SAE that a permuted one is made from: TopK of the main table."""
        return replace(self, group="main", method="topk", made="trained")


def expected_calibration(profile: Profile) -> Calibration:
    """A stand-in before the sweep: the middle of each method's range."""
    middle = {m: sorted(values)[len(values) // 2] for m, values in profile.sweep.coefficients.items()}
    return Calibration(coefficients=middle, dropout_probability=0.3)


Cell = partial[RunSpec]
"""The `RunSpec`s of a group that differ by their seed alone: given `group` and `seed`, one of them."""


def _cell(method: str, label: str, config: SAEConfig, made: Made = "trained", **fields: Any) -> Cell:
    return partial(RunSpec, method=method, label=label, config=config, made=made, fields=fields)


def plan_runs(
    profile: Profile,
    calibration: Calibration | None = None,
    groups: Any = None,
    methods: Collection[str] | None = None,
    seeds: Collection[int] | None = None,
) -> list[RunSpec]:
    """Every SAE of `groups` (all groups by default), in the order in which they are trained; of these methods and seeds
    alone where they are named."""
    known = calibration or expected_calibration(profile)
    left_out = () if profile.ablations.papers else ABLATION_GROUPS
    return [
        spec
        for group in groups or (*MAIN_GROUPS, *ABLATION_GROUPS)
        if group not in left_out
        for spec in _seeded(profile, group, _cells(profile, known, group))
        if (methods is None or spec.method in methods) and (seeds is None or spec.seed in seeds)
    ]


def _seeded(profile: Profile, group: str, cells: Iterable[Cell]) -> list[RunSpec]:
    training, sweep, asked = profile.training, profile.sweep, profile.ablations
    seeds = {
        **dict.fromkeys(ABLATION_GROUPS, training.ablation_seeds), "atm_grid": asked.atm_grid_seeds,
        "sweep": sweep.seeds, "fair_sweep": sweep.seeds, "atm_fair": training.seeds,
        "as_written": asked.as_written_seeds or training.seeds,
    }.get(group, training.seeds)  # fmt: skip
    few = profile.beside if group == "main" else ()
    return [
        cell(group=group, seed=seed)
        for cell in cells
        for seed in (training.ablation_seeds if cell.keywords["method"] in few else seeds)
    ]


def different(runs: Iterable[RunSpec]) -> list[RunSpec]:
    """Every SAE once, in the first group that has it: one of two groups is made once."""
    found: dict[tuple[str, int, str], RunSpec] = {}
    for run in runs:
        found.setdefault((run.config.model_dump_json(), run.seed, run.made), run)
    return [*found.values()]


def calibrated(profile: Profile, known: Calibration, method: str, overrides: dict[str, Any] | None = None) -> SAEConfig:
    """The configuration of a method of the main table, at the calibrated sparsity."""
    coefficient = known.coefficients.get(method)
    values: dict[str, Any] = {} if coefficient is None else {"l1_coefficient": coefficient}
    if method == "dropout":
        values["dropout"] = {"probability": known.dropout_probability}
    return profile.sae_config(method, merged(values, overrides or {}))


def _cells(profile: Profile, known: Calibration, group: str) -> Iterable[Cell]:
    """The SAEs of a group, without their seeds."""
    fair = FAIR if fairly_compared(profile) else ()
    match group:
        case "main":
            return [_cell(method, "", calibrated(profile, known, method)) for method in profile.main_methods]
        case "untrained":
            return [_cell("untrained", "", profile.sae_config("topk"), "untrained")]
        case "control":
            frozen = _cell("soft_frozen", "", profile.sae_config("topk", {"soft_frozen": {}}))
            permuted = _cell("permuted", "", profile.sae_config("topk"), "permuted")
            return [frozen if name == "soft_frozen" else permuted for name in profile.controls]
        case "as_written":
            return [_cell(method, "as written", _written(profile, method)) for method in profile.as_written]
        case "sweep":
            swept = [method for method in profile.main_methods if method not in profile.beside]
            return [cell for method in swept for cell in _levels(profile, method, known.dropout_probability)]
        case "factorial" | "sensitivity" | "atm_importance" | "atm_grid" | "sequence":
            method = "atm" if group.startswith("atm") else "temporal_sae"
            # The paper's runs have its own sparsity coefficient: run 4 is the SAE that the as-written table shows.
            configured = partial(_written, profile) if group == "sequence" else partial(calibrated, profile, known)
            return [
                _cell(method, label, configured(method, change), **fields)
                for label, change, fields in _variants(profile, group)
            ]
        case "collapse":
            return _collapse(profile) if profile.ablations.collapse else []
        case "fair_sweep":
            return [
                _cell(method, f"l1={value:g}", _fair(profile, known, method, value))
                for method in fair
                for value in profile.sweep.coefficients[method]
            ]
        case "atm_fair":  # both at the L1 coefficient that their sweep gives
            chosen = expected_calibration(profile).coefficients | known.coefficients
            chosen |= known.fair.coefficients if known.fair else {}
            return [_cell(method, "", _fair(profile, known, method, chosen[method])) for method in fair]
    raise ValueError(f"there is no group '{group}'")


def _variants(profile: Profile, group: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Of an ablation of one method: label, values laid over its configuration, and `RunSpec.fields`."""
    asked = profile.ablations
    match group:
        case "factorial":
            parts = ("temporal", "resampling", "gradient_scaling")
            for switches in itertools.product((False, True), repeat=3):
                off = {part: None for part, on in zip(parts, switches, strict=True) if not on}
                yield " + ".join(part.replace("_", " ") for part in parts if part not in off) or "none", off, {}
        case "sequence":
            neither: dict[str, Any] = {"resampling": None, "gradient_scaling": None}
            changes: tuple[dict[str, Any], ...] = (RUN_1 | neither, neither, {"gradient_scaling": None}, {})
            for number, change in enumerate(changes, start=1):
                yield f"run {number}", change, {"paper_run": f"run_{number}"}
        case "sensitivity":
            default = profile.sae_config("temporal_sae").get("temporal").coefficient
            varied = [("temporal", "coefficient", value) for value in (default, *asked.temporal_coefficients)]
            varied += [("resampling", "threshold", value) for value in asked.resampling_thresholds]
            for part, setting, value in varied:
                yield f"{part} {setting} {value:g}", {part: {setting: value}}, {"varied": f"{part}_{setting}"}
            yield "no warm-up", WITHOUT_WARM_UP, {"varied": WARM_UP}
        case "atm_importance":
            every = "+".join(COMPONENTS)
            yield every, {}, {"importance": every, "dropped": "nothing"}
            for part in COMPONENTS:
                kept = tuple(other for other in COMPONENTS if other != part)
                label = "+".join(kept)
                yield label, {"masking": {"components": kept}}, {"importance": label, "dropped": part}
            yield "product", {"masking": {"combine": "product"}}, {"importance": "product", "dropped": None}
        case "atm_grid":
            for c, r in itertools.product(asked.atm_c, asked.atm_r):
                yield f"c={c:g} r={r:g}", {"masking": {"c": c, "r": r}}, {}


def sweep_runs(profile: Profile, method: str, dropout_probability: float = 0.3) -> list[RunSpec]:
    """One method over a range of L0: by its L1 coefficient where it has one, else by the L0 that it is told."""
    return _seeded(profile, "sweep", _levels(profile, method, dropout_probability))


def _levels(profile: Profile, method: str, dropout_probability: float) -> list[Cell]:
    knob = profile.sae_config(method).knob
    values = profile.sweep.coefficients[method] if knob == "l1_coefficient" else profile.sweep.levels
    dropout = {"dropout": {"probability": dropout_probability}} if method == "dropout" else {}
    name = knob.replace("l1_coefficient", "l1")
    return [
        _cell(method, f"{name}={value:g}", profile.sae_config(method, {knob: value} | dropout), level=value)
        for value in values
    ]


def _written(profile: Profile, method: str, overrides: dict[str, Any] | None = None) -> SAEConfig:
    """The configuration of a method with the papers' own coefficients, and with `overrides`."""
    return profile.sae_config(method, merged(profile.as_written.get(method, {}), overrides or {}))


def _collapse(profile: Profile) -> list[Cell]:
    """Each mechanism of TemporalSAE alone, with the paper's coefficients; resampling made milder in two ways; and dense
    SAEs that are useless for reasons of their own."""

    def alone(part: str, label: str, **values: Any) -> Cell:
        off: dict[str, Any] = {other: None for other in ALONE if other != part}
        return _cell("temporal_sae", label, _written(profile, "temporal_sae", off | ({part: values} if values else {})))

    base = _written(profile, "paper_standard")
    fast = {"optimizer": {"learning_rate": FASTER * base.optimizer.learning_rate}}
    return [
        *(alone(part, label) for part, label in ALONE.items()),
        alone("resampling", "resampling alone, threshold 0.0005", threshold=0.0005),
        alone("resampling", "resampling alone, small encoder rows", encoder_norm="alive_fraction"),
        _cell("paper_standard", f"baseline, {FASTER} x learning rate", _written(profile, "paper_standard", fast)),
        _cell("paper_standard", UNTRAINED_BASELINE, base, "untrained"),
    ]


def fairly_compared(profile: Profile) -> bool:
    """Whether the profile has a sweep of both methods of `FAIR`."""
    return profile.ablations.papers and {*FAIR} <= {*profile.sweep.coefficients}


def _fair(profile: Profile, known: Calibration, method: str, coefficient: float) -> SAEConfig:
    """ATM with the chosen c and r, or the dropout that belongs to it."""
    fair = known.fair or FairATM(c=profile.ablations.atm_c[0], r=profile.ablations.atm_r[0])
    settings: dict[str, Any] = {
        "atm": {"masking": {"c": fair.c, "r": fair.r}},
        "dropout": {"dropout": {"probability": fair.dropout_probability}},
    }[method]
    return profile.sae_config(method, settings | {"l1_coefficient": coefficient})
