"""A digest changes with the code behind a module, and with nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lib.util.paths import ROOT
from tests import source
from tests.source import closure, code_digest, imported_modules

SOURCES = {
    "__init__.py": "",
    "a.py": "from sae_lib.b import f\n",
    "b.py": "def f():\n    from .inner import c\n    return c\n",
    "inner/__init__.py": "from sae_lib.inner import d\n",
    "inner/c.py": 'TABLE = "table.yaml"\nMISSING = "none.yaml"\n',
    "inner/d.py": "from ..errors import E\n",
    "inner/table.yaml": "x: 1\n",
    "errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sae_lib import apart\nE = 1\n",
    "apart.py": "import os, numpy\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of its own in place of the real one."""
    folder = tmp_path / "sae_lib"
    for name, text in SOURCES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(source, "PACKAGE_FOLDER", folder)
    return folder


def test_closure_follows_every_import_that_runs(package: Path) -> None:
    everything = ("a", "b", "errors", "inner", "inner.c", "inner.d")
    assert closure(["sae_lib.a"]) == ("sae_lib", *(f"sae_lib.{name}" for name in everything))
    assert closure(["sae_lib.apart"]) == ("sae_lib", "sae_lib.apart")


def test_a_package_that_finds_its_modules_has_them_all(package: Path) -> None:
    (package / "inner" / "__init__.py").write_text(
        "from pkgutil import iter_modules\nfor _ in iter_modules(__path__): ...\n"
    )
    assert closure(["sae_lib.inner"]) == ("sae_lib", "sae_lib.errors", *(f"sae_lib.inner{e}" for e in ("", ".c", ".d")))
    (package / "inner" / "added.py").write_text("from sae_lib import apart\n")
    assert {"sae_lib.inner.added", "sae_lib.apart"} <= set(closure(["sae_lib.inner"]))


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "apart.py"])
def test_digest_changes_with_each_file_of_the_closure(package: Path, name: str) -> None:
    before = code_digest("sae_lib.a")
    (package / name).write_text(SOURCES[name] + ("y: 2\n" if name.endswith("yaml") else "Z = 2\n"))
    assert code_digest("sae_lib.a") != before
    (package / name).write_text(SOURCES[name])
    assert code_digest("sae_lib.a") == before


def test_digest_does_not_change_with_remarks_other_files_times_or_places(package: Path) -> None:
    before = code_digest("sae_lib.a", "sae_lib.errors")
    (package / "apart.py").write_text("import sys\n")
    (package / "b.py").write_text(
        '"""Says b."""\n\ndef f():  # f\n    """Says f."""\n    from .inner import c\n\n    return c'
    )
    (package / "errors.py").write_text(SOURCES["errors.py"].replace("import apart", "import a, apart"))
    os.utime(package / "a.py", (0, 0))
    assert code_digest("sae_lib.errors", "sae_lib.a") == before


def test_unknown_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sae_lib\.nothing is not a module of sae_lib"):
        code_digest("sae_lib.nothing")
    with pytest.raises(ValueError, match="numpy"):
        code_digest("numpy")


def test_imports_are_told_from_attributes(package: Path) -> None:
    text = "import sae_lib.inner.c as c, os, torch\nfrom sae_lib import a\nfrom sae_lib.errors import E\n"
    assert imported_modules(text) == {"sae_lib", "sae_lib.inner.c", "sae_lib.a", "sae_lib.errors"}


@pytest.mark.parametrize("module", ["sae_lib.study.pipeline", "sae_lib.profiles.profile", "sae_lib.profiles.runs"])
def test_closure_holds_what_python_really_loads(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in sys.modules if name.partition('.')[0] == 'sae_lib'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(closure([module]))
