"""Evaluating the SAEs of an experiment: each score of each SAE is computed once and kept in its run folder.

What a score depends on beside the SAE (language model, text, settings, the version that the metric declares) is its
key, so a change of one metric makes that one stale, with those that read it, and no other. What the scores need of the
language model is computed once for all SAEs, kept on disk, and opened once in a process.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.data.model_loading import model_identity
from sae_lib.data.tokens import load_tokens
from sae_lib.metrics.registry import Inputs, usual_scores, with_needs
from sae_lib.metrics.scores import SCORES
from sae_lib.metrics.stability.seeds import COLUMNS, seed_stability
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment, concat, tag
from sae_lib.training.run import stored
from sae_lib.util import ranks
from sae_lib.util.files import read_json, write_json
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import for_each, kept

ACROSS_SEEDS = Stage("across seeds", 1)
TOGETHER = 4  # SAEs whose sparse probes are trained at once


def score_inputs(experiment: Experiment) -> Inputs:
    """What the scores of an experiment's SAEs are computed from; the same in one process."""
    profile, paths = experiment.profile, experiment.paths

    def make() -> Inputs:
        return Inputs(
            lambda: experiment.language_model(whole=True),
            lambda: torch.from_numpy(np.array(load_tokens(paths.tokens, "held_out"), dtype=np.int64)),
            profile.evaluation, paths.reference, profile.corpus, experiment.corpus_cache, experiment.writing,
        )  # fmt: skip

    return kept(experiment, "inputs", make)


class Evaluation(NamedTuple):
    """Tidy results: `rows` one row per SAE; `tables` what the scores have behind their numbers, such as `letters` (one
    row per SAE and letter), `density` (per SAE and bin) and `tasks` (per SAE and probing task)."""

    rows: pd.DataFrame
    tables: dict[str, pd.DataFrame]


def evaluate(experiment: Experiment, specs: Sequence[RunSpec], scores: Sequence[str] = ()) -> Evaluation:
    """Compute the scores (the usual ones by default) that are not computed yet; the results of all `specs`, tidy."""
    known = score_keys(experiment)
    keys = {name: known[name] for name in with_needs(scores or usual_scores())}
    folders = experiment.run_folders(specs)
    missing = {run: spec for spec, run in folders.items() if any(stored(run, *each) is None for each in keys.items())}
    waiting = [*missing.values()]
    experiment.need_weights(waiting)
    with experiment.writing():
        if waiting and ranks.rank() == 0:
            for name in keys:
                score_inputs(experiment).reference(name)  # once here, so that the workers only read it
        size = min(TOGETHER, math.ceil(len(waiting) / (experiment.workers * ranks.world())) or 1)
        jobs = [waiting[i : i + size] for i in range(0, len(waiting), size)]
        modules = tuple(dict.fromkeys(SCORES[name].evaluate.__module__ for name in keys))
        for_each(partial(_evaluate_job, keys, modules), experiment, jobs, experiment.workers, "evaluate")
    rows = []
    tables: dict[str, list[pd.DataFrame]] = {}
    for spec, folder in folders.items():
        row = {"run": folder.name, **describe(spec, read_json(folder / "run.json"))}
        for name, key in keys.items():
            result = stored(folder, name, key) or {}
            row |= {column: np.nan if value is None else value for column, value in result["summary"].items()}
            for table, content in result["tables"].items():
                tables.setdefault(table, []).append(tag(table_from_json(content), spec, folder.name))
        rows.append(row)
    return Evaluation(pd.DataFrame(rows), {name: concat(frames) for name, frames in tables.items()})


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
    """What each score depends on beside the SAE, as a key."""
    identity, corpus = model_identity(experiment.profile.model), experiment.profile.corpus
    held_out = read_json(experiment.paths.tokens / "manifest.json")["splits"]["held_out"]
    keys: dict[str, str] = {}
    for name, score in SCORES.items():
        settings = score_inputs(experiment).settings(name)
        text = score.text_key(settings, corpus) if score.text_key else None
        section = settings.model_dump(mode="json", exclude_defaults=True) if settings else None
        keys[name] = result_key(score.stage, identity, held_out, section, text, [keys[need] for need in score.needs])
    return keys


def _evaluate_job(keys: Mapping[str, str], modules: Sequence[str], experiment: Experiment, job: list[RunSpec]) -> None:
    """Compute what is missing of the scores in `keys` for a few SAEs together; `modules` register them in a worker."""
    for module in modules:
        import_module(module)
    folders = [*experiment.run_folders(job).values()]
    saes = [load_autoencoder(folder, experiment.device) for folder in folders]
    for name, key in keys.items():
        waiting = [i for i, folder in enumerate(folders) if stored(folder, name, key) is None]
        needs = SCORES[name].needs
        earlier = [{need: (stored(folders[i], need, keys[need]) or {})["kept"] for need in needs} for i in waiting]
        found = SCORES[name].evaluate([saes[i] for i in waiting], score_inputs(experiment), earlier)
        for i, measured in zip(waiting, found, strict=True):
            summary = {column: None if value != value else value for column, value in measured.summary.items()}
            tables = {table: table_as_json(rows) for table, rows in measured.tables.items()}
            content = {"key": key, "summary": summary, "tables": tables, "kept": measured.kept}
            write_json(folders[i] / f"{name}.json", content)


def across_seeds(experiment: Experiment, specs: Sequence[RunSpec]) -> pd.DataFrame:
    """How alike the dictionaries of two seeds are: for each group and method of `specs`, one row per pair of seeds.

    Latents that never fire on the held-out text are left out.
    """
    store_key, folders = experiment.store_key, experiment.run_folders(specs)
    file = experiment.paths.results / "seed_stability.json"
    runs = [experiment.run_key(spec, store_key) for spec in specs]
    key = result_key(ACROSS_SEEDS, runs, score_keys(experiment)["stability"])
    if not file.is_file() or read_json(file)["key"] != key:
        text = score_inputs(experiment).reference("stability").text_activations
        frames = []
        for group, method in dict.fromkeys((spec.group, spec.method) for spec in specs):
            chosen = {spec: run for spec, run in folders.items() if (spec.group, spec.method) == (group, method)}
            saes = {spec.seed: load_autoencoder(run) for spec, run in chosen.items()}
            with torch.no_grad():
                firing = {seed: (sae.encode(text) != 0).any(dim=0) for seed, sae in saes.items()}
            frames.append(seed_stability(saes, firing).assign(group=group, method=method))
        with experiment.writing():
            write_json(file, {"key": key, "rows": concat(frames).to_dict(orient="records")})
    return pd.DataFrame(read_json(file)["rows"], columns=[*COLUMNS, "group", "method"])


def table_as_json(table: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows of a table. JSON has no NaN: it is null."""
    return table.astype(object).where(table.notna(), None).to_dict(orient="split", index=False)


def table_from_json(content: Mapping[str, Any]) -> pd.DataFrame:
    """The table that `table_as_json` wrote."""
    return pd.DataFrame(content["data"], columns=content["columns"])
