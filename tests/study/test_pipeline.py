"""The runner on miniature notebooks: what runs again, what a failure leaves, what an interruption leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest

from sae_lib.__main__ import INTERRUPTED, main
from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.profiles.runs import RunSpec
from sae_lib.report.provenance import output_path, write_stage_manifest
from sae_lib.study import pipeline, plan
from sae_lib.study.notebooks import run_notebook
from sae_lib.study.pipeline import find_notebooks, made_from, why_not_done
from sae_lib.util import environment
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, file_sha256, read_json, write_json
from sae_lib.util.paths import LOCK_FILE, NOTEBOOKS, ROOT, Paths, corpus_cache

NAMES = ("01_data", "02_train", "03_report")


def write_notebook(folder: Path, name: str, *code: str, parameters: str = 'profile = "smoke"') -> Path:
    """A notebook with a parameters cell and the given code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [first, *(nbformat.v4.new_code_cell(textwrap.dedent(text).strip()) for text in code)]
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def writes(stage: str, value: str = "1") -> str:
    """A cell that writes one result and the manifest."""
    return f"""
        from sae_lib.util.files import write_json
        from sae_lib.util.paths import Paths
        from sae_lib.report.provenance import write_stage_manifest
        paths = Paths("pocket")
        write_json(paths.results / "value_{stage}.json", {value})
        write_stage_manifest(paths, "{stage}", [paths.results / "value_{stage}.json"])
    """


@pytest.fixture
def profile() -> Profile:
    return load_profile("pocket")


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr("sae_lib.util.paths.NOTEBOOKS", folder)
    for name in NAMES:
        write_notebook(folder, name, writes(name[:2]))
    return folder


@pytest.fixture
def paths(profile: Profile) -> Paths:
    return Paths(profile.name)


class Kernel:
    """Stands for papermill: writes what the notebook would write, so that one test can run many stages."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.ran: list[str] = []
        self.results = dict.fromkeys(NAMES, "1")

    def __call__(self, source: Path, folder: Path, *rest: Any) -> Path:
        self.ran.append(source.stem)
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / source.name
        copy.write_bytes(source.read_bytes())
        result = self.paths.results / f"value_{source.stem[:2]}.txt"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(self.results[source.stem])
        write_stage_manifest(self.paths, source.stem, [result])
        return copy


@pytest.fixture
def kernel(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(paths)
    monkeypatch.setattr(pipeline, "run_notebook", kernel)
    return kernel


def run_stages(profile: Profile, notebooks: Path, kernel: Kernel, **options: Any) -> list[str]:
    kernel.ran = []
    assert pipeline.run(profile, {"profile": "pocket"}, notebooks=notebooks, **options) == kernel.ran
    return kernel.ran


def test_real_notebooks_run_fail_and_go_on(
    notebooks: Path, profile: Profile, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three kernels: the first notebook passes; the second fails, is mended, and runs without the first."""
    (notebooks / "03_report.ipynb").unlink()
    failing = "import math\nlosses = [\n    1.0,\n]\nfor batch in losses:\n    loss = 1 / 0  # here"
    bad = write_notebook(notebooks, "02_train", "print('so far')", failing, writes("02"))
    with pytest.raises(ArtifactError) as stopped:
        pipeline.run(profile, {"profile": "pocket"}, notebooks=notebooks)
    failed = paths.failed / bad.name
    assert str(stopped.value) == (f"02_train stopped in cell [4]: ZeroDivisionError: division by zero; open {failed}")
    assert "ZeroDivisionError" in failed.read_text() and "so far" in failed.read_text()
    assert sorted(path.name for path in paths.notebooks.iterdir()) == ["01_data.ipynb"]
    assert not (paths.keys / "02_train.json").exists()
    assert "so far" in (paths.logs / "02_train.log").read_text()

    write_notebook(notebooks, "02_train", writes("02"))
    assert pipeline.run(profile, {"profile": "pocket"}, notebooks=notebooks) == ["02_train"]
    assert not failed.exists()
    executed = nbformat.read(paths.notebooks / "02_train.ipynb", as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3]
    assert 'profile = "pocket"' in executed.cells[1].source

    capsys.readouterr()
    assert pipeline.run(profile, {"profile": "pocket"}, notebooks=notebooks) == []
    assert capsys.readouterr().out == "[1/2] 01_data: up to date\n[2/2] 02_train: up to date\n"


