"""The artifact in small: a profile, its text and three notebooks that go from text to figures on the packaged model.

The notebooks run in the process that calls `run`, not in kernels, so that a process can be forked, killed and run
again many times a minute. All else is what `make paper` does.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import yaml

from sae_lib.profiles.profile import PROFILES, load_profile
from sae_lib.study import pipeline
from sae_lib.util.files import atomic_write

NAME = "small"
STAGES = ("tokens", "harvest", "training", "scores", "tables", "figures")
SEEDS = (1, 2)
METHODS = ("topk", "temporal_sae")

# What each notebook does; `stage(name)` is there when it runs.
NOTEBOOKS = {
    "01_data": """
        from sae_lib.report.provenance import write_stage_manifest
        from sae_lib.study.experiment import Experiment

        experiment = Experiment.open(profile)
        paths = experiment.paths
        stage("tokens")
        lm = experiment.language_model(whole=False)
        experiment.build_tokens(lm.tokenizer)
        stage("harvest")
        experiment.harvest(lm)
        write_stage_manifest(paths, "01", [paths.tokens / "manifest.json", paths.store / "manifest.json"])
    """,
    "02_train": """
        from sae_lib.profiles.runs import plan_runs
        from sae_lib.report.provenance import write_stage_manifest
        from sae_lib.study.experiment import Experiment

        experiment = Experiment.open(profile)
        specs = [s for s in plan_runs(experiment.profile, None, ["main"]) if s.method in METHODS]
        stage("training")
        history = experiment.train(specs)
        write_stage_manifest(experiment.paths, "02", [experiment.save(history, "history_main")])
    """,
    "03_paper": """
        import pandas as pd

        from sae_lib.profiles.runs import plan_runs
        from sae_lib.report.figures.training import training_curves
        from sae_lib.report.figures.explaining import density_figure
        from sae_lib.report.provenance import write_stage_manifest
        from sae_lib.report.figures.style import save_figure
        from sae_lib.report.tables.write import write_table
        from sae_lib.report.tables.main import main_table
        from sae_lib.study.scoring import across_seeds, evaluate
        from sae_lib.study.experiment import Experiment

        experiment = Experiment.open(profile)
        paths = experiment.paths
        specs = [s for s in plan_runs(experiment.profile, None, ["main"]) if s.method in METHODS]
        stage("scores")
        evaluation = evaluate(experiment, specs)
        pairs = across_seeds(experiment, specs)
        stage("tables")
        frames = {"evaluation_main": evaluation.rows, "letters_main": evaluation.tables["letters"]}
        frames |= {"density_main": evaluation.tables["density"], "probing_tasks_main": evaluation.tables["tasks"]}
        frames |= {"seed_stability_main": pairs}
        files = [experiment.save(frame, name) for name, frame in frames.items()]
        files += write_table(main_table(evaluation.rows), "table_main", paths.figures)
        stage("figures")
        history = pd.read_parquet(paths.results / "history_main.parquet")
        drawn = {"curves": training_curves(history), "rates": density_figure(evaluation.tables["density"])}
        for name, (fig, data) in drawn.items():
            files += save_figure(fig, name, data, paths.figures)
        write_stage_manifest(paths, "03", files)
    """,
}


def write(folder: Path) -> Path:
    """Write text, notebooks and profile into `folder`; returns the profile."""
    texts = [text for name in sorted(vars(np)) if (text := getattr(np, name).__doc__) and len(text) > 400][:120]
    _write_lines(folder / "text.jsonl", [{"text": text} for text in texts])
    _write_lines(folder / "labelled.jsonl", [{"text": t[:200], "label": f"{len(t) % 2}"} for t in texts])
    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text(encoding="utf8"))
    content |= {
        "name": NAME,
        "corpus": {"source": "files", "files": [str(folder / "text.jsonl")], "lessons_fraction": 0.2,
                   "held_out_fraction": 0.1, "calibration_fraction": 0.1},
        "data": {"context_length": 64, "train_tokens": 1024, "held_out_contexts": 2, "calibration_contexts": 1,
                 "window": 16, "batch_tokens": 256, "shard_rows": 256},
        "evaluation": {
            "reconstruction": {"batch_contexts": 2},
            "absorption": {"max_words": 80, "probe_epochs": 2, "sparse_min_steps": 2, "icl_examples": 1},
            "stability": {"words_per_letter": 1, "contexts": 2},
            "probing": {"source": "files", "files": {"numpy": {"train": str(folder / "labelled.jsonl")}}, "context": 16,
                        "train_per_task": 8, "test_per_task": 4, "min_per_class": 2},
        },
    }  # fmt: skip
    content["training"] |= {
        "d_sae": 64, "steps": 8, "schedule_scale": 0.0017, "workers": 1, "seeds": [*SEEDS],
        "ablation_seeds": [*SEEDS], "checkpoint_every": 3,
    }  # fmt: skip
    for method in ("topk", "batchtopk", "matryoshka_2", "matryoshka_4"):
        content["methods"][method] |= {"k": 8}
    content["as_written"] = {}
    for name, code in NOTEBOOKS.items():
        parameters = nbformat.v4.new_code_cell('profile = "pocket"', metadata={"tags": ["parameters"]})
        cells = [parameters, nbformat.v4.new_code_cell(textwrap.dedent(code).strip())]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    path = folder / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf8")
    return path


def run(profile: Path, stage: Callable[[str], object]) -> list[str]:
    """`make paper` on the notebooks beside `profile`; `stage` is called with the name of each stage as it begins.

    Returns the notebooks that ran.
    """
    saved = pipeline.run_notebook
    pipeline.run_notebook = _in_this_process(stage)
    try:
        return pipeline.run(load_profile(profile), {"profile": str(profile)}, notebooks=profile.parent)
    finally:
        pipeline.run_notebook = saved


def _in_this_process(stage: Callable[[str], object]) -> Callable[..., None]:
    def run_notebook(source: Path, folder: Path, failed: Path, log: Path, parameters: Mapping[str, Any]) -> None:
        notebook = nbformat.read(source, as_version=4)
        names = {"stage": stage, "METHODS": METHODS} | dict(parameters)
        for cell in notebook.cells[1:]:
            exec(compile(cell.source, source.name, "exec"), names)
        with atomic_write(folder / source.name) as copy:
            copy.write(nbformat.writes(notebook))

    return run_notebook


def _write_lines(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf8")


def quiet() -> None:
    """No progress bars and warnings of the process that is killed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
