"""What the paper says about itself: its counts and verdicts, what it was made from, and the settings it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.standard import PAPER
from sae_lib.mechanisms.adaptive_temporal_masking import MaskingConfig
from sae_lib.mechanisms.resampling import ResamplingConfig
from sae_lib.mechanisms.temporal_penalty import TemporalConfig
from sae_lib.profiles.profile import Profile
from sae_lib.report.claims.file import Claim
from sae_lib.report.claims.ledger import PAPERS_MODEL
from sae_lib.report.claims.paper_checks import PAPER_CHECKS
from sae_lib.report.claims.verdicts import INCONSISTENT, NOT_RUN, VERDICTS
from sae_lib.report.names import MAIN_METHODS, METRICS, in_order, method_name
from sae_lib.report.paper.template import listed
from sae_lib.report.results import Results, toy_rows
from sae_lib.report.statistics import CONFIDENCE
from sae_lib.report.tables.main import profile_note
from sae_lib.util.environment import locked_pins
from sae_lib.util.files import file_sha256, read_json
from sae_lib.util.paths import LOCK_FILE

OWN = ("temporal_sae", "atm", "dropout")
# Beside the results: what notebook 05 knows of the run (`provenance`).
PROVENANCE_FILE = "provenance.json"
VERSIONS = ("torch", "transformers", "numpy", "scikit-learn", "pandas", "matplotlib", "typst")
_LEVEL = 0.05
_FEW_SEEDS = 3


def sentences(profile: Profile, results: Results, claims: list[dict[str, Any]], entries: list[Claim]) -> dict[str, Any]:
    """The names of the template that are no quantities: counts, published numbers, verdicts, lists of methods.

    `claims` are the evaluated `entries` of claims.yaml, one mapping each.
    """
    published = {claim.id: {number.name: number.value for number in claim.published} for claim in entries}
    checks = {claim.id: claim.paper_check or "" for claim in entries}
    answered = {claim["id"]: claim for claim in claims}
    counted = [claim for claim in claims if not claim["same_as"] and claim["about"] != "setting"]
    main = results.evaluation[results.evaluation["group"] == "main"]
    baselines = [method_name(m) for m in in_order([*main["method"]]) if m in MAIN_METHODS and m not in OWN]
    seeds = profile.training.seeds
    swept = results.evaluation[results.evaluation["group"].isin(["main", "sweep"])]
    toys = toy_rows(results.toy_summary, "sweep", "tree")
    packaged = "the small Gemma-2 that is packaged with this artifact"
    return {
        "profile": profile,
        "note": _setting(profile),
        "reader": packaged if profile.model.name == "pocket" else profile.model.name,
        "gemma": profile.model.name == PAPERS_MODEL,
        "quick": len(seeds) < _FEW_SEEDS,
        "not_run": NOT_RUN,
        "confidence": f"{100 * CONFIDENCE:.0f}",
        "seed_count": len(seeds),
        "ablation_seed_count": len(profile.training.ablation_seeds),
        "sae_count": results.evaluation["run"].nunique(),
        "toy_count": len(results.toy_summary),
        "listed_methods": listed(baselines),
        "recipe": sae_config(PAPER | {"d_sae": profile.training.d_sae}),
        "temporal": TemporalConfig(),
        "resampling": ResamplingConfig(),
        "masking": MaskingConfig(),
        "better": lambda metric: METRICS[metric].direction,
        "published": lambda claim, name: str(published[claim][name]),
        "ratio": lambda claim, first, second: f"{published[claim][first] / published[claim][second]:.0f}",
        "largest": lambda changes: max(changes, key=lambda change: abs(change.interval.mean)),
        "claim_count": len(claims),
        "finding_count": len(counted),
        "with_verdict": lambda verdict, column="verdict": [c["id"] for c in counted if c[column] == verdict],
        "told_verdicts": lambda column: listed(_counts([c[column] for c in counted if c[column]])),
        "here": lambda claim: answered[claim]["at_this_scale"],
        "on_truth": lambda claim: answered[claim]["ground_truth"],
        "contradictions": [
            claim | {"recomputed": PAPER_CHECKS[checks[claim["id"]]](published[claim["id"]]).reason}
            for claim in counted
            if claim["verdict"] == INCONSISTENT
        ],
        "consistent": [c["id"] for c in counted if checks[c["id"]] and c["verdict"] != INCONSISTENT],
        "rises_with_l0": _trend(swept, 1),
        "falls_with_l0": _trend(swept, -1),
        "toy_falls_with_l0": _trend(toys, -1),
    }


def _counts(verdicts: list[str]) -> list[str]:
    """'2 reproduced', in the order of `VERDICTS`; those that nothing has are left out."""
    return [f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in verdicts]


def _trend(rows: pd.DataFrame, sign: int) -> Callable[[str], list[str]]:
    """The methods whose metric has a rank correlation of this sign with L0, over SAEs."""

    def methods(metric: str) -> list[str]:
        found = []
        for method in in_order([*rows["method"]]) if {"l0", metric} <= set(rows.columns) else []:
            part = rows.loc[rows["method"] == method, ["l0", metric]].astype(float)
            part = part[np.isfinite(part).all(axis=1)]
            if part["l0"].nunique() < _FEW_SEEDS or part[metric].nunique() < _FEW_SEEDS:
                continue
            test = stats.spearmanr(part["l0"], part[metric])
            if test.pvalue < _LEVEL and test.statistic * sign > 0:
                found.append(method_name(method))
        return found

    return methods


def _setting(profile: Profile) -> str:
    training = profile.training
    seeds, ablation_seeds = (", ".join(map(str, each)) for each in (training.seeds, training.ablation_seeds))
    return f"{profile_note(profile)} Seeds {seeds}; ablations {ablation_seeds}."


def made_from(profile: Profile, results_folder: Path) -> list[list[str]]:
    """Name and value of what the paper was made from: settings, versions, what `PROVENANCE_FILE` says of the run (such
    as the device and the hash of the corpus), and the hashes of the results."""
    pins = locked_pins()
    path = results_folder / PROVENANCE_FILE
    run: dict[str, str] = read_json(path) if path.is_file() else {}
    facts = {
        "command": f"make paper PROFILE={profile.name}",
        "setting": _setting(profile),
        "lock": f"requirements.lock, {file_sha256(LOCK_FILE)[:12]}",
        "versions": ", ".join(f"{name} {pins[name]}" for name in VERSIONS if name in pins),
    }
    hashes = {f"results/{p.name}": file_sha256(p)[:16] for p in sorted(results_folder.glob("*.parquet"))}
    return [[name, value] for name, value in (facts | run | hashes).items()]