def test_bad_syntax_is_one_line(tmp_path: Path) -> None:
    source = write_notebook(tmp_path, "01_data", "x = 1\ny = = 2")
    with pytest.raises(ArtifactError, match=r"^01_data stopped in cell \[2\]: SyntaxError: [^\n]+$"):
        run_notebook(source, tmp_path / "done", tmp_path / "failed", tmp_path / "log", {})


def test_dead_kernel_is_one_line(tmp_path: Path) -> None:
    source = write_notebook(tmp_path, "01_data", "import os", "os._exit(9)")
    with pytest.raises(ArtifactError, match=r"^01_data stopped because its kernel died .*; open \S+$"):
        run_notebook(source, tmp_path / "done", tmp_path / "failed", tmp_path / "log", {})
    assert list((tmp_path / "done").iterdir()) == []
    assert (tmp_path / "failed" / "01_data.ipynb").is_file()


def test_interruption_leaves_no_half_written_copy_and_no_process(tmp_path: Path, paths: Paths) -> None:
    """A signal in the middle of a cell, as from `kill` or from a batch system at its time limit."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    started = tmp_path / "started"
    cell = f"""
        import os, pathlib, time
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            worker = pool.submit(os.getpid).result()
            work = pool.submit(time.sleep, 60)
            pathlib.Path({str(started)!r}).write_text(f"{{os.getpid()}} {{worker}}.")
            work.result()
    """
    write_notebook(notebooks, "01_data", cell)
    script = f"""
        import pathlib, sys
        from sae_lib.__main__ import main
        from sae_lib.study import pipeline, plan
        from sae_lib.util import paths
        plan.blockers = lambda *_: []
        paths.NOTEBOOKS = pathlib.Path({str(notebooks)!r})
        sys.exit(main(["run", "--profile", "pocket"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: started.is_file() and started.read_text().endswith("."))
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == INTERRUPTED
    assert errors == "interrupted; what was finished is kept and the same command goes on from there\n"
    assert list(paths.notebooks.iterdir()) == []
    assert (paths.failed / "01_data.ipynb").is_file()
    assert not list(paths.keys.glob("*"))
    kernel, worker = map(int, started.read_text().removesuffix(".").split())
    wait_for(lambda: not alive(kernel) and not alive(worker))


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    # A process that has ended and was not waited for by its parent is still listed.
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_second_run_is_refused(profile: Profile, notebooks: Path, paths: Paths, kernel: Kernel) -> None:
    with (
        FolderLock(paths.root),
        pytest.raises(ArtifactError, match=rf"{paths.root} is in use by process {os.getpid()} on "),
    ):
        pipeline.run(profile, {}, notebooks=notebooks)
    assert kernel.ran == []


def test_only_what_depends_on_an_edit_runs(profile: Profile, notebooks: Path, paths: Paths, kernel: Kernel) -> None:
    assert run_stages(profile, notebooks, kernel) == list(NAMES)
    assert run_stages(profile, notebooks, kernel) == []

    # An edit that gives the same results stops where it was made.
    write_notebook(notebooks, "02_train", writes("02"), "# a remark")
    assert run_stages(profile, notebooks, kernel) == ["02_train"]

    # Other results reach what reads them.
    write_notebook(notebooks, "02_train", writes("02"), "# another remark")
    kernel.results["02_train"] = "2"
    assert run_stages(profile, notebooks, kernel) == ["02_train", "03_report"]
    assert run_stages(profile, notebooks, kernel) == []


def test_outputs_and_times_of_a_notebook_are_no_part_of_its_key(
    profile: Profile, notebooks: Path, kernel: Kernel
) -> None:
    run_stages(profile, notebooks, kernel)
    notebook = nbformat.read(notebooks / "02_train.ipynb", as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="1.0\n")]
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, notebooks / "02_train.ipynb")
    os.utime(notebooks / "01_data.ipynb", (0, 0))
    assert run_stages(profile, notebooks, kernel) == []


