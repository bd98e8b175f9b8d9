"""Odd surroundings: each works, or ends with one clear line."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sae_lib.__main__ import main
from sae_lib.study import plan
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock
from sae_lib.util.paths import ROOT, Paths
from tests.study.test_pipeline import write_notebook, writes


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One notebook, which takes nothing that would have to be estimated."""
    monkeypatch.setattr(plan, "blockers", lambda *_: [])
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr("sae_lib.util.paths.NOTEBOOKS", folder)
    write_notebook(folder, "01_data", writes("01"))
    return folder


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


# -- an output folder that nothing can be written into


def test_an_output_folder_below_a_file(
    tmp_path: Path, notebooks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "file" / "output"))
    assert main(["run", "--profile", "pocket"]) == 1
    assert re.search(r"SAE_LIB_OUTPUT: '\S+' cannot be a folder \(\S+ is no folder\); name a", one_line(capsys))


@pytest.mark.parametrize("command", ["plan", "clean", "verify"])
def test_an_output_folder_that_is_a_device(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAE_LIB_OUTPUT", os.devnull)
    assert main([command, "--profile", "smoke"]) == 1
    assert f"SAE_LIB_OUTPUT: '{os.devnull}' cannot be a folder ({os.devnull} is no folder)" in one_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_an_output_folder_without_permission(
    tmp_path: Path, notebooks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(tmp_path / "theirs"))
    assert main(["run", "--profile", "pocket"]) == 1
    assert "(Permission denied); set SAE_LIB_OUTPUT" in one_line(capsys)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("there", [False, True])
def test_a_file_system_that_is_read_only(
    tmp_path: Path,
    notebooks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    there: bool,
) -> None:
    """As the system reports it: no folder can be made, and no file opened for writing."""
    if there:
        Paths("pocket").root.mkdir(parents=True)
    open_, mkdir = os.open, os.mkdir

    def refuse(path: Any) -> None:
        if str(path).startswith(str(tmp_path / "output")):
            raise OSError(number, os.strerror(number), str(path))

    def open_unless_written(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return open_(path, flags, *more, **named)

    def make_folder(path: Any, *more: Any, **named: Any) -> None:
        refuse(path)
        mkdir(path, *more, **named)

    with monkeypatch.context() as read_only:
        read_only.setattr(os, "open", open_unless_written)
        read_only.setattr(os, "mkdir", make_folder)
        assert main(["run", "--profile", "pocket"]) == 1
    assert f"cannot write into {Paths('pocket').root} ({os.strerror(number)}); set SAE_LIB_OUTPUT" in one_line(capsys)


def test_a_lock_that_cannot_be_made_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot write into"), FolderLock(tmp_path / "file" / "below"):
        pass
    (tmp_path / "file").unlink()
    with FolderLock(tmp_path / "file" / "below"):
        pass


# -- another place, another home, other packages


def run_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with nothing of this process's environment but where programs and the package are."""
    basic = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env=basic | environment,
        capture_output=True,
        text=True,
        encoding="utf8",
        timeout=300,
        check=False,
    )


BOTH = """
    import sys
    from sae_lib.__main__ import main
    sys.exit(max(main([command, "--profile", "smoke"]) for command in ("clean", "verify")))
"""
ODD = "à la carte, 山 🙂"


def test_commands_from_another_folder_without_a_home_into_an_odd_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / ODD
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(output))
    expected = max(main([command, "--profile", "smoke"]) for command in ("clean", "verify"))
    here = capsys.readouterr()
    (tmp_path / "elsewhere").mkdir()
    done = run_python("-c", textwrap.dedent(BOTH), cwd=tmp_path / "elsewhere", SAE_LIB_OUTPUT=str(output))
    assert (done.returncode, done.stdout, done.stderr) == (expected, here.out, here.err)
    assert str(output) in done.stdout + done.stderr
    assert not list((tmp_path / "elsewhere").iterdir()) and not output.exists()


RUN = """
    import pathlib, sys
    from sae_lib.__main__ import main
    from sae_lib.study import pipeline, plan
    from sae_lib.util import paths
    plan.blockers = lambda *_: []
    paths.NOTEBOOKS = pathlib.Path(sys.argv[1])
    sys.exit(main(["run", "--profile", "pocket"]))
"""


@pytest.mark.parametrize("variable", ["JUPYTER_DATA_DIR", "JUPYTER_PATH"])
def test_a_kernel_runs_with_a_stale_kernelspec_and_no_writable_home(tmp_path: Path, variable: str) -> None:
    """A kernel "python3" of another environment that is gone, as `ipykernel install --user` leaves it behind; one
    that JUPYTER_PATH names goes before those of the environment."""
    odd = tmp_path / ODD
    notebooks, spec = odd / "notebooks", odd / "data" / "kernels" / "python3"
    for folder in (notebooks, spec):
        folder.mkdir(parents=True)
    gone = [str(odd / "gone" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": gone, "display_name": "Old", "language": "python"}))
    interpreter = "import sys; print(sys.executable)"
    write_notebook(notebooks, "01_data", interpreter, writes("01"))
    (odd / "file").touch()
    places = {variable: str(odd / "data"), "HOME": str(odd / "file" / "home")}
    done = run_python("-c", textwrap.dedent(RUN), str(notebooks), cwd=odd, SAE_LIB_OUTPUT=str(odd / "output"), **places)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sys.executable in (odd / "output" / "pocket" / "logs" / "01_data.log").read_text(encoding="utf8")


def test_make_shuts_out_packages_of_other_projects(tmp_path: Path) -> None:
    """`make plan` beside a sae_lib and a numpy of somebody else on PYTHONPATH, with a user site and a PYTHONHOME."""
    prefix = tmp_path / "an environment"
    (prefix / "bin").mkdir(parents=True)
    seen = tmp_path / "seen"
    show = f'for name in PYTHONPATH PYTHONHOME PYTHONNOUSERSITE; do echo "$name=${{!name-unset}}"; done > "{seen}"'
    (prefix / "bin" / "python").write_text(f'#!/bin/bash\n{show}\n[ "$3" != plan ] || exit 3\n')
    (prefix / "bin" / "python").chmod(0o755)
    for name in ("numpy", "sae_lib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    polluted = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "CONDA_PREFIX": str(prefix)}
    done = subprocess.run(
        ["make", "plan", "PROFILE=smoke"],
        cwd=ROOT,
        env=os.environ | polluted,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error 3" in done.stderr
    assert seen.read_text().splitlines() == ["PYTHONPATH=unset", "PYTHONHOME=unset", "PYTHONNOUSERSITE=1"]


def test_a_limit_on_addresses_is_told_before_libraries_load(tmp_path: Path) -> None:
    """Under `ulimit -v`, one of them asked for memory for ever, and another ended the process without a word."""
    code = "import sys; from sae_lib.__main__ import main; sys.exit(main(['plan', '--profile', 'smoke']))"
    limited = ["-c", f"import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); {code}"]
    done = run_python(*limited, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(
        r"error: memory: .* 953\.7 MiB of addresses \(ulimit -v\), .* ulimit -v unlimited\n", done.stderr
    )
