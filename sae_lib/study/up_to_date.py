"""What each notebook's results depend on, and whether they are still those.

A notebook is up to date when everything it was made from has the content it had then: its own cells, the
code, the profile, the model and text files that the profile names, the versions of packages, and the
results of the notebooks before it. Times of files mean nothing after a `git clone`, so contents are compared.
"""

import json
from collections import Counter
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
from sae_lib.util.paths import NOTEBOOKS, ROOT, Paths, shown

NUMBERS = ("01", "02", "03", "04", "05")  # of the repository's own notebooks
CODE, SOURCES = ROOT / "sae_lib", (".py", ".yaml", ".typ", ".css", ".bib")
PATTERN = "[0-9][0-9]_*.ipynb"
# Packages that draw and set what notebooks make of the numbers.
DRAWING = ("jinja2", "matplotlib", "seaborn", "typst")
REASONS = {
    "notebook": "the notebook changed",
    "code": "the code changed",
    "profile": "the profile changed",
    "inputs": "the model's or the corpus's files changed",
    "lock": "packages in requirements.lock changed",
    "upstream": "earlier results changed",
}


def find_notebooks(folder: Path) -> list[Path]:
    """The notebooks of a folder in the order of their numbers.

    Raises ArtifactError: there are none, two with one number, or not all of the repository's own.
    """
    found = sorted(folder.glob(PATTERN))
    count = Counter(notebook.name[:2] for notebook in found)
    if same := [notebook.stem for notebook in found if count[notebook.name[:2]] > 1]:
        raise ArtifactError(f"notebooks {', '.join(same)} have one number; rename or remove all but one of them")
    gone = [number for number in NUMBERS if number not in count]
    if not found or (gone and folder == NOTEBOOKS):
        raise ArtifactError(f"notebook {', '.join(gone)} is missing in {shown(folder)}; restore it with git")
    return found


def made_from(notebook: Path, profile: Profile, paths: Paths) -> dict[str, str]:
    """A content key for each thing that a notebook's results depend on: its own cells, code, ..., and the results of
    every notebook before it.

    Raises ArtifactError: the notebook is not valid JSON.
    """
    try:
        cells = [
            (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", []))
            for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{shown(notebook)} cannot be read ({error}); restore it with git") from None
    code = [file for file in sorted(CODE.rglob("*")) if file.suffix in SOURCES]
    before = [manifest_file(paths, each.stem) for each in sorted(notebook.parent.glob(PATTERN)) if each < notebook]
    return {
        "notebook": json_key(cells),
        "code": json_key([[file.name, file_sha256(file)] for file in code]),
        "profile": json_key(profile.model_dump(mode="json", exclude={"description", "cost"})),
        "inputs": json_key(_input_files(profile)),
        "lock": json_key({name: pin for name, pin in locked_pins().items() if name in (*NUMERICAL, *DRAWING)}),
        "upstream": json_key([file_sha256(file) if file.is_file() else None for file in before]),
    }


def why_not_done(notebook: Path, profile: Profile, paths: Paths) -> str | None:
    """Why a notebook has to run, in words; None when what it made is still what it would make."""
    if not (record := _record(notebook, paths)):
        return "not run yet"
    now = made_from(notebook, profile, paths)
    for part, reason in REASONS.items():
        if record["parts"].get(part) != now[part]:
            return reason
    if not (paths.notebooks / notebook.name).is_file():
        return "its executed copy is gone"
    for name, known in record["outputs"].items():
        file = output_path(paths, name)
        if not file.is_file() or not is_unaltered(file, known):
            return f"{name} is gone or was altered"
    if f"{paths.store.name}/{MANIFEST}" in record["outputs"] and (lost := lost_file(paths.store)):
        return f"{paths.store.name}/{lost} is gone or was altered"
    return None


def record_done(notebook: Path, parts: dict[str, str], paths: Paths) -> None:
    """Remember what a notebook was made from and what it made. Written last: without it the notebook runs again.

    `parts`: `made_from`, taken before it ran, so that an edit while it ran is seen.

    Raises ArtifactError: the notebook ended without its manifest.
    """
    manifest = manifest_file(paths, notebook.stem)
    if not manifest.is_file():
        raise ArtifactError(f"{notebook.stem} ended without writing {shown(manifest)}; its last cells must write it")
    names = [*read_json(manifest)["outputs"], manifest.relative_to(paths.root).as_posix()]
    outputs = {name: file_state(output_path(paths, name)) for name in names}
    write_json(_file(notebook, paths), {"parts": parts, "outputs": outputs})


def _record(notebook: Path, paths: Paths) -> dict[str, Any]:
    file = _file(notebook, paths)
    return dict(read_json(file)) if file.is_file() else {}


def _file(notebook: Path, paths: Paths) -> Path:
    return paths.keys / f"{notebook.stem}.json"


def _input_files(profile: Profile) -> list[Any]:
    """What identifies local files that a profile names; hub models and data sets are pinned by it.

    The packaged model is read; anything else may be large and is known by names, sizes and times.
    """
    known: list[Any] = []
    large = [Path(name) for name in profile.corpus.files]
    if profile.model.name == "pocket":
        known = [[file.name, file_sha256(file)] for file in sorted(POCKET_FOLDER.glob("*")) if file.suffix != ".md"]
    else:
        place = Path(profile.model.name).expanduser()
        large += [place, *sorted(place.glob("*"))]
    return known + [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in large if file.is_file()]