def test_profile_lock_and_code_are_part_of_the_key(
    profile: Profile,
    notebooks: Path,
    paths: Paths,
    kernel: Kernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_stages(profile, notebooks, kernel)
    first = find_notebooks(notebooks)[0]
    described = profile.model_copy(update={"description": "the same, told otherwise"})
    assert why_not_done(first, described, paths) is None
    larger = profile.model_copy(update={"data": profile.data.model_copy(update={"train_tokens": 2_000_000})})
    assert why_not_done(first, larger, paths) == "the profile changed"

    with monkeypatch.context() as changed:
        changed.setattr(environment, "LOCK_FILE", tmp_path / "requirements.lock")
        lock = LOCK_FILE.read_text()
        (tmp_path / "requirements.lock").write_text(lock.replace("pytest==", "pytest==1."))
        assert why_not_done(first, profile, paths) is None
        (tmp_path / "requirements.lock").write_text(lock.replace("torch==", "torch==1."))
        assert why_not_done(first, profile, paths) == "packages in requirements.lock changed"
    with monkeypatch.context() as changed:
        changed.setattr(pipeline, "CODE", tmp_path)
        assert why_not_done(first, profile, paths) == "the code changed"
    assert why_not_done(first, profile, paths) is None


def test_lost_or_altered_results_are_made_again(
    profile: Profile, notebooks: Path, paths: Paths, kernel: Kernel
) -> None:
    run_stages(profile, notebooks, kernel)
    (paths.results / "value_02.txt").write_text("x")
    assert why_not_done(find_notebooks(notebooks)[1], profile, paths) == "results/value_02.txt is gone or was altered"
    assert run_stages(profile, notebooks, kernel) == ["02_train"]
    (paths.results / "value_03.txt").unlink()
    assert run_stages(profile, notebooks, kernel) == ["03_report"]
    (paths.notebooks / "01_data.ipynb").unlink()
    assert run_stages(profile, notebooks, kernel) == ["01_data"]
    # A copy of a file has another time and the same content.
    os.utime(paths.results / "value_01.txt", (0, 0))
    assert run_stages(profile, notebooks, kernel) == []


def test_a_lost_shard_is_made_again(profile: Profile, notebooks: Path, paths: Paths, kernel: Kernel) -> None:
    """The activations themselves are looked for, which the notebook's own manifest names by theirs."""
    shards = [paths.store / f"activations-{number}.npy" for number in range(2)]

    def harvest(source: Path, *rest: Any) -> Path:
        for shard in shards:
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.write_bytes(b"12")
        entries = [{"file": shard.name, "bytes": 2, "sha256": file_sha256(shard)} for shard in shards]
        write_json(paths.store / "manifest.json", {"index": {}, "shards": entries})
        copy = kernel(source, *rest)
        if source.stem == "01_data":
            write_stage_manifest(paths, "01", [paths.store / "manifest.json"])
        return copy

    stages = find_notebooks(notebooks)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "run_notebook", harvest)
        for spoil in (lambda: shards[1].unlink(), lambda: shards[1].write_bytes(b"1")):
            pipeline.run(profile, {}, notebooks=notebooks)
            assert [why_not_done(stage, profile, paths) for stage in stages] == [None] * 3
            spoil()
            reason = "store/activations-1.npy is gone or was altered"
            assert [why_not_done(stage, profile, paths) for stage in stages] == [reason, None, None]
    for shard in shards:
        shard.unlink()
    assert why_not_done(stages[0], profile, paths) == "store/activations-0.npy is gone or was altered"


@pytest.mark.parametrize("name", ["keys", "results", "logs", "notebooks"])
def test_a_file_in_the_place_of_a_folder_is_named_before_the_work(
    profile: Profile, notebooks: Path, paths: Paths, name: str
) -> None:
    paths.root.mkdir(parents=True)
    (paths.root / name).touch()
    with pytest.raises(
        ArtifactError, match=rf"^cannot write into {paths.root / name} \(File exists\); remove what has"
    ):
        pipeline.run(profile, {"profile": "pocket"}, notebooks=notebooks)


