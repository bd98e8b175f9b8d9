"""The stages whose results are kept, the modules that their code begins at, and the digest of that code.

`stage_code.json` holds for each stage the version and the digest that belong together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lib.data.corpus import DOCUMENTATION, TOKENS
from sae_lib.metrics.absorption.answers import CIRCUIT_REFERENCE
from sae_lib.metrics.absorption.reference import ABSORPTION_REFERENCE
from sae_lib.metrics.core_reference import CORE_REFERENCE
from sae_lib.metrics.probing.perturbation import SPURIOUS_REFERENCE
from sae_lib.metrics.probing.reference import PROBING_REFERENCE
from sae_lib.metrics.scores import SCORES
from sae_lib.metrics.stability.reference import STABILITY_REFERENCE
from sae_lib.metrics.toy.training import TOY
from sae_lib.study import extras
from sae_lib.study.comparisons import CHALLENGERS, LAYER_GROUPS, MASKED, TOYS
from sae_lib.study.experiment import CALIBRATION_L0
from sae_lib.study.scoring import ACROSS_SEEDS
from sae_lib.training.run import TRAINING
from sae_lib.util.files import read_json, write_json
from sae_lib.util.keys import Stage
from tests.source import code_digest

FILE = Path(__file__).parent / "stage_code.json"
MODULES: dict[Stage, tuple[str, ...]] = {
    DOCUMENTATION: ("sae_lib.data.documentation",),
    TOKENS: ("sae_lib.data.corpus",),
    TRAINING: ("sae_lib.training.run",),
    CORE_REFERENCE: ("sae_lib.metrics.core_reference",),
    ABSORPTION_REFERENCE: ("sae_lib.metrics.absorption.reference",),
    STABILITY_REFERENCE: ("sae_lib.metrics.stability.reference",),
    PROBING_REFERENCE: ("sae_lib.metrics.probing.reference",),
    CIRCUIT_REFERENCE: ("sae_lib.metrics.absorption.answers",),
    extras.CIRCUITS.stage: ("sae_lib.metrics.absorption.answers",),
    SPURIOUS_REFERENCE: ("sae_lib.metrics.probing.perturbation",),
    **{score.stage: (score.evaluate.__module__,) for score in SCORES.values()},
    CALIBRATION_L0: ("sae_lib.autoencoders.build",),
    ACROSS_SEEDS: ("sae_lib.metrics.stability.seeds",),
    extras.CARRIERS.stage: ("sae_lib.metrics.absorption.answers",),
    extras.PERTURBED.stage: ("sae_lib.metrics.probing.perturbation",),
    extras.PLANTED_CURVE.stage: ("sae_lib.metrics.absorption.planted",),
    extras.TRAJECTORY.stage: ("sae_lib.training.trainer", "sae_lib.metrics.absorption.score"),
    LAYER_GROUPS: ("sae_lib.training.trainer", "sae_lib.data.layer_groups", "sae_lib.metrics.reconstruction"),
    extras.ENDINGS.stage: ("sae_lib.metrics.absorption.null",),
    MASKED: ("sae_lib.training.run", "sae_lib.data.tokens", "sae_lib.data.harvest"),
    TOY: ("sae_lib.metrics.toy.experiments",),
    TOYS: ("sae_lib.metrics.toy.experiments",),
    CHALLENGERS: ("sae_lib.metrics.toy.experiments",),
}


def now() -> dict[str, dict[str, Any]]:
    """Version and digest of each stage, as the code is."""
    return {stage.name: {"version": stage.version, "code": code_digest(*modules)} for stage, modules in MODULES.items()}


def recorded() -> dict[str, dict[str, Any]]:
    """Version and digest of each stage, as they were recorded."""
    found: dict[str, dict[str, Any]] = read_json(FILE)
    return found


def stale(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> list[str]:
    """The stages whose code changed and whose version did not."""
    return [
        name
        for name, stage in after.items()
        if name in before and stage["code"] != before[name]["code"] and stage["version"] == before[name]["version"]
    ]


def record() -> None:
    """Write `stage_code.json`."""
    write_json(FILE, now())
