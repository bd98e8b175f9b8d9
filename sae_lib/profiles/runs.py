"""Which SAEs a profile trains: every row of every table and figure, as a list.

Sparsity is made comparable first: every method is trained over a range of L0 (group `sweep`), and the L1 methods' part
of it decides the coefficients of all other groups (`Calibration`). Before that is known, the plan uses the middle of
the range, which is enough to count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, TypeAdapter

from sae_lib.autoencoders.config import SAEConfig
from sae_lib.mechanisms.adaptive_temporal_masking import COMPONENTS
from sae_lib.profiles.profile import Profile
from sae_lib.training.recipes import merged
from sae_lib.util.strict import Strict

Group = Literal[
    "sweep",
    "main",
    "untrained",
    "control",
    "as_written",
    "factorial",
    "sequence",
    "collapse",
    "sensitivity",
    "atm_importance",
    "atm_grid",
    "fair_sweep",
    "atm_fair",
]
MAIN_GROUPS: tuple[Group, ...] = ("main", "untrained", "control", "as_written", "sweep")
ABLATION_GROUPS: tuple[Group, ...] = (
    "factorial", "sequence", "collapse", "sensitivity", "atm_importance", "atm_grid", "fair_sweep", "atm_fair",
)  # fmt: skip
ABLATION_SCORES = ("reconstruction", "absorption")
# Run 1 of the paper is before "reducing gradient norm to 0.1 and temporal coefficient to 0.0001"; it does not say from
# what. Ten times both is our reading.
RUN_1 = {"optimizer": {"clip_norm": 1.0}, "temporal": {"coefficient": 1e-3}}

# Group `collapse`: each mechanism of TemporalSAE without the others, and its label; the learning rate that no SAE
# survives, as a multiple of the baseline's; and one without training.
ALONE = {
    "temporal": "temporal penalty alone",
    "gradient_scaling": "gradient scaling alone",
    "resampling": "resampling alone",
}
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


@dataclass(frozen=True)
class RunSpec:
    """One SAE: the group it is shown in, the method, what sets it apart there, and its configuration."""

    group: Group
    method: str
    label: str
    seed: int
    config: SAEConfig
    made: Literal["trained", "untrained", "permuted"] = "trained"
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


def sweep_runs(profile: Profile, method: str, dropout_probability: float = 0.3) -> list[RunSpec]:
    """One method over a range of L0: by its L1 coefficient where it has one, else by the L0 that it is told."""
    settings = profile.sweep
    knob = profile.sae_config(method).knob
    values = settings.coefficients[method] if knob == "l1_coefficient" else settings.levels
    dropout = {"dropout": {"probability": dropout_probability}} if method == "dropout" else {}
    return [
        RunSpec(
            "sweep", method, f"{knob.replace('l1_coefficient', 'l1')}={value:g}", seed,
            profile.sae_config(method, {knob: value} | dropout), fields={"level": value},
        )
        for value in values
        for seed in settings.seeds
    ]  # fmt: skip


def plan_runs(profile: Profile, calibration: Calibration | None = None, groups: Any = None) -> list[RunSpec]:
    """Every SAE of `groups` (all groups by default), in the order in which they are trained."""
    known = calibration or expected_calibration(profile)
    wanted = TypeAdapter(tuple[Group, ...]).validate_python(tuple(groups or (*MAIN_GROUPS, *ABLATION_GROUPS)))
    makers = {
        "sweep": _sweep,
        "main": _main,
        "untrained": _untrained,
        "control": _control,
        "as_written": _as_written,
        "factorial": _factorial,
        "sequence": _sequence,
        "collapse": _collapse,
        "sensitivity": _sensitivity,
        "atm_importance": _atm_importance,
        "atm_grid": _atm_grid,
        "fair_sweep": _fair_sweep,
        "atm_fair": _atm_fair,
    }
    left_out = () if profile.ablations.papers else ABLATION_GROUPS
    return [spec for group in wanted if group not in left_out for spec in makers[group](profile, known)]


def different(runs: Iterable[RunSpec]) -> list[RunSpec]:
    """Every SAE once, in the first group that has it: one of two groups is made once."""
    found: dict[tuple[str, int, str], RunSpec] = {}
    for run in runs:
        found.setdefault((run.config.model_dump_json(), run.seed, run.made), run)
    return [*found.values()]


def calibrated(profile: Profile, known: Calibration, method: str, overrides: dict[str, Any] | None = None) -> SAEConfig:
    """The configuration of a method of the main table, at the calibrated sparsity."""
    values: dict[str, Any] = {}
    if method in known.coefficients:
        values["l1_coefficient"] = known.coefficients[method]
    if method == "dropout":
        values["dropout"] = {"probability": known.dropout_probability}
    return profile.sae_config(method, merged(values, overrides or {}))


def _sweep(profile: Profile, known: Calibration) -> list[RunSpec]:
    return [spec for method in profile.main_methods for spec in sweep_runs(profile, method, known.dropout_probability)]


def _main(profile: Profile, known: Calibration) -> list[RunSpec]:
    return [
        RunSpec("main", method, "", seed, calibrated(profile, known, method))
        for method in profile.main_methods
        for seed in profile.training.seeds
    ]


def _untrained(profile: Profile, known: Calibration) -> list[RunSpec]:
    config = profile.sae_config("topk")
    return [RunSpec("untrained", "untrained", "", seed, config, made="untrained") for seed in profile.training.seeds]


def _control(profile: Profile, known: Calibration) -> list[RunSpec]:
    made: dict[str, RunSpec] = {
        "soft_frozen": RunSpec("control", "soft_frozen", "", 0, profile.sae_config("topk", {"soft_frozen": {}})),
        "permuted": RunSpec("control", "permuted", "", 0, profile.sae_config("topk"), made="permuted"),
    }
    return [replace(made[method], seed=seed) for method in profile.controls for seed in profile.training.seeds]


def _as_written(profile: Profile, known: Calibration) -> list[RunSpec]:
    return [
        RunSpec("as_written", method, "as written", seed, profile.sae_config(method, overrides))
        for method, overrides in profile.as_written.items()
        for seed in profile.training.seeds
    ]


def _temporal(
    profile: Profile, known: Calibration, group: Group, label: str, overrides: dict[str, Any], **fields: Any
) -> list[RunSpec]:
    config = calibrated(profile, known, "temporal_sae", overrides)
    seeds = profile.training.ablation_seeds
    return [RunSpec(group, "temporal_sae", label, seed, config, fields=fields) for seed in seeds]


def _factorial(profile: Profile, known: Calibration) -> list[RunSpec]:
    parts = ("temporal", "resampling", "gradient_scaling")
    specs: list[RunSpec] = []
    for switches in itertools.product((False, True), repeat=3):
        off: dict[str, Any] = {part: None for part, on in zip(parts, switches, strict=True) if not on}
        label = " + ".join(part.replace("_", " ") for part, on in zip(parts, switches, strict=True) if on) or "none"
        specs += _temporal(profile, known, "factorial", label, off)
    return specs


def _sequence(profile: Profile, known: Calibration) -> list[RunSpec]:
    runs: dict[str, dict[str, Any]] = {
        "run 1": RUN_1 | {"resampling": None, "gradient_scaling": None},
        "run 2": {"resampling": None, "gradient_scaling": None},
        "run 3": {"gradient_scaling": None},
        "run 4": {},
    }
    # The paper's own sparsity coefficient: run 4 is the SAE that the as-written table shows.
    written = profile.as_written.get("temporal_sae", {})
    return [
        RunSpec(
            "sequence", "temporal_sae", label, seed, profile.sae_config("temporal_sae", merged(written, change)),
            fields={"paper_run": label.replace(" ", "_")},
        )
        for label, change in runs.items()
        for seed in profile.training.ablation_seeds
    ]  # fmt: skip


def _collapse(profile: Profile, known: Calibration) -> list[RunSpec]:
    """Each mechanism of TemporalSAE alone, with the paper's coefficients; resampling made milder in two ways; and dense
    SAEs that are useless for reasons of their own."""
    if not profile.ablations.collapse:
        return []
    written = profile.as_written.get("temporal_sae", {})

    def alone(part: str, **values: Any) -> SAEConfig:
        off: dict[str, Any] = {other: None for other in ALONE if other != part}
        return profile.sae_config("temporal_sae", merged(written, off | ({part: values} if values else {})))

    base = profile.sae_config("paper_standard", profile.as_written.get("paper_standard"))
    fast = {"optimizer": {"learning_rate": FASTER * base.optimizer.learning_rate}}
    variants: dict[str, tuple[str, SAEConfig]] = {
        **{label: ("temporal_sae", alone(part)) for part, label in ALONE.items()},
        "resampling alone, threshold 0.0005": ("temporal_sae", alone("resampling", threshold=0.0005)),
        "resampling alone, small encoder rows": ("temporal_sae", alone("resampling", encoder_norm="alive_fraction")),
        f"baseline, {FASTER} x learning rate": (
            "paper_standard",
            profile.sae_config("paper_standard", merged(profile.as_written.get("paper_standard", {}), fast)),
        ),
        UNTRAINED_BASELINE: ("paper_standard", base),
    }
    return [
        RunSpec(
            "collapse", method, label, seed, config, made="untrained" if label == UNTRAINED_BASELINE else "trained",
        )
        for label, (method, config) in variants.items()
        for seed in profile.training.ablation_seeds
    ]  # fmt: skip


def along_the_run(profile: Profile) -> list[RunSpec]:
    """The SAEs whose absorption is followed along their training, one seed each: the paper's two, with its
    coefficients; and methods that are told their L0, to see whether training is long enough."""
    specs = plan_runs(profile, None, [*FOLLOWED]) if profile.ablations.collapse else []
    return [spec for spec in specs if spec.method in FOLLOWED[spec.group] and spec.seed == profile.training.seeds[0]]


def planted_in(profile: Profile) -> list[RunSpec]:
    """The SAEs in which absorption is planted, to see how much of it the score finds; no L1 method is among them, so
    that it does not wait for the sweep."""
    return [
        spec
        for spec in plan_runs(profile, None, ["main"])
        if spec.method in PLANTED and spec.seed in profile.training.ablation_seeds
    ]


def _sensitivity(profile: Profile, known: Calibration) -> list[RunSpec]:
    default = calibrated(profile, known, "temporal_sae")
    variants: dict[tuple[str, str], dict[str, Any]] = {
        ("temporal_coefficient", f"temporal coefficient {value:g}"): {"temporal": {"coefficient": value}}
        for value in (default.get("temporal").coefficient, *profile.ablations.temporal_coefficients)
    }
    variants |= {
        ("resampling_threshold", f"resampling threshold {value:g}"): {"resampling": {"threshold": value}}
        for value in profile.ablations.resampling_thresholds
    }
    variants[WARM_UP, "no warm-up"] = WITHOUT_WARM_UP
    return [
        spec
        for (varied, label), change in variants.items()
        for spec in _temporal(profile, known, "sensitivity", label, change, varied=varied)
    ]


def _atm(
    profile: Profile, known: Calibration, group: Group, label: str, masking: dict[str, Any], seeds: Any, **fields: Any
) -> list[RunSpec]:
    config = calibrated(profile, known, "atm", {"masking": masking})
    return [RunSpec(group, "atm", label, seed, config, fields=fields) for seed in seeds]


def _atm_importance(profile: Profile, known: Calibration) -> list[RunSpec]:
    variants: dict[str, tuple[str | None, dict[str, Any]]] = {"+".join(COMPONENTS): ("nothing", {})}
    for part in COMPONENTS:
        kept = tuple(other for other in COMPONENTS if other != part)
        variants["+".join(kept)] = (part, {"components": kept})
    variants["product"] = (None, {"combine": "product"})
    seeds = profile.training.ablation_seeds
    return [
        spec
        for label, (dropped, masking) in variants.items()
        for spec in _atm(profile, known, "atm_importance", label, masking, seeds, importance=label, dropped=dropped)
    ]


def _atm_grid(profile: Profile, known: Calibration) -> list[RunSpec]:
    grid = itertools.product(profile.ablations.atm_c, profile.ablations.atm_r)
    seeds = profile.ablations.atm_grid_seeds
    return [s for c, r in grid for s in _atm(profile, known, "atm_grid", f"c={c:g} r={r:g}", {"c": c, "r": r}, seeds)]


def fair_sweep(profile: Profile, known: Calibration, method: str) -> list[RunSpec]:
    """ATM with the chosen c and r, or the dropout that belongs to it, over the L1 coefficients of the sweep."""
    return [
        replace(_fair(profile, known, method, value, seed), group="fair_sweep", label=f"l1={value:g}")
        for value in profile.sweep.coefficients[method]
        for seed in profile.sweep.seeds
    ]


def fairly_compared(profile: Profile) -> bool:
    """Whether the profile has a sweep of both methods of `FAIR`."""
    return profile.ablations.papers and all(method in profile.sweep.coefficients for method in FAIR)


def _fair_sweep(profile: Profile, known: Calibration) -> list[RunSpec]:
    return [s for method in FAIR for s in fair_sweep(profile, known, method)] if fairly_compared(profile) else []


def _atm_fair(profile: Profile, known: Calibration) -> list[RunSpec]:
    """Both methods at the L1 coefficient that their sweep gives."""
    if not fairly_compared(profile):
        return []
    chosen = expected_calibration(profile).coefficients | known.coefficients
    chosen |= known.fair.coefficients if known.fair else {}
    seeds = profile.training.seeds
    return [_fair(profile, known, method, chosen[method], seed) for method in FAIR for seed in seeds]


def _fair(profile: Profile, known: Calibration, method: str, coefficient: float, seed: int) -> RunSpec:
    fair = known.fair or FairATM(c=profile.ablations.atm_c[0], r=profile.ablations.atm_r[0])
    settings: dict[str, Any] = {
        "atm": {"masking": {"c": fair.c, "r": fair.r}},
        "dropout": {"dropout": {"probability": fair.dropout_probability}},
    }[method]
    config = profile.sae_config(method, settings | {"l1_coefficient": coefficient})
    return RunSpec("atm_fair", method, "", seed, config)
