"""Evaluating the SAEs of an experiment: each score of each SAE is computed once and kept in its run folder.

What a score depends on beside the SAE (language model, text, settings, the metric's code) is its key, so a change of
one metric makes that one stale and no other.

What the metrics need of an experiment's language model: computed once, kept on disk, opened once in a process.

Every SAE is scored against the same activations, prompts and ground-truth probes, so none of this is done per SAE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.model_loading import model_identity
from sae_lib.data.tokens import load_tokens
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.absorption.score import LETTER_COLUMNS, evaluate_absorption_many
from sae_lib.metrics.probing.reference import ProbingReference, build_probing_reference
from sae_lib.metrics.probing.score import evaluate_probing
from sae_lib.metrics.probing.sources import text_key
from sae_lib.metrics.reconstruction import CoreReference, build_core_reference, evaluate_reconstruction
from sae_lib.metrics.stability.contexts import context_stability
from sae_lib.metrics.stability.reference import StabilityReference, build_stability_reference
from sae_lib.metrics.stability.seeds import seed_stability
from sae_lib.metrics.stability.tokens import token_stability
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment, concat, opened, tag
from sae_lib.util import ranks
from sae_lib.util.files import read_json, write_json
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import for_each, kept


def language_model(experiment: Experiment) -> LanguageModel:
    """The whole language model, loaded once in a process."""
    lm: LanguageModel = kept(experiment.source, "language model", lambda: experiment.language_model(whole=True))
    return lm


def core_reference(experiment: Experiment) -> CoreReference:
    """What reconstruction and behaviour are measured against, on the held-out text."""

    def make() -> CoreReference:
        batch = experiment.profile.evaluation.batch_contexts
        lm = language_model(experiment)
        return build_core_reference(lm, _held_out(experiment), batch, experiment.paths.reference)

    reference: CoreReference = kept(experiment.source, "core reference", make)
    return reference


def absorption_reference(experiment: Experiment) -> AbsorptionReference:
    """Words, residual streams at the words in spelling prompts, and the ground-truth probe."""

    def make() -> AbsorptionReference:
        settings = experiment.profile.evaluation.absorption
        return build_absorption_reference(language_model(experiment), settings, experiment.paths.reference)

    reference: AbsorptionReference = kept(experiment.source, "absorption reference", make)
    return reference


def stability_reference(experiment: Experiment) -> StabilityReference:
    """The same words in many contexts, and consecutive tokens of the held-out text."""

    def make() -> StabilityReference:
        settings = experiment.profile.evaluation
        return build_stability_reference(
            language_model(experiment), absorption_reference(experiment), settings.absorption, settings.stability,
            _held_out(experiment), experiment.paths.reference,
        )  # fmt: skip

    reference: StabilityReference = kept(experiment.source, "stability reference", make)
    return reference


def probing_reference(experiment: Experiment) -> ProbingReference:
    """The texts of the probing tasks as the language model sees them."""

    def make() -> ProbingReference:
        profile = experiment.profile
        return build_probing_reference(
            language_model(experiment), profile.evaluation.probing, profile.corpus, experiment.paths.reference,
            experiment.corpus_cache,
        )  # fmt: skip

    reference: ProbingReference = kept(experiment.source, "probing reference", make)
    return reference


def _held_out(experiment: Experiment) -> Int[Tensor, "context position"]:
    return torch.from_numpy(np.array(load_tokens(experiment.paths.tokens, "held_out"), dtype=np.int64))


DENSITY_BINS = np.linspace(-6.0, 0.0, 31)  # log10 of the firing rate
TOGETHER = 4  # SAEs whose sparse probes are trained at once
STAGES = {name: Stage(f"score {name}", 1) for name in ("reconstruction", "absorption", "stability", "probing")}
ACROSS_SEEDS = Stage("across seeds", 1)


@dataclass(frozen=True)
class Evaluation:
    """Tidy results: `rows` one row per SAE, `letters` one per SAE and letter, `density` one per SAE and bin, `tasks`
    one per SAE and probing task."""

    rows: pd.DataFrame
    letters: pd.DataFrame
    density: pd.DataFrame
    tasks: pd.DataFrame


def evaluate(
    experiment: Experiment, specs: Sequence[RunSpec], scores: Sequence[str] = (), description: str = "evaluate"
) -> Evaluation:
    """Compute the scores (all by default) that are not computed yet; the results of all `specs`, tidy."""
    names = tuple(name for name in SCORES if not scores or name in scores)
    keys = score_keys(experiment)
    store_key = experiment.store_key
    folders = {experiment.run_folder(spec, store_key): spec for spec in specs}
    waiting = [spec for folder, spec in folders.items() if any(_stored(folder, n, keys[n]) is None for n in names)]
    if waiting and ranks.rank() == 0:
        for name in names:
            _REFERENCES[name](experiment)  # once here, so that the workers only read what the language model gives
    size = min(TOGETHER, max(1, len(waiting) // ranks.world()))
    jobs = [[(spec, names) for spec in waiting[i : i + size]] for i in range(0, len(waiting), size)]
    for_each(_evaluate_job, experiment.source, jobs, experiment.workers, description)
    rows, letters, densities, tasks = [], [], [], []
    for spec in specs:
        folder = experiment.run_folder(spec, store_key)
        found = {name: _stored(folder, name, keys[name]) or {} for name in names}
        row = {"run": folder.name, **describe(spec, read_json(folder / "run.json"))}
        for result in found.values():
            row |= result["summary"]
        rows.append(row)
        if "absorption" in found:
            letters.append(tag(pd.DataFrame(found["absorption"]["letters"], columns=LETTER_COLUMNS), spec, folder.name))
        if "reconstruction" in found:
            counts = {"log10_rate_left": DENSITY_BINS[:-1], "count": found["reconstruction"]["density"]}
            densities.append(tag(pd.DataFrame(counts), spec, folder.name))
        if "probing" in found:
            tasks.append(tag(pd.DataFrame(found["probing"]["tasks"]), spec, folder.name))
    return Evaluation(pd.DataFrame(rows), concat(letters), concat(densities), concat(tasks))


def describe(spec: RunSpec, run: dict[str, Any]) -> dict[str, Any]:
    """The columns of a result row that say what the SAE is."""
    config = spec.config
    masking, temporal, resampling = (config.get(name) for name in ("masking", "temporal", "resampling"))
    return {
        "group": spec.group, "method": spec.method, "label": spec.label, "seed": spec.seed,
        "architecture": config.architecture, "temporal": temporal is not None,
        "resampling": resampling is not None, "gradient_scaling": config.get("gradient_scaling") is not None,
        "masking": masking is not None, "c": masking.c if masking else np.nan, "r": masking.r if masking else np.nan,
        **dict.fromkeys(("importance", "dropped", "varied", "paper_run")), **spec.fields,
        "l1_coefficient": config.get("l1_coefficient") or 0.0,
        "temporal_coefficient": temporal.coefficient if temporal else np.nan,
        "resampling_threshold": resampling.threshold if resampling else np.nan,
        "k": config.get("k") or np.nan, "target_l0": config.get("target_l0") or np.nan, "d_sae": config.d_sae,
        "steps": run["steps"], "trained_tokens": run["tokens"], "train_seconds": run["seconds"],
        "final_loss": run["final"].get("loss", np.nan),
    }  # fmt: skip


def score_keys(experiment: Experiment) -> dict[str, str]:
    """What each score depends on beside the SAE, as a content key."""
    evaluation = experiment.profile.evaluation
    settings = evaluation.model_dump(mode="json")
    absorption = [*STAGES["absorption"], settings["absorption"]]
    depends: dict[str, list[Any]] = {
        "reconstruction": [],
        "absorption": [settings["absorption"]],
        # Contexts are those of the latents that absorption finds for a letter.
        "stability": [absorption, settings["stability"]],
        "probing": [settings["probing"], text_key(evaluation.probing, experiment.profile.corpus)],
    }
    held_out = read_json(experiment.paths.tokens / "manifest.json")["splits"]["held_out"]
    shared = [model_identity(experiment.profile.model), held_out]
    return {name: result_key(STAGES[name], *shared, *depends[name]) for name in SCORES}


def _evaluate_job(source: str, job: list[tuple[RunSpec, tuple[str, ...]]]) -> None:
    """Compute what is missing of the named scores for a few SAEs together."""
    experiment = opened(source)
    keys = kept(source, "score keys", lambda: score_keys(experiment))
    store_key = kept(source, "store key", lambda: experiment.store_key)
    folders = [experiment.run_folder(spec, store_key) for spec, _ in job]
    saes = [load_autoencoder(folder, experiment.device) for folder in folders]
    for name in job[0][1]:
        waiting = [i for i, folder in enumerate(folders) if _stored(folder, name, keys[name]) is None]
        found = SCORES[name](experiment, [saes[i] for i in waiting], [folders[i] for i in waiting])
        for i, result in zip(waiting, found, strict=True):
            write_json(_file(folders[i], name), {"key": keys[name], **result})


def _reconstruction(experiment: Experiment, saes: list[Autoencoder], folders: list[Path]) -> list[dict[str, Any]]:
    lm, core = language_model(experiment), core_reference(experiment)
    results = []
    for sae in saes:
        summary, density = evaluate_reconstruction(sae, lm, core, experiment.profile.evaluation.batch_contexts)
        # Clipped after the logarithm: a rate of 1e-6 in single precision lies just outside the first bin.
        rates = np.log10(density.double().numpy().clip(min=1e-12)).clip(DENSITY_BINS[0], DENSITY_BINS[-1])
        counts, _ = np.histogram(rates, bins=DENSITY_BINS)
        results.append({"summary": _no_nan(summary), "density": counts.tolist()})
    return results


def _absorption(experiment: Experiment, saes: list[Autoencoder], folders: list[Path]) -> list[dict[str, Any]]:
    settings = experiment.profile.evaluation.absorption
    return [
        {
            "summary": _no_nan(found.summary),
            "letters": [_no_nan(row) for row in found.letters.to_dict(orient="records")],
            "main_latents": found.main_latents,
        }
        for found in evaluate_absorption_many(saes, absorption_reference(experiment), settings)
    ]


def _stability(experiment: Experiment, saes: list[Autoencoder], folders: list[Path]) -> list[dict[str, Any]]:
    reference = stability_reference(experiment)
    rows, has_predecessor = reference.text_activations, reference.has_predecessor
    results = []
    for sae, folder in zip(saes, folders, strict=True):
        main_latents = read_json(_file(folder, "absorption"))["main_latents"]
        summary = context_stability(sae, reference, main_latents) | token_stability(sae, rows, has_predecessor)
        results.append({"summary": _no_nan(summary)})
    return results


def _probing(experiment: Experiment, saes: list[Autoencoder], folders: list[Path]) -> list[dict[str, Any]]:
    reference, settings = probing_reference(experiment), experiment.profile.evaluation.probing
    found = [evaluate_probing(sae, reference, settings) for sae in saes]
    return [
        {"summary": _no_nan(each.summary), "tasks": [_no_nan(row) for row in each.tasks.to_dict(orient="records")]}
        for each in found
    ]


# In the order in which they are computed: stability reads which latents stand for a letter from absorption's result.
SCORES: dict[str, Callable[[Experiment, list[Autoencoder], list[Path]], list[dict[str, Any]]]] = {
    "reconstruction": _reconstruction,
    "absorption": _absorption,
    "stability": _stability,
    "probing": _probing,
}
_REFERENCES: dict[str, Callable[[Experiment], Any]] = {
    "reconstruction": core_reference,
    "absorption": absorption_reference,
    "stability": stability_reference,
    "probing": probing_reference,
}


def across_seeds(experiment: Experiment, specs: Sequence[RunSpec]) -> pd.DataFrame:
    """How alike the dictionaries of two seeds are: for each group and method of `specs`, one row per pair of seeds.

    Latents that never fire on the held-out text are left out.
    """
    store_key = experiment.store_key
    file = experiment.paths.results / "seed_stability.json"
    runs = [experiment.run_key(spec, store_key) for spec in specs]
    key = result_key(ACROSS_SEEDS, runs, score_keys(experiment)["stability"])
    if not file.is_file() or read_json(file)["key"] != key:
        text = stability_reference(experiment).text_activations
        frames = []
        for group, method in dict.fromkeys((spec.group, spec.method) for spec in specs):
            chosen = [spec for spec in specs if (spec.group, spec.method) == (group, method)]
            saes = {spec.seed: load_autoencoder(experiment.run_folder(spec, store_key)) for spec in chosen}
            with torch.no_grad():
                firing = {seed: (sae.encode(text) != 0).any(dim=0) for seed, sae in saes.items()}
            frames.append(seed_stability(saes, firing).assign(group=group, method=method))
        rows = concat(frames).to_dict(orient="records")
        write_json(file, {"key": key, "rows": rows})
    return pd.DataFrame(read_json(file)["rows"])


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _stored(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """The finished score in a run folder, if it is the one with this key."""
    file = _file(folder, name)
    result = read_json(file) if file.is_file() else None
    return result if isinstance(result, dict) and result.get("key") == key else None


def _no_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a value that is not there is null."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
