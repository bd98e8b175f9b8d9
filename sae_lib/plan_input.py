"""What of a profile and its surroundings would stop a run at once, found before it starts: one line each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sae_lib import documentation
from sae_lib.errors import ArtifactError
from sae_lib.paths import OUTPUT_VARIABLE, Paths
from sae_lib.plan_sizes import model_size
from sae_lib.plan_speed import has_gpu
from sae_lib.profile import CorpusConfig, ModelConfig, Profile


def unwritable(paths: Paths) -> str | None:
    """Why nothing can be written where a profile's results go; None where something can."""
    place = paths.root
    while not os.path.lexists(place):
        place = place.parent
    advice = f"set {OUTPUT_VARIABLE} to a folder that you may write"
    if not place.is_dir():
        return f"output: {place} is not a folder; {advice}"
    try:
        # Some file systems refuse only the attempt. The file is gone when it is closed.
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"output: cannot write in {place} ({error.strerror}); {advice}"


def missing_input(profile: Profile) -> list[str]:
    """What a profile names and this machine, or the model, does not have."""
    found = [_layer(profile.model), _device(profile.model), _text(profile.corpus), _probing(profile)]
    return [line for line in found if line is not None]


def _layer(model: ModelConfig) -> str | None:
    layers = model_size(model).layers
    if model.layer < layers:
        return None
    return f"model.layer: {model.layer} is beyond {model.name}, which has {layers} layers: 0-{layers - 1}"


def _device(model: ModelConfig) -> str | None:
    if model.device != "cuda" or has_gpu():
        return None
    return "model.device: cuda is not available on this machine; choose auto or cpu"


def _text(corpus: CorpusConfig) -> str | None:
    if corpus.source == "files":
        missing = [file for file in corpus.files if not Path(file).is_file()]
        return f"corpus.files: no such file: {', '.join(missing)}" if missing else None
    if corpus.source == "documentation":
        try:
            for package in corpus.packages:
                documentation.package_folder(package)
            documentation.versions(corpus.packages)
        except ArtifactError as error:
            return str(error)
    return None


def _probing(profile: Profile) -> str | None:
    from sae_lib.metrics.probing.sources import known_datasets  # imports torch

    try:
        known_datasets(profile.evaluation.probing)
    except ArtifactError as error:
        return str(error)
    return None
