"""The SAE to look at: one of a profile's main table, or a folder of any origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.data.tokens import load_tokens
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.score import lacking
from sae_lib.profiles.runs import Calibration, RunSpec, plan_runs
from sae_lib.report.names import method_name
from sae_lib.share.browser.examination import Examination, examine
from sae_lib.share.evaluate import default_settings
from sae_lib.share.inputs import open_pair
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import score_inputs
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json
from sae_lib.util.paths import shown

CONTEXTS = 1024


def examine_run(experiment: Experiment, method: str, seed: int, contexts: int = CONTEXTS) -> Examination:
    """An SAE of the profile's main table (or its untrained control), with the other seeds for comparison.

    The contexts are taken evenly from the training text, where the spelling lessons of the packaged corpus are too.

    Raises:
        ArtifactError: there is no such method or seed in the profile, or the SAE is not trained yet.
    """
    specs = {spec.seed: spec for spec in _main_specs(experiment) if spec.method == method}
    if not specs:
        known = dict.fromkeys(spec.method for spec in _main_specs(experiment))
        raise ArtifactError(f"method: {method!r} is not in the main table; choose from {', '.join(known)}")
    if seed not in specs:
        raise ArtifactError(f"seed: {method} has no seed {seed}; choose from {', '.join(map(str, specs))}")
    store_key = experiment.store_key
    folders = {known: experiment.run_folder(spec, store_key) for known, spec in specs.items()}
    made = {spec.seed for spec in experiment.at_hand([*specs.values()])}
    if seed not in made:
        # Else `make paper` would not look into the folders of finished runs.
        record = experiment.paths.keys / "02_train.json"
        fix = f"remove {shown(record)} and run" if record.is_file() else "run"
        raise ArtifactError(
            f"run: {method}, seed {seed} of {experiment.profile.name} is not trained by this version of the code, or "
            f"its weights are gone; {fix} `make paper PROFILE={experiment.source}`"
        )
    saes = {known: load_autoencoder(folder, experiment.device) for known, folder in folders.items() if known in made}
    train = load_tokens(experiment.paths.tokens, "train")
    chosen = np.linspace(0, len(train) - 1, min(contexts, len(train))).astype(int)
    return examine(
        saes.pop(seed),
        score_inputs(experiment).lm,
        torch.from_numpy(np.array(train[chosen], dtype=np.int64)),
        score_inputs(experiment).reference("absorption"),
        experiment.profile.evaluation.absorption,
        seeds=saes,
        title=f"{method_name(method)}, seed {seed} · {experiment.profile.name}",
        text="training text",
        batch=experiment.profile.evaluation.reconstruction.batch_contexts,
    )


def _main_specs(experiment: Experiment) -> list[RunSpec]:
    file = experiment.paths.results / "calibration.json"
    if not file.is_file():
        raise ArtifactError(
            f"profile: {experiment.profile.name} has no trained SAEs in {shown(experiment.paths.root)}; "
            f"run `make paper PROFILE={experiment.source}`"
        )
    return plan_runs(experiment.profile, Calibration(**read_json(file)), ("main", "untrained"))


def examine_folder(
    folder: Path | str,
    model: str,
    layer: int | None = None,
    *,
    revision: str | None = None,
    files: Sequence[Path | str] = (),
    text_field: str = "text",
    contexts: int = CONTEXTS,
    context_length: int = 128,
    max_words: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    cache: Path | str | None = None,
    any_origin: bool = False,
    centre: bool = False,
) -> Examination:
    """An SAE in a folder that `share.load.load_sae` reads, on any model; arguments as in `evaluate.evaluate_sae`.

    Where the tokenizer has no words to spell, letters are left out and the facts say why.

    Raises:
        ArtifactError: as `evaluate_sae` does.
    """
    pair = open_pair(
        folder, model, layer, revision=revision, device=device, dtype=dtype, any_origin=any_origin, centre=centre
    )
    config = AbsorptionConfig(max_words=max_words)
    settings = default_settings().model_copy(update={"absorption": config})
    inputs = pair.inputs(settings, None, files, text_field, contexts, context_length, cache)
    tokens = inputs.held_out
    reference = inputs.reference("absorption")
    found = examine(
        pair.sae, pair.lm, tokens, reference, config, title=f"{Path(folder).name} · {pair.lm.name}",
        text="held-out text" if not files else "the given files",
    )  # fmt: skip
    if why := lacking(inputs):
        found.facts["first letters"] = f"not shown ({why})"
    return found
