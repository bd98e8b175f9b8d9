"""Machines as people have them: nothing that can be written, another processor, another Python, another shell."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lib.util.paths import ROOT

SUMS = """
import numpy as np
from sae_lib.autoencoders.kernels import above, strongest_of_rows
pre = np.float32([[3, 1], [0, 2]])
assert [part.tolist() for part in above(pre, np.float32([1, 1]), 4)] == [[0, 1], [3, 2], [0, 1, 2]]
assert [part.tolist() for part in strongest_of_rows(pre, 1)] == [[0, 1], [3, 2], [0, 1, 2]]
"""


def python(tmp_path: Path, environment: dict[str, str], package: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A compiled loop, in a process of its own, from the package in a folder."""
    basic = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    return subprocess.run(
        [sys.executable, "-c", SUMS], cwd=tmp_path, env=basic | environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_loops_are_compiled_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A checkout and a home folder that cannot be written: files lie where folders would have to be made."""
    package = tmp_path / "checkout" / "sae_lib"
    package.mkdir(parents=True)
    for part in (ROOT / "sae_lib").iterdir():
        if part.name != "autoencoders":
            (package / part.name).symlink_to(part)
    shutil.copytree(ROOT / "sae_lib" / "autoencoders", package / "autoencoders",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    (package / "autoencoders" / "__pycache__").touch()
    (tmp_path / "home").touch()
    done = python(tmp_path, {"HOME": str(tmp_path / "home"), "MPLCONFIGDIR": str(tmp_path)}, package.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled loops cannot be kept") == 1


def test_an_old_processor_is_enough(tmp_path: Path) -> None:
    """Neither PyTorch nor Numba uses more than every processor of the last fifteen years has."""
    (tmp_path / "cache").mkdir()
    old = {"ATEN_CPU_CAPABILITY": "default", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = python(tmp_path, old | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("version", "fits"), [("3.10.9", False), ("3.11.4", True), ("3.13.0", True), ("3.14.1", False)]
)
def test_make_says_which_python_it_takes(tmp_path: Path, version: str, fits: bool) -> None:
    """A PYTHON of another version is refused before anything is installed."""
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    numbers = version.replace(".", ", ")
    (tmp_path / "python").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || {{ echo going on; exit 3; }}\nexec \'{sys.executable}\' -c "\n'
        f"import sys; sys.version_info = ({numbers}); sys.version = 'fake'\n$2\"\n"
    )
    (tmp_path / "python").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CONDA_PREFIX"}
    done = subprocess.run(
        ["make", "env", f"PYTHON={tmp_path / 'python'}"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert ("going on" in done.stdout) == fits, done.stdout + done.stderr
    if not fits:
        assert re.search(r"is not a Python of version 3\.11, 3\.12 or 3\.13", done.stderr)


def test_make_in_parallel_does_one_thing_after_the_other(tmp_path: Path) -> None:
    """`make -j`: an environment that is there is used in the order of `make test`, never by two at once."""
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    lock = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    (tmp_path / ".venv" / f"installed-{lock[:16]}").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "begin $2" >> log\nsleep 0.1\necho "end $2" >> log\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("CONDA_PREFIX", "MAKEFLAGS")}
    subprocess.run(["make", "-j4", "plan", "test", "verify"], cwd=tmp_path, env=environment, check=True, timeout=60)
    begun, ended = (re.findall(rf"^{word} (\w+)", (tmp_path / "log").read_text(), re.M) for word in ("begin", "end"))
    asked = ["sae_lib", "ruff", "ruff", "from", "mypy", "pytest", "pytest", "sae_lib"]
    assert begun == ended == asked
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(a.startswith("begin") and b.startswith("end") for a, b in zip(lines[::2], lines[1::2], strict=True))


# What GNU make 3.81, bash 3.2 and the BSD tools of macOS do not have.
NEWER = {
    "make": r"^\.ONESHELL|&:|\$\((file|let|intcmp|guile) |^\w+ *(!=|::+=)|\.EXTRA_PREREQS|^undefine |^define \w+ =",
    "bash": r"\$\$\{\w+(,,|\^\^|@)|\b(mapfile|readarray|coproc)\b|declare -A|\|&|&>>|\bwait -n\b|\$\$EPOCH",
    "tools": r"\bsed (-\w*i|-r)|\bdate (-d|-I|--)|\breadlink -f|\bgrep (-\w*P|--)|\bstat -c|\bxargs -r|\bsort -V"
    r"|\b(timeout|nproc|realpath|tac|truncate) |\bcp (-a|--)|\bmktemp --|\bln -\w*r",
}


@pytest.mark.parametrize("what", NEWER)
def test_the_makefile_asks_for_nothing_that_macos_lacks(what: str) -> None:
    text = (ROOT / "Makefile").read_text()
    assert re.findall(NEWER[what], text, re.M) == []
    # sha256sum is not on macOS, shasum is.
    assert all("|| shasum -a 256" in line for line in text.splitlines() if "sha256sum" in line)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("make", ".ONESHELL:"),
        ("make", "a b &: c"),
        ("make", "X != date"),
        ("make", "X := $(file < lock)"),
        ("bash", '\techo "$${name,,}"'),
        ("bash", "\tmapfile -t lines"),
        ("tools", "\tsed -i s/a/b/ file"),
        ("tools", "\tpath=$$(readlink -f x)"),
        ("tools", "\ttimeout 5 true"),
    ],
)
def test_what_macos_lacks_would_be_found(what: str, line: str) -> None:
    assert re.search(NEWER[what], line, re.M)
