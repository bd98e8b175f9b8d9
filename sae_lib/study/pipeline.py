"""Behind `make paper`: run the notebooks that are not up to date, in order.

A notebook is up to date when everything it was made from has the content it had then: its own cells, the code, the
profile, the model and text files that the profile names, the versions of packages, and the results of the notebooks
before it. Times of files mean nothing after a `git clone`, so contents are compared. Nothing heavy is imported before a
notebook has to run, so that a run with nothing to do ends in about a second.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.data.store_manifest import MANIFEST, lost_file
from sae_lib.profiles.profile import Profile
from sae_lib.report.provenance import manifest_file, output_path
from sae_lib.study import plan
from sae_lib.study.measures import foreseen
from sae_lib.study.notebooks import run_notebook
from sae_lib.util import files
from sae_lib.util.environment import locked_pins
from sae_lib.util.errors import ArtifactError
from sae_lib.util.keys import NUMERICAL
from sae_lib.util.paths import NOTEBOOKS, ROOT, Paths, corpus_cache, shown

# What another run has not gone on writing for so long, nobody is writing.
LONGEST_WRITE_S = 3600.0
NUMBERS = ("01", "02", "03", "04", "05")  # of the repository's own notebooks
CODE, SOURCES = ROOT / "sae_lib", (".py", ".yaml", ".typ", ".css", ".bib")
PATTERN = "[0-9][0-9]_*.ipynb"
# Packages that draw and set what notebooks make of the numbers.
DRAWING = ("jinja2", "matplotlib", "seaborn", "typst")


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
    pins = {name: pin for name, pin in locked_pins().items() if name in (*NUMERICAL, *DRAWING)}
    # The packaged model is read; other files may be large and are known by names, sizes and times. Hub models and data
    # sets are pinned by the profile.
    place = Path(profile.model.name).expanduser()
    read = [file for file in sorted(POCKET_FOLDER.glob("*")) if file.suffix != ".md"]
    named = [Path(name) for name in profile.corpus.files]
    if profile.model.name != "pocket":
        read, named = [], [*named, place, *sorted(place.glob("*"))]
    inputs: list[Any] = [[file.name, files.file_sha256(file)] for file in read]
    inputs += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in named if file.is_file()]
    parts = {
        "the notebook": cells,
        "the code": [[file.name, files.file_sha256(file)] for file in code],
        "the profile": profile.model_dump(mode="json", exclude={"description", "cost"}),
        "the model's or the corpus's files": inputs,
        "packages in requirements.lock": pins,
        "earlier results": [files.file_sha256(file) if file.is_file() else None for file in before],
    }
    return {part: files.json_key(content) for part, content in parts.items()}


def why_not_done(notebook: Path, profile: Profile, paths: Paths) -> str | None:
    """Why a notebook has to run, in words; None when what it made is still what it would make."""
    if not (file := _record(notebook, paths)).is_file():
        return "not run yet"
    record, now = files.read_json(file), made_from(notebook, profile, paths)
    for part, key in now.items():
        if record["parts"].get(part) != key:
            return f"{part} changed"
    if not (paths.notebooks / notebook.name).is_file():
        return "its executed copy is gone"
    for name, known in record["outputs"].items():
        file = output_path(paths, name)
        if not file.is_file() or not files.is_unaltered(file, known):
            return f"{name} is gone or was altered"
    if f"{paths.store.name}/{MANIFEST}" in record["outputs"] and (lost := lost_file(paths.store)):
        return f"{paths.store.name}/{lost} is gone or was altered"
    return None


def _record(notebook: Path, paths: Paths) -> Path:
    """What a notebook was made from and what it made. Written last: without it the notebook runs again."""
    return paths.keys / f"{notebook.stem}.json"


def run(profile: Profile, parameters: Mapping[str, Any], *, notebooks: Path, only: str | None = None) -> list[str]:
    """Run every notebook of a folder whose results are not those it would make now; returns the names of those.

    `parameters`: values for each notebook's parameters cell; `only`: number or name of one notebook; the others are
    neither run nor checked.

    Raises ArtifactError: another run holds the profile's folder, a notebook stopped, or it wrote no manifest. What was
    finished before is kept.
    """
    if not profile.ablations.papers:
        told = "the notebooks take the papers' mechanisms apart, which this profile leaves out"
        raise ArtifactError(f"ablations.papers: {told}; run make study PROFILE={profile.name}, or set it to true")
    paths, found, ran = Paths(profile.name), find_notebooks(notebooks), []
    chosen = _choose(found, only)
    with files.FolderLock(paths.root):
        for folder in (paths.root, paths.figures):
            files.remove_unfinished(folder)
        with suppress(FileNotFoundError):  # another run's file, which took its name meanwhile
            files.remove_unfinished(corpus_cache(), LONGEST_WRITE_S)
        for notebook in chosen:
            label = f"[{found.index(notebook) + 1}/{len(found)}] {notebook.stem}:"
            if (reason := why_not_done(notebook, profile, paths)) is None:
                print(f"{label} up to date", flush=True)
                continue
            print(f"{label} running, {reason}", flush=True)
            started = time.monotonic()
            _run_one(notebook, profile, paths, parameters)
            print(f"{label} done in {timedelta(seconds=round(time.monotonic() - started))}", flush=True)
            if notebook is found[0]:
                _tell_measures(profile, paths)
            ran.append(notebook.stem)
    return ran


def _run_one(notebook: Path, profile: Profile, paths: Paths, parameters: Mapping[str, Any]) -> None:
    """Run one notebook and record it. Its last manifest goes first, so that one that is there then is of this run."""
    parts = made_from(notebook, profile, paths)  # before it runs, so that an edit meanwhile is seen
    manifest = manifest_file(paths, notebook.stem)
    for folder in (paths.results, paths.keys):
        files.make_folder(folder)
    manifest.unlink(missing_ok=True)
    run_notebook(notebook, paths.notebooks, paths.failed, paths.logs / f"{notebook.stem}.log", parameters)
    if not manifest.is_file():
        raise ArtifactError(f"{notebook.stem} ended without writing {shown(manifest)}; its last cells must write it")
    names = [*files.read_json(manifest)["outputs"], manifest.relative_to(paths.root).as_posix()]
    outputs = {name: files.file_state(output_path(paths, name)) for name in names}
    files.write_json(_record(notebook, paths), {"parts": parts, "outputs": outputs})


def _tell_measures(profile: Profile, paths: Paths) -> None:
    """Say what the model does not allow, and how many letters it knows, as far as that is known."""
    for measure, what in foreseen(profile, paths).items():
        if what != "measured":
            print(f"      {measure}: {what}", flush=True)


def _choose(found: Sequence[Path], only: str | None) -> list[Path]:
    chosen = [notebook for notebook in found if only in (None, notebook.stem, notebook.name[:2])]
    if not chosen:
        raise ArtifactError(f"--only {only}: no such notebook; there are {', '.join(each.stem for each in found)}")
    return chosen


def run_command(profile: Profile, parameters: Mapping[str, Any], notebooks: Path, only: str | None) -> int:
    """`run`: check what it needs, run what has to run, say where to look."""
    paths = Paths(profile.name)
    chosen = _choose(find_notebooks(notebooks), only)
    if to_do := [notebook for notebook in chosen if why_not_done(notebook, profile, paths)]:
        cost = plan.make_plan(profile)
        if stopping := plan.blockers(profile, cost, paths):
            raise ArtifactError(stopping[0])
        time = plan.time_note(profile, paths, cost)
        print(f"profile {profile.name}: {len(to_do)} of {len(chosen)} notebooks to run; {time}; `make plan` says more")
        _tell_measures(profile, paths)
    run(profile, parameters, notebooks=notebooks, only=only)
    print(f"\nexecuted notebooks       {shown(paths.notebooks)}\nfigures, tables, claims  {shown(paths.figures)}")
    print(f"results behind them      {shown(paths.results)}")
    return 0


def plan_command(profile: Profile, notebooks: Path) -> int:
    """`plan`: print what a run would do and what it takes; exit code 1 when something stands in the way."""
    paths, cost = Paths(profile.name), plan.make_plan(profile)
    print(f"profile {profile.name}: {profile.description}\n")
    first = None
    for notebook in find_notebooks(notebooks) if profile.ablations.papers else ():
        reason = why_not_done(notebook, profile, paths) or (first and f"if {first} gives other results")
        first = first or (reason and notebook.stem)
        print(f"  {notebook.stem:<14} {f'to do ({reason})' if reason else 'up to date'}")
    there = f"({files.used_bytes(paths.root) / plan.GB:.2f} GB there now)"
    lines = {
        "time": plan.time_note(profile, paths, cost),
        **({"bound": plan.bound_note(profile, cost.model)} if profile.cost.needs_gpu else {}),
        "SAEs": f"{cost.saes.total()}: " + ", ".join(f"{n} {group}" for group, n in sorted(cost.saes.items())),
        "disk": f"{sum(cost.disk.values()) / plan.GB:.2f} GB under {shown(paths.root)} {there}",
        "memory": ", ".join(f"{size / plan.GB:.1f} GB of {plan.KINDS[kind]}" for kind, size in cost.memory.items()),
        "measures": "; ".join(f"{measure}: {what}" for measure, what in foreseen(profile, paths).items()),
    }
    print()
    for name, text in lines.items():
        print(f"  {name:<14} {text}")
    stopping = plan.blockers(profile, cost, paths)
    for line in stopping:
        print(f"\nwould not start: {line}")
    return 1 if stopping else 0


def clean_command(profile: Profile) -> int:
    """`clean`: remove everything that a profile made under the output folder."""
    root = Paths(profile.name).root
    if not root.is_dir():
        print(f"nothing to remove: there is no {shown(root)}")
        return 0
    with files.FolderLock(root):
        size = files.used_bytes(root)
        shutil.rmtree(root)
    print(f"removed {shown(root)} ({size / plan.GB:.2f} GB)")
    return 0
