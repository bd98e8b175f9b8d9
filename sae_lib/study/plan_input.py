"""What of a profile and its surroundings would stop a run at once, found before it starts: one line each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence

from sae_lib.data import documentation
from sae_lib.profiles.profile import Profile
from sae_lib.study.plan_sizes import model_size
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import OUTPUT_VARIABLE, Paths


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
    """What a profile names and this machine, or the model, does not have: what its run would say of it."""
    # These import torch.
    from sae_lib.data.corpus import text_files
    from sae_lib.data.model_loading import device_of
    from sae_lib.metrics.probing.sources import known_datasets

    corpus = profile.corpus
    checks: tuple[Callable[[], object], ...] = (
        lambda: profile.model.check_layer(model_size(profile.model).layers),
        lambda: device_of(profile.model),
        lambda: text_files(corpus) if corpus.source == "files" else None,
        lambda: _packages(corpus.packages) if corpus.source == "documentation" else None,
        lambda: known_datasets(profile.evaluation.probing),
    )
    found = []
    for check in checks:
        try:
            check()
        except ArtifactError as error:
            found.append(str(error))
    return found


def _packages(packages: Sequence[str]) -> None:
    for package in packages:
        documentation.package_folder(package)
    documentation.versions(packages)
