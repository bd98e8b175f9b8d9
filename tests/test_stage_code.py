"""A stage's code and its version change together, or the results are shown to be the same bits."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lib.util.paths import ROOT
from tests import source
from tests.stages import MODULES, now, recorded, stale

WAYS_OUT = (
    "their code changed and their version did not. If their results may be others, raise the version of each and run "
    "`python -m tests.record_stage_code`; if not, let `make same-results BASE=<the commit before>` show it"
)


def test_code_and_version_change_together() -> None:
    before, after = recorded(), now()
    assert not (changed := stale(before, after)), f"{', '.join(changed)}: {WAYS_OUT}"
    assert before == after, "a version or the list of stages changed: run `python -m tests.record_stage_code`"


def test_every_stage_is_watched() -> None:
    """As many stages are made in the sources as are listed; each name once."""
    names = [stage.name for stage in MODULES]
    assert len(set(names)) == len(names)
    made = [
        node
        for file in (ROOT / "sae_lib").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Stage"
        and node.args and isinstance(node.args[0], ast.Constant)
    ]  # fmt: skip
    assert {node.args[0].value for node in made if isinstance(node.args[0], ast.Constant)} <= set(names)


def test_the_code_of_a_stage_is_all_that_its_modules_load() -> None:
    modules = sorted({module for begin in MODULES.values() for module in begin})
    code = f"import sys, {', '.join(modules)}; print(*(n for n in sys.modules if n.partition('.')[0] == 'sae_lib'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(source.closure(modules))


@pytest.mark.parametrize(
    "edit, changed", [("# a remark\n", False), ('"""Told otherwise."""\n', False), ("Z = 1\n", True)]
)
def test_what_counts_as_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str, changed: bool) -> None:
    """With the whole package copied: a remark in a module that all stages import is no change, a value is one."""
    package = tmp_path / "sae_lib"
    for file in (ROOT / "sae_lib").rglob("*"):
        if file.suffix in (".py", ".yaml", ".json"):
            (package / file.relative_to(ROOT / "sae_lib")).parent.mkdir(parents=True, exist_ok=True)
            (package / file.relative_to(ROOT / "sae_lib")).write_bytes(file.read_bytes())
    monkeypatch.setattr(source, "PACKAGE_FOLDER", package)
    before = now()
    with (package / "util" / "errors.py").open("a", encoding="utf-8") as module:
        module.write(edit)
    assert stale(before, now()) == (list(before) if changed else [])
