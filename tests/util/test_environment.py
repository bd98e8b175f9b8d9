"""The lock file, environment.yml and the Makefile agree on what runs."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from sae_lib.util import environment
from sae_lib.util.environment import canonical, differences, locked_pins, read_pins
from sae_lib.util.paths import LOCK_FILE, ROOT

EXACT = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*")


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make without the settings of a make that runs these tests."""
    settings = ("MAKEFLAGS", "MAKELEVEL", "CONDA_PREFIX", "PYTHON", "PROFILE")
    inherited = {name: value for name, value in os.environ.items() if name not in settings}
    return subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", *arguments],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
    )


def lock_lines() -> list[str]:
    lines = LOCK_FILE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_line_of_the_lock_is_an_exact_public_version() -> None:
    lines = lock_lines()
    assert [line for line in lines if not EXACT.fullmatch(line)] == []
    assert len({canonical(line.partition("==")[0]) for line in lines}) == len(lines)
    assert len(locked_pins()) == len(lines)


def test_environment_file_names_the_same_pins_and_python() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert content["channels"] == ["conda-forge", "nodefaults"]
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert conda == ["python=3.11", "pip", "make"]
    [pip] = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(lock_lines())


def test_environment_file_gives_a_reason_for_each_direct_dependency() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    direct, _, indirect = text.partition("# what these need")
    lines = [line for line in direct.splitlines() if "==" in line]
    assert indirect and len(lines) > 25
    assert [line for line in lines if not re.search(r"#\s+\S+", line)] == []
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [dependencies] = re.findall(r"^dependencies = \[(.*?)\]", project, flags=re.MULTILINE | re.DOTALL)
    explained = read_pins(lines)
    assert [name for name in re.findall(r'"(.+?)"', dependencies) if canonical(name) not in explained] == []


def test_installed_packages_are_those_of_the_lock() -> None:
    assert differences() == []


def test_differences_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    # A build tag such as +cpu is no difference, another version and a missing package are.
    lock.write_text("# group\ntorch==2.13.0\nnumpy==0.0.1\nno_such-package==1.0\n")
    monkeypatch.setattr(environment, "LOCK_FILE", lock)
    first, second = differences()
    assert re.fullmatch(r"numpy is \d\S+, the lock says 0\.0\.1", first)
    assert second == "no-such-package 1.0 is missing"


def test_names_are_compared_as_indexes_do() -> None:
    assert canonical("types_PyYAML") == canonical("types-pyyaml") == "types-pyyaml"
    assert read_pins(["  - Jinja2==3.1.6  # why", "# numpy==1.0", "torch"]) == {"jinja2": "3.1.6"}


def test_help_lists_every_command() -> None:
    listed = make().stdout
    commands = ("paper", "test", "smoke", "plan", "verify", "lab", "lint", "typecheck", "unit", "nbval")
    for name in (*commands, "pocket-lm", "lock-check", "clean", "env"):
        assert re.search(rf"^  {name} +\S+", listed, flags=re.MULTILINE), name


def conda_environment(folder: Path, script: str) -> str:
    """An active conda environment whose Python is `script`; its path has a space."""
    python = folder / "an environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python.parent.parent)


def test_conda_environment_with_our_pins_is_used(tmp_path: Path) -> None:
    prefix = conda_environment(tmp_path, f'exec "{sys.executable}" "$@"')
    done = make("-n", "paper", "PROFILE=smoke", CONDA_PREFIX=prefix)
    assert f'"{prefix}/bin/python" -m sae_lib run --profile "smoke"' in done.stdout
    assert "pip install" not in done.stdout


def test_conda_environment_without_our_pins_is_not_used(tmp_path: Path) -> None:
    prefix = conda_environment(tmp_path, "echo numpy is missing; exit 1")
    done = make("-n", "paper", "PROFILE=smoke", CONDA_PREFIX=prefix)
    assert '".venv/bin/python" -m sae_lib run --profile "smoke"' in done.stdout


def test_reference_pages_open_offline(tmp_path: Path) -> None:
    assert "--output-directory build/docs sae_lib" in make("-n", "docs").stdout
    modules = ("sae_lib.util.errors", "sae_lib.util.memory")
    build = [sys.executable, "-m", "pdoc", "--output-directory", str(tmp_path), *modules]
    subprocess.run(build, check=True, cwd=ROOT, env={**os.environ, "http_proxy": "http://localhost:9"})
    page = (tmp_path / "sae_lib" / "util" / "memory.html").read_text(encoding="utf-8")
    assert "free_memory" in page and re.search(r"<(script|link)[^>]*(src|href)=.https?:", page) is None


def test_reference_pages_show_the_public_names_in_their_order() -> None:
    code = """
        from sae_lib import *
        import pdoc.doc, sae_lib
        page = pdoc.doc.Module(sae_lib)
        shown = [member.name for member in page.members.values() if member.kind != "module"]
        assert shown == [name for name in sae_lib.__all__ if name not in sae_lib._ROOMS], shown
        assert all(page.members[name].docstring for name in shown if page.members[name].kind != "variable")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_missing_python_is_told_with_what_to_do(tmp_path: Path) -> None:
    # In a copy of the Makefile's surroundings, since the checkout may have its environment already.
    for name in ("Makefile", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = make("-C", str(tmp_path), "env", PYTHON=str(tmp_path / "python9.9"))
    assert done.returncode != 0
    assert re.search(r"PYTHON=\S+python9\.9 is not a Python.*\n.*apt install python3\.11", done.stderr)
    assert not (tmp_path / ".venv").exists()


def test_make_from_another_folder_is_told_where_to_run(tmp_path: Path) -> None:
    done = make("-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "smoke")
    assert done.returncode != 0 and list(tmp_path.iterdir()) == []
    [line] = done.stderr.splitlines()
    assert "run make in the folder of the repository, or with make -C" in line