def test_only_what_nobody_writes_is_removed_from_the_shared_corpus(
    profile: Profile, notebooks: Path, kernel: Kernel
) -> None:
    corpus_cache().mkdir(parents=True)
    for name in (".a.tmp", ".b.tmp"):
        (corpus_cache() / name).touch()
    os.utime(corpus_cache() / ".a.tmp", (0, 0))
    run_stages(profile, notebooks, kernel)
    assert [file.name for file in corpus_cache().iterdir()] == [".b.tmp"]


def test_all_notebooks_of_the_repository_have_to_be_there(notebooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(find_notebooks(notebooks)) == 3
    monkeypatch.setattr(pipeline, "NOTEBOOKS", notebooks)
    with pytest.raises(ArtifactError, match=r"^notebook 04, 05 is missing in \S+; restore it with git$"):
        find_notebooks(notebooks)
    assert len(find_notebooks(NOTEBOOKS)) == 5


def test_the_plan_says_what_waits_for_what(
    profile: Profile, notebooks: Path, kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned() -> list[str]:
        pipeline.plan_command(profile, notebooks)
        return [line.split(maxsplit=1)[1].partition(",")[0] for line in capsys.readouterr().out.splitlines()[2:5]]

    assert planned() == ["to do (not run yet)"] * 3
    run_stages(profile, notebooks, kernel)
    capsys.readouterr()
    assert planned() == ["up to date"] * 3
    write_notebook(notebooks, "02_train", writes("02"), "# a remark")
    assert planned() == ["up to date", "to do (the notebook changed)", "to do (if 02_train gives other results)"]


def test_one_notebook_can_be_chosen(profile: Profile, notebooks: Path, kernel: Kernel) -> None:
    assert run_stages(profile, notebooks, kernel, only="02") == ["02_train"]
    assert run_stages(profile, notebooks, kernel, only="01_data") == ["01_data"]
    with pytest.raises(ArtifactError, match="--only 2: no such notebook; there are 01_data, "):
        run_stages(profile, notebooks, kernel, only="2")


def test_notebook_without_manifest_is_not_recorded(
    profile: Profile, notebooks: Path, paths: Paths, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(profile, notebooks, kernel)
    write_notebook(notebooks, "01_data", "pass")
    monkeypatch.setattr(pipeline, "run_notebook", lambda *arguments: None)
    with pytest.raises(ArtifactError, match=r"01_data ended without writing \S*results/01\.json"):
        pipeline.run(profile, {}, notebooks=notebooks)
    assert why_not_done(find_notebooks(notebooks)[0], profile, paths) == "the notebook changed"


def test_edit_while_a_notebook_runs_is_seen(
    profile: Profile, notebooks: Path, paths: Paths, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_and_edit(*arguments: Any) -> Path:
        write_notebook(notebooks, "01_data", writes("01"), "# written while it ran")
        return kernel(*arguments)

    monkeypatch.setattr(pipeline, "run_notebook", run_and_edit)
    run_stages(profile, notebooks, kernel, only="01")
    assert why_not_done(find_notebooks(notebooks)[0], profile, paths) == "the notebook changed"


def test_broken_and_missing_notebooks_are_told(profile: Profile, notebooks: Path, paths: Paths, tmp_path: Path) -> None:
    (notebooks / "01_data.ipynb").write_text("{")
    with pytest.raises(ArtifactError, match=r"01_data\.ipynb cannot be read .*restore it with git"):
        made_from(find_notebooks(notebooks)[0], profile, paths)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="notebook 01, 02, 03, 04, 05 is missing"):
        find_notebooks(tmp_path / "empty")


def test_manifest_names_outputs_relative_to_their_folders(paths: Paths) -> None:
    figure, table = paths.figures / "curves.pdf", paths.results / "evaluation.parquet"
    for file in (figure, table):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    write_stage_manifest(paths, "01", [table])
    manifest = read_json(write_stage_manifest(paths, "05_figures", [figure, table]))
    assert sorted(manifest["outputs"]) == ["figures/curves.pdf", "results/evaluation.parquet"]
    assert [output_path(paths, name) for name in sorted(manifest["outputs"])] == [figure, table]
    with pytest.raises(ArtifactError, match=r"05: the output \S+/absent was not written"):
        write_stage_manifest(paths, "05", [paths.results / "absent"])
    with pytest.raises(ArtifactError, match="lies outside"):
        write_stage_manifest(paths, "05", [ROOT / "pyproject.toml"])


def fake_runs(monkeypatch: pytest.MonkeyPatch, profile: Profile, **groups: list[int]) -> None:
    """Let a profile train one SAE for each group and seed, all of one configuration."""
    config = profile.sae_config("topk", {"k": 1})
    runs = [
        RunSpec(group, "topk", "", seed, config, made="untrained" if group == "untrained" else "trained")
        for group, seeds in groups.items()
        for seed in seeds
    ]
    monkeypatch.setattr(plan, "plan_runs", lambda profile: runs)


def test_command_line(
    notebooks: Path,
    profile: Profile,
    paths: Paths,
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """plan, run, run again, clean; and an error of the user's is one line."""
    fake_runs(monkeypatch, profile, main=[1, 2, 3])

    assert main(["plan"]) == 0
    planned = capsys.readouterr().out
    assert re.search(r"02_train +to do \(not run yet\)", planned)
    assert re.search(r"^  disk +0\.\d+ GB under ", planned, flags=re.MULTILINE)
    assert main(["run"]) == 0
    ran = capsys.readouterr().out
    assert ran.startswith("profile pocket: 3 of 3 notebooks to run; about 0.4 h ")
    assert str(paths.figures) in ran.splitlines()[-2] and str(paths.results) in ran.splitlines()[-1]
    assert main(["run"]) == 0
    assert capsys.readouterr().out.count("up to date") == 3
    assert main(["plan"]) == 0
    assert re.search(r"02_train +up to date\n", capsys.readouterr().out)
    assert main(["clean"]) == 0
    assert not paths.root.exists()
    assert main(["clean"]) == 0

    assert main(["run", "--profile", "poket"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and "pocket" in captured.err


def test_verify_and_accept_read_this_profiles_results(
    profile: Profile, paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def verify(profile: Profile, results: Path, expected: Path, *, long: bool) -> int:
        calls.append((profile.name, results, expected, long))
        return 1

    claims = SimpleNamespace(
        verify=verify,
        evaluate_claims=lambda profile, results: ("evaluated", results),
        write_verdicts=lambda evaluated, profile, path: calls.append((evaluated, profile.name, path)),
    )
    monkeypatch.setitem(sys.modules, "sae_lib.report.claims.ledger", claims)
    loads = SimpleNamespace(Results=SimpleNamespace(load=lambda folder: folder))
    monkeypatch.setitem(sys.modules, "sae_lib.report.results", loads)
    expected = ROOT / "figures" / "verdicts_pocket.json"
    assert main(["verify", "--long"]) == 1  # nothing was run here: the results beside the figures
    paths.results.mkdir(parents=True)
    (paths.results / "evaluation_main.parquet").touch()
    assert main(["verify"]) == 1
    assert main(["accept"]) == 0
    assert calls == [
        ("pocket", paths.figures / "results", expected, True),
        ("pocket", paths.results, expected, False),
        (("evaluated", paths.results), "pocket", expected),
    ]


def test_a_run_with_nothing_to_do_does_not_import_what_it_does_not_need() -> None:
    code = "import sae_lib.study.pipeline, sae_lib.study.plan, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert not {"transformers", "datasets", "papermill", "IPython"} & set(loaded)


COMMANDS = ("run", "plan", "verify", "accept", "clean", "evaluate", "export", "pocket-lm", "readme")


@pytest.mark.parametrize("command", [(), *((name,) for name in (*COMMANDS, "environment", "rank"))])
def test_help_needs_the_standard_library_alone(command: tuple[str, ...]) -> None:
    asked = [sys.executable, "-S", "-m", "sae_lib", *command, "--help"]  # -S: as before anything is installed
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m sae_lib {' '.join(command)}".rstrip() in done.stdout
    assert command or all(f"    {name} " in done.stdout for name in COMMANDS)


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = "import sae_lib, sys; assert 'torch' not in sys.modules; from sae_lib import *; print(TopK, load_sae)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("<class") and "<function load_sae" in done.stdout, done.stderr
