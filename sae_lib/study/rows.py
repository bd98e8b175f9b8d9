"""Rows of finished SAEs, kept with the repository: what is known of an SAE is never computed twice.

What a run gave is small: its `run.json`, its training curves, and every score with its key. It stands in
`figures/<profile>/rows/<run>.json.gz`. Whoever asks for an SAE to be trained (`Experiment.train`) has these files laid
out in the run's folder again, if its scores have the keys that they would get now. Such a run counts as trained;
whoever needs its weights trains it once more (`Experiment.need_weights`).
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sae_lib.metrics.registry import usual_scores, with_needs
from sae_lib.profiles.runs import ABLATION_GROUPS, ABLATION_SCORES, RunSpec
from sae_lib.study.experiment import Experiment
from sae_lib.study.extras import EXTRAS
from sae_lib.study.scoring import score_keys, table_from_json
from sae_lib.training.run import WITHOUT_WEIGHTS, read_history, stored
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.files import atomic_write, read_json, write_json, write_parquet
from sae_lib.util.paths import Paths

# Of some runs only: L0 on the calibration documents (a sweep's), and what `extras` measures.
OF_SOME = ("calibration", *(extra.name for extra in EXTRAS))


def scores_of(spec: RunSpec) -> tuple[str, ...]:
    """The scores that an SAE has in its group."""
    return tuple(with_needs(ABLATION_SCORES if spec.group in ABLATION_GROUPS else usual_scores()))


def rows_folder(paths: Paths) -> Path:
    """Where the rows of a profile are kept."""
    return paths.figures / "rows"


def is_known(run: Path, spec: RunSpec, keys: Mapping[str, str]) -> bool:
    """Whether the run folder of an SAE has everything that is shown of it."""
    return (run / "run.json").is_file() and all(stored(run, name, keys[name]) is not None for name in scores_of(spec))


def keep(experiment: Experiment, specs: Sequence[RunSpec]) -> None:
    """Write the rows of those of `specs` that have their scores."""
    keys = score_keys(experiment)
    for spec, run in experiment.run_folders(specs).items():
        if not is_known(run, spec, keys):
            continue
        scores = {name: found for name, key in keys.items() if (found := stored(run, name, key)) is not None}
        scores |= {name: read_json(run / f"{name}.json") for name in OF_SOME if (run / f"{name}.json").is_file()}
        content: dict[str, Any] = {"run": read_json(run / "run.json") | {WITHOUT_WEIGHTS: True}, "scores": scores}
        if spec.trained:
            content["history"] = json.loads(read_history(run).to_json(orient="split", double_precision=15))
        # The same content is the same bytes: no time of writing inside.
        packed = gzip.compress(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), mtime=0)
        file = _rows_file(experiment, run)
        if not file.is_file() or file.read_bytes() != packed:
            with atomic_write(file, "wb") as stream:
                stream.write(packed)


class Rows(NamedTuple):
    """What `keep` writes of one SAE: its `run.json`, the scores by name, and the training curves if asked for."""

    run: dict[str, Any]
    scores: dict[str, Any]
    history: pd.DataFrame | None


def read_rows(file: Path, *, with_history: bool = False) -> Rows:
    """Raises ArtifactError when a file of rows cannot be read, or lacks the training curves that are asked for."""
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        scores = {name: {"key": score["key"], **score} for name, score in content["scores"].items()}
        return Rows(content["run"], scores, table_from_json(content["history"]) if with_history else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        told = f"rows: {file} cannot be read ({first_line(error)}); restore it with git"
        raise ArtifactError(told) from None


def restore(experiment: Experiment, specs: Sequence[RunSpec]) -> None:
    """Lay out the rows of those of `specs` that have no run folder, where all scores have the keys of now.

    Raises ArtifactError when a file of rows cannot be read.
    """
    if not rows_folder(experiment.paths).is_dir():
        return
    keys = score_keys(experiment)
    with experiment.writing():
        for spec, run in experiment.run_folders(specs).items():
            file = _rows_file(experiment, run)
            if not file.is_file() or (run / "run.json").is_file():
                continue
            rows = read_rows(file, with_history=spec.trained)
            scores = {
                name: score for name, score in rows.scores.items() if name in OF_SOME or score["key"] == keys.get(name)
            }
            if not {*scores_of(spec)} <= {*scores}:
                continue
            for name, score in scores.items():
                write_json(run / f"{name}.json", score)
            if rows.history is not None:
                write_parquet(run / "history.parquet", rows.history, index=False)
            write_json(run / "run.json", rows.run)  # last: with it the run counts as finished


def _rows_file(experiment: Experiment, run: Path) -> Path:
    return rows_folder(experiment.paths) / f"{run.name}.json.gz"
