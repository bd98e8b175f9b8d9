"""What each notebook's results depend on, and whether they are still those.

A notebook is up to date when everything it was made from has the content it had then: its own cells, the
modules it imports, the profile, the model and text files that the profile names, the versions of packages, and the
results of the notebooks before it. Times of files mean nothing after a `git clone`, so contents are compared.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.store_manifest import MANIFEST, lost_file
from sae_lib.profiles.profile import Profile
from sae_lib.report.provenance import manifest_file, output_path
from sae_lib.util.environment import locked_pins
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import file_sha256, file_state, is_unaltered, json_key, read_json, write_json
from sae_lib.util.keys import NUMERICAL
from sae_lib.util.paths import NOTEBOOKS, Paths, shown
from sae_lib.util.source import code_digest, imported_modules

NUMBERS = ("01", "02", "03", "04", "05")  # of the repository's own notebooks
PATTERN = "[0-9][0-9]_*.ipynb"
# Fields of a profile that no result depends on.
DESCRIPTIVE_FIELDS = {"description", "cost"}
# Packages that draw and set what notebooks make of the numbers.
DRAWING = ("jinja2", "matplotlib", "seaborn", "typst")
REASONS = {
    "notebook": "the notebook changed",
    "code": "code that it imports changed",
    "profile": "the profile changed",
    "inputs": "the model's or the corpus's files changed",
    "lock": "packages in requirements.lock changed",
    "upstream": "earlier results changed",
}


@dataclass(frozen=True)
class Stage:
    """One notebook. Its results may depend on those of every notebook before it."""

    notebook: Path
    upstream: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as "02_train"."""
        return self.notebook.stem

    def parts(self, profile: Profile, paths: Paths) -> dict[str, str]:
        """A content key for each thing the notebook's results depend on.

        Raises ArtifactError: the notebook is not valid JSON or one of its cells is not valid Python.
        """
        try:
            cells = [
                (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", []))
                for cell in json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
            ]
            code = [imported_modules(_without_magics(text)) for kind, text, _ in cells if kind == "code"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise ArtifactError(f"{shown(self.notebook)} cannot be read ({error}); restore it with git") from None
        return {
            "notebook": json_key(cells),
            "code": code_digest(*frozenset[str]().union(*code)),
            "profile": json_key(profile.model_dump(mode="json", exclude=DESCRIPTIVE_FIELDS)),
            "inputs": json_key(_input_files(profile)),
            "lock": json_key({name: pin for name, pin in locked_pins().items() if name in (*NUMERICAL, *DRAWING)}),
            "upstream": json_key([_sha256_or_none(manifest_file(paths, name)) for name in self.upstream]),
        }


def find_stages(folder: Path) -> list[Stage]:
    """The notebooks of a folder in the order of their numbers.

    Raises ArtifactError: there are none, two with one number, or not all of the repository's own.
    """
    notebooks = sorted(folder.glob(PATTERN))
    if not notebooks:
        raise ArtifactError(f"no notebooks named like 01_data.ipynb in {shown(folder)}; restore them with git")
    names = [notebook.stem for notebook in notebooks]
    count = Counter(name.partition("_")[0] for name in names)
    if same := [name for name in names if count[name.partition("_")[0]] > 1]:
        raise ArtifactError(f"notebooks {', '.join(same)} have one number; rename or remove all but one of them")
    gone = [number for number in NUMBERS if number not in count]
    if gone and folder == NOTEBOOKS:
        raise ArtifactError(f"notebook {', '.join(gone)} is missing in {shown(folder)}; restore it with git")
    return [Stage(notebook, tuple(names[:place])) for place, notebook in enumerate(notebooks)]


@dataclass(frozen=True)
class Status:
    """Whether a stage has to run, and why in words."""

    stage: Stage
    to_do: bool
    reason: str
    seconds: float | None
    """What it took last time."""


def statuses(stages: Sequence[Stage], profile: Profile, paths: Paths) -> list[Status]:
    """The status of each stage, where a stage after one that has to run has to be looked at again then."""
    found: list[Status] = []
    for stage in stages:
        reason = why_not_done(stage, profile, paths)
        waits_for = next((status.stage.name for status in found if status.to_do), None)
        if reason is None and waits_for is not None:
            reason = f"if {waits_for} gives other results"
        seconds = (_record(stage, paths) or {}).get("seconds")
        found.append(Status(stage, reason is not None, reason or "up to date", seconds))
    return found


def why_not_done(stage: Stage, profile: Profile, paths: Paths) -> str | None:
    """Why a stage has to run, in words; None when what it made is still what it would make."""
    record = _record(stage, paths)
    if record is None:
        return "not run yet"
    now = stage.parts(profile, paths)
    for part, reason in REASONS.items():
        if record["parts"].get(part) != now[part]:
            return reason
    if not (paths.notebooks / stage.notebook.name).is_file():
        return "its executed copy is gone"
    for name, known in record["outputs"].items():
        file = output_path(paths, name)
        if not file.is_file() or not is_unaltered(file, known):
            return f"{name} is gone or was altered"
    if f"{paths.store.name}/{MANIFEST}" in record["outputs"] and (lost := lost_file(paths.store)):
        return f"{paths.store.name}/{lost} is gone or was altered"
    return None


def record_done(stage: Stage, parts: dict[str, str], paths: Paths, seconds: float) -> None:
    """Remember what a stage was made from and what it made. Written last: without it the stage runs again.

    Args:
        parts: taken before the stage ran, so that an edit while it ran is seen.

    Raises ArtifactError: the notebook ended without its manifest.
    """
    manifest = manifest_file(paths, stage.name)
    if not manifest.is_file():
        raise ArtifactError(f"{stage.name} ended without writing {shown(manifest)}; its last cells must write it")
    names = [*read_json(manifest)["outputs"], manifest.relative_to(paths.root).as_posix()]
    outputs = {name: file_state(output_path(paths, name)) for name in names}
    write_json(_record_file(stage, paths), {"parts": parts, "outputs": outputs, "seconds": round(seconds, 1)})


def _record_file(stage: Stage, paths: Paths) -> Path:
    return paths.keys / f"{stage.name}.json"


def _record(stage: Stage, paths: Paths) -> dict[str, Any] | None:
    """What a finished notebook was made from ("parts"), what it made ("outputs"), and the seconds that it took."""
    file = _record_file(stage, paths)
    return dict(read_json(file)) if file.is_file() else None


def _sha256_or_none(file: Path) -> str | None:
    return file_sha256(file) if file.is_file() else None


def _without_magics(source: str) -> str:
    """Code without IPython's own lines, which are no Python."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def _input_files(profile: Profile) -> list[Any]:
    """What identifies local files that a profile names; hub models and data sets are pinned by it.

    The packaged model is read; anything else may be large and is known by names, sizes and times.
    """
    known: list[Any] = []
    large = [Path(name) for name in profile.corpus.files]
    if profile.model.name == "pocket":
        packaged = sorted(POCKET_FOLDER.glob("*"))
        known += [[file.name, file_sha256(file)] for file in packaged if file.suffix != ".md"]
    else:
        place = Path(profile.model.name).expanduser()
        large += [place, *sorted(place.glob("*"))]
    for file in large:
        if file.is_file():
            known.append([str(file), file.stat().st_size, file.stat().st_mtime_ns])
    return known
