"""What `make plan` says beside what a finished run took.

    python -m benchmarks.plan_check pocket

Reads the profile's output folder: seconds of each notebook, of each training run, and bytes by folder. Times are the
plan's for the hardware named in the profile, so a run on that hardware is what to compare. Prints a table, and the
`estimates` that this run would give. Writes `benchmarks/results/plan-<profile>.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import FOLDER, results_file, table
from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.study.plan import Estimate, estimate, step_seconds
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json, used_bytes, write_json
from sae_lib.util.paths import Paths


def measured_step(profile: Profile, paths: Paths) -> float:
    """Mean over the trained SAEs of the seconds of a step. Each method has its median, so that a few runs beside which
    the machine did something else do not count."""
    runs = [read_json(file) for file in sorted(paths.runs.glob("*/run.json"))]
    trained = [run for run in runs if run["steps"] == profile.training.steps]
    if not trained:
        raise ArtifactError(f"{paths.runs}: no finished training run of {profile.training.steps} steps; make one first")
    kinds: dict[str, list[float]] = {}
    for run in trained:
        config = run["config"]
        parts = [name for name in ("temporal", "masking", "dropout") if config.get(name)]
        kinds.setdefault(" ".join([config["architecture"], *parts]), []).append(run["seconds"] / run["steps"])
    return float(np.average([np.median(v) for v in kinds.values()], weights=[len(v) for v in kinds.values()]))


def compare(profile: Profile, cost: Estimate, paths: Paths) -> list[dict[str, Any]]:
    """Rows of what is planned and what it took: seconds of notebooks, milliseconds of a step, megabytes of folders."""
    rows = []
    for number, seconds in cost.seconds.items():
        for file in paths.keys.glob(f"{number}_*.json"):
            rows.append({"what": f"notebook {number}, s", "planned": seconds, "measured": read_json(file)["seconds"]})
    if len(rows) == len(cost.seconds):
        total = {key: sum(row[key] for row in rows) for key in ("planned", "measured")}
        rows.append({"what": "all notebooks, s", **total})
    step = step_seconds(profile, cost.d_in) * 1e3
    rows.append({"what": "training step, ms", "planned": step, "measured": measured_step(profile, paths) * 1e3})
    named = [name for name in cost.sizes.disk if name != "other files"]
    there = {name: used_bytes(paths.root / name) for name in named}
    there["other files"] = used_bytes(paths.root) - sum(there.values())
    rows += [{"what": f"{name}, MB", "planned": cost.sizes.disk[name] / 1e6, "measured": size / 1e6}
             for name, size in there.items()]  # fmt: skip
    disk = {"planned": sum(cost.sizes.disk.values()) / 1e6, "measured": sum(there.values()) / 1e6}
    return [*rows, {"what": "all on disk, MB", **disk}]


def rates_of_this_run(profile: Profile, cost: Estimate, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Estimates with which the plan would have been right: all parts of a step scaled alike, and what is then left of
    each notebook."""
    of = {row["what"]: row for row in rows}
    slower = of["training step, ms"]["measured"] / of["training step, ms"]["planned"]
    rates = profile.estimates
    scaled = {name: getattr(rates, name) * slower for name in ("step_over_floor", "latent_bytes", "step_overhead_ms")}
    fitted = profile.model_copy(update={"estimates": rates.model_copy(update=scaled)})
    fixed = {
        number: round(of[f"notebook {number}, s"]["measured"] - seconds + rates.fixed_s[number], 1)  # type: ignore[index]
        for number, seconds in estimate(fitted, speed=1.0).seconds.items()
        if f"notebook {number}, s" in of
    }
    return {name: float(f"{value:.3g}") for name, value in scaled.items()} | {"fixed_s": fixed}


def main() -> None:
    parser = argparse.ArgumentParser(description="what make plan says beside what a finished run took")
    parser.add_argument("profile", nargs="?", default="pocket", help="a name, or the path of a YAML file")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of results/")
    asked = parser.parse_args()
    profile = load_profile(asked.profile)
    paths = Paths(profile.name)
    cost = estimate(profile, speed=1.0)
    rows = compare(profile, cost, paths)
    rates = rates_of_this_run(profile, cost, rows)
    write_json(
        results_file(asked.output, f"plan-{profile.name}"),
        {"profile": profile.name, "hardware": profile.estimates.hardware, "rows": rows, "rates_of_this_run": rates},
    )
    cells = [
        [row["what"], f"{row['planned']:.1f}", f"{row['measured']:.1f}", f"{row['planned'] / row['measured']:.2f}"]
        for row in rows
        if row["measured"]
    ]
    print(table(["", "planned", "measured", "ratio"], cells))
    print(f"\nestimates of this run: {rates}")


if __name__ == "__main__":
    main()
