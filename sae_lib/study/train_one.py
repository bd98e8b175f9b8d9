"""One SAE by its method's name on any language model and text: harvest, train, and where it lies.

    python -m sae_lib train matryoshka_4 --model EleutherAI/pythia-70m --layer 3 --files text.jsonl --name mine

What is asked for is written as a profile into the SAE's folder, so that the same command goes on where it stopped, and
the file can be kept, changed and run as any other profile.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_lib.autoencoders.config import config_class
from sae_lib.autoencoders.method import METHODS
from sae_lib.data.config import ModelConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.mechanisms import methods
from sae_lib.profiles.profile import load_profile, nearest_hint, validated
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write
from sae_lib.util.paths import output_root

PUBLISHED_STEPS = 4882  # of the runs whose schedules the recipes count
WINDOW, BATCH = 16, 2048


def train_one(
    method: str,
    model: str,
    layer: int,
    name: str,
    *,
    revision: str | None = None,
    files: Sequence[str] = (),
    text_field: str = "text",
    tokens: int = 4_096_000,
    d_sae: int | None = None,
    sparsity: float | None = None,
    seed: int = 42,
    device: str = "auto",
    dtype: str = "float32",
) -> Path:
    """Train `method` on `tokens` tokens (one pass); returns the SAE's folder, which `evaluate` and `export` read.

    `model`: "pocket", a local folder, a GGUF file or a hub id; `files`: .jsonl, .parquet or .txt, the packaged
    documentation without any; `sparsity`: k, the L0 (32 by default) or the L1 coefficient, as the method is told.

    Raises ArtifactError: an unknown method, an L1 method without a coefficient, a model or text that cannot be read.
    """
    known = methods("main", "field")
    if method not in known:
        raise ArtifactError(f"method: there is no '{method}'{nearest_hint(method, known)}")
    knob = config_class(METHODS[method].recipe["architecture"]).knob
    if knob == "l1_coefficient" and sparsity is None:
        raise ArtifactError(f"sparsity: {method} needs its L1 coefficient; with inputs of E||x||^2 = 1 try 0.06")
    if tokens < BATCH:
        raise ArtifactError(f"tokens: {tokens} are less than a batch of {BATCH}; show more")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ArtifactError(f"name: '{name}' is to name a folder: letters, digits, '_', '-' and '.'")
    source = {"name": model, "revision": revision, "layer": layer, "device": device, "dtype": dtype}
    lm = LanguageModel.load(validated(ModelConfig, source, "model"), whole=False)
    level = 32 if sparsity is None else int(sparsity) if knob == "k" else sparsity
    # A profile's L1 methods have a sweep; it is not run.
    swept = {method: [float(level) / 2, 2 * float(level)]} if knob == "l1_coefficient" else {}
    texts = {"source": "files", "files": [str(Path(f).resolve()) for f in files], "text_field": text_field}
    pocket, steps = load_profile("pocket"), tokens // BATCH
    content: dict[str, Any] = {
        "extends": "pocket",
        "name": name,
        "description": f"{method} alone",
        "model": source,
        "corpus": {"lessons_fraction": 0.0} | (texts if files else {}),
        "data": {
            "train_tokens": tokens, "batch_tokens": BATCH, "window": WINDOW, "held_out_contexts": 1,
            "calibration_contexts": 1,
        },
        "training": {
            "d_sae": d_sae or 8 * lm.d_in, "steps": steps, "schedule_scale": steps / PUBLISHED_STEPS, "seeds": [seed],
            "ablation_seeds": [seed], "checkpoint_every": 500,
        },
        "methods": dict.fromkeys(pocket.methods) | {method: {knob: level, "dead_after_tokens": max(1, tokens // 5)}},
        "as_written": dict.fromkeys(pocket.as_written),
        "sweep": {"seeds": [seed + 1], "coefficients": dict.fromkeys(pocket.sweep.coefficients) | swept},
        "ablations": {"atm_grid_seeds": [seed + 1]},
    }  # fmt: skip
    file = output_root() / name / "profile.yaml"
    with atomic_write(file) as target:
        yaml.safe_dump(content, target, sort_keys=False)
    try:
        experiment = Experiment.open(str(file))
    except ArtifactError:
        file.unlink()  # no profile stays that cannot be opened
        raise
    experiment.prepare(lm)
    spec = RunSpec("main", method, "", seed, experiment.profile.sae_config(method))
    experiment.train([spec])
    experiment.need_weights([spec])  # where rows alone are known
    return experiment.run_folder(spec, experiment.store_key)
