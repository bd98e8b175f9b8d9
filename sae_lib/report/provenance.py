"""Where results come from: the table at the end of each notebook, and the manifest beside its results."""

from __future__ import annotations

import importlib.metadata
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lib.util.environment import differences
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256, read_json, write_json
from sae_lib.util.paths import LOCK_FILE, ROOT, Paths, shown

if TYPE_CHECKING:
    from sae_lib.profiles.profile import Profile

# What a change of makes the code another revision; notebooks' outputs and figures are made by it.
CODE = ("sae_lib", "Makefile", "requirements.lock", "pyproject.toml")
VERSIONS = ("torch", "transformers", "datasets", "numpy", "scikit-learn", "pandas")
FIGURES = "figures/"  # what begins the name of an output in the figures folder


class Provenance(dict[str, str]):
    """Facts by name, printed as aligned lines."""

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())


def provenance(profile: Profile, started: float) -> Provenance:
    """What the results of a notebook were made from that ran at `profile` and began at `started` (`time.time()`)."""
    import torch

    paths, model, different = Paths(profile.name), profile.model, differences()
    revision = f" at {model.revision}" if model.revision else ""
    more = f" and {len(different) - 1} more" if len(different) > 1 else ""
    pins = f"differs: {different[0]}{more}" if different else "all pins installed"
    if model.device != "cpu" and torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} visible"
    else:
        device = f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return Provenance(
        {
            "profile": profile.name,
            "code": code_revision(),
            "lock": f"{file_sha256(LOCK_FILE)[:12]} ({pins})",
            "corpus": _from_manifest(paths.tokens, "corpus_hash"),
            "model": f"{model.name}{revision}, layer {model.layer}, {model.dtype}",
            "model identity": _from_manifest(paths.store, "identity"),
            "seeds": ", ".join(map(str, profile.training.seeds)),
            "device": device,
            "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS),
            "wall time": f"{time.time() - started:.0f} s",
        }
    )


def _from_manifest(folder: Path, field: str) -> str:
    try:
        return str(read_json(folder / "manifest.json")[field])[:12]
    except (FileNotFoundError, KeyError):
        return "not made yet"


def code_revision() -> str:
    """The commit of the checkout, "and local changes" where the code differs; "unknown" without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        # A copy without its own history may lie inside another repository, whose commit says nothing about it.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return "unknown"
        changed = " and local changes" if git("status", "--porcelain", "--", *CODE) else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def manifest_file(paths: Paths, stage: str) -> Path:
    """The manifest of a notebook, named by its number or its whole name: "02" and "02_train" are one."""
    return paths.results / f"{stage.partition('_')[0]}.json"


def write_stage_manifest(paths: Paths, stage: str, outputs: Iterable[Path]) -> Path:
    """Record what notebook `stage` (its number, such as "02") made; those after it are run again when it changes.

    Raises ArtifactError: an output is missing, or lies neither in the profile's folder nor in that of its figures.
    """
    hashes = {}
    homes = {FIGURES: paths.figures.resolve(), "": paths.root.resolve()}
    for file in sorted({Path(output).resolve() for output in outputs}):
        if not file.is_file():
            raise ArtifactError(f"{stage}: the output {shown(file)} was not written; run the notebook from its top")
        inside = [prefix for prefix, home in homes.items() if file.is_relative_to(home)]
        if not inside:
            raise ArtifactError(f"the output {shown(file)} lies outside {shown(paths.root)} and {shown(paths.figures)}")
        hashes[inside[0] + file.relative_to(homes[inside[0]]).as_posix()] = file_sha256(file)
    write_json(manifest_file(paths, stage), {"profile": paths.profile, "outputs": hashes})
    return manifest_file(paths, stage)


def output_path(paths: Paths, name: str) -> Path:
    return paths.figures / name.removeprefix(FIGURES) if name.startswith(FIGURES) else paths.root / name
