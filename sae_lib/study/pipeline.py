"""Behind `make paper`: run the notebooks that are not up to date, in order.

Nothing heavy is imported before a notebook has to run, so that a run with nothing to do ends in about a second.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from sae_lib.profiles.profile import Profile
from sae_lib.report.provenance import manifest_file
from sae_lib.study.bound import bound_note
from sae_lib.study.measures import foreseen
from sae_lib.study.notebooks import run_notebook
from sae_lib.study.up_to_date import find_notebooks, made_from, record_done, why_not_done
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, make_folder, remove_unfinished, used_bytes
from sae_lib.util.paths import Paths, corpus_cache, shown

# What another run has not gone on writing for so long, nobody is writing.
LONGEST_WRITE_S = 3600.0


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
    with FolderLock(paths.root):
        for folder in (paths.root, paths.figures):
            remove_unfinished(folder)
        with suppress(FileNotFoundError):  # another run's file, which took its name meanwhile
            remove_unfinished(corpus_cache(), LONGEST_WRITE_S)
        for notebook in chosen:
            label = f"[{found.index(notebook) + 1}/{len(found)}] {notebook.stem}:"
            reason = why_not_done(notebook, profile, paths)
            if reason is None:
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
    parts = made_from(notebook, profile, paths)
    for folder in (paths.results, paths.keys):
        make_folder(folder)
    manifest_file(paths, notebook.stem).unlink(missing_ok=True)
    run_notebook(notebook, paths.notebooks, paths.failed, paths.logs / f"{notebook.stem}.log", parameters)
    record_done(notebook, parts, paths)


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
        from sae_lib.study.plan import blockers, make_plan, time_note

        plan = make_plan(profile)
        if stopping := blockers(profile, plan, paths):
            raise ArtifactError(stopping[0])
        time = time_note(profile, paths, plan)
        print(f"profile {profile.name}: {len(to_do)} of {len(chosen)} notebooks to run; {time}; `make plan` says more")
        _tell_measures(profile, paths)
    run(profile, parameters, notebooks=notebooks, only=only)
    print(f"\nexecuted notebooks       {shown(paths.notebooks)}\nfigures, tables, claims  {shown(paths.figures)}")
    print(f"results behind them      {shown(paths.results)}")
    return 0


def plan_command(profile: Profile, notebooks: Path) -> int:
    """`plan`: print what a run would do and what it takes; exit code 1 when something stands in the way."""
    from sae_lib.study.plan import GB, KINDS, blockers, make_plan, time_note

    paths = Paths(profile.name)
    plan = make_plan(profile)
    print(f"profile {profile.name}: {profile.description}\n")
    first = None
    for notebook in find_notebooks(notebooks) if profile.ablations.papers else ():
        reason = why_not_done(notebook, profile, paths) or (first and f"if {first} gives other results")
        first = first or (reason and notebook.stem)
        print(f"  {notebook.stem:<14} {f'to do ({reason})' if reason else 'up to date'}")
    bound = {"bound": bound_note(profile, plan.model)} if profile.cost.needs_gpu else {}
    lines = {
        "time": time_note(profile, paths, plan),
        **bound,
        "SAEs": f"{plan.saes.total()}: " + ", ".join(f"{n} {group}" for group, n in sorted(plan.saes.items())),
        "disk": f"{sum(plan.disk.values()) / GB:.2f} GB under {shown(paths.root)} "
        f"({used_bytes(paths.root) / GB:.2f} GB there now)",
        "memory": ", ".join(f"{size / GB:.1f} GB of {KINDS[device]}" for device, size in plan.memory.items()),
        "measures": "; ".join(f"{measure}: {what}" for measure, what in foreseen(profile, paths).items()),
    }
    print()
    for name, text in lines.items():
        print(f"  {name:<14} {text}")
    stopping = blockers(profile, plan, paths)
    for line in stopping:
        print(f"\nwould not start: {line}")
    return 1 if stopping else 0


def clean_command(profile: Profile) -> int:
    """`clean`: remove everything that a profile made under the output folder."""
    root = Paths(profile.name).root
    if not root.is_dir():
        print(f"nothing to remove: there is no {shown(root)}")
        return 0
    with FolderLock(root):
        size = used_bytes(root)
        shutil.rmtree(root)
    print(f"removed {shown(root)} ({size / 1e9:.2f} GB)")
    return 0
