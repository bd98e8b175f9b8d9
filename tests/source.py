"""The code behind a module, read from the sources without running them.

It tells whether the code of a stage has changed without its version (`tests/test_stage_code.py`). Comments, docstrings
and what is imported for type checkers alone are no part of it.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

from sae_lib.util.paths import ROOT

PACKAGE = "sae_lib"
PACKAGE_FOLDER = ROOT / PACKAGE
DATA_FILE = re.compile(r"[\w-]+(/[\w-]+)*\.(yaml|json|safetensors|parquet|typ|css|js|html)")


def code_digest(*modules: str) -> str:
    """Hexadecimal sha256 over the code of `modules` and of every module of this package that they import, directly or
    not, inside functions as well as at the top; and over the data files beside those modules that they name in a
    string ("claims.yaml").

    Raises ValueError when a name is not a module of this package.
    """
    digest = hashlib.sha256()
    for name in closure(modules):
        digest.update(f"{name}\0{_read(name).code}\0".encode())
        for file in sorted(_read(name).data):
            digest.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()


def closure(modules: Iterable[str]) -> tuple[str, ...]:
    """Every module of this package that importing `modules` can load, sorted.

    A package's `__init__` counts as imported with each of its modules, as in Python; and where it looks for its modules
    itself, with `iter_modules`, so do all of them.

    Raises ValueError when a name is not a module of this package.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_read(name).imports)
            if _read(name).finds:
                waiting.extend(each.name for each in iter_modules([str(_folder(name))], f"{name}."))
            if "." in name:
                waiting.append(name.rpartition(".")[0])
    return tuple(sorted(found))


def imported_modules(source: str, package: str = "") -> frozenset[str]:
    """Modules of this package that `source` imports anywhere. `package` resolves relative imports."""
    return _imports(_what_runs(source), package)


class _Read(NamedTuple):
    """What one source file holds and names."""

    code: str
    imports: frozenset[str]
    data: frozenset[Path]
    finds: bool  # what the folder has is imported


def _read(name: str) -> _Read:
    file = _module_file(name)
    if file is None:
        raise ValueError(f"{name} is not a module of {PACKAGE}")
    state = file.stat()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return _parse(file, package, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _parse(file: Path, package: str, changed: int, size: int) -> _Read:
    """Remembered for a file that has not changed."""
    tree = _what_runs(file.read_text(encoding="utf-8"))
    literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    named = [file.parent / word for word in literals if isinstance(word, str) and DATA_FILE.fullmatch(word)]
    code = hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()
    finds = any(isinstance(node, ast.Name) and node.id == "iter_modules" for node in ast.walk(tree))
    return _Read(code, _imports(tree, package), frozenset(path for path in named if path.is_file()), finds)


class _Running(ast.NodeTransformer):
    """Takes out what does nothing when it runs: bare strings, and blocks for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        kept = self.generic_visit(node)
        return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else kept


def _what_runs(source: str) -> ast.AST:
    tree: ast.AST = _Running().visit(ast.parse(source))
    return tree


def _plain(node: Any) -> Any:
    """A syntax tree as lists, the same for every version of Python that parses it."""
    if isinstance(node, ast.AST):
        return [type(node).__name__, *((k, _plain(v)) for k, v in ast.iter_fields(node) if v is not None and v != [])]
    return [_plain(each) for each in node] if isinstance(node, list) else node


def _imports(tree: ast.AST, package: str) -> frozenset[str]:
    names = (name for node in ast.walk(tree) for name in _named(node, package))
    return frozenset(module for name in names if (module := _module_of(name)) is not None)


def _named(node: ast.AST, package: str) -> Iterator[str]:
    """The dotted names an import statement may load, e.g. `from a import b` gives both a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parts, base] if base else parts)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _module_of(name: str) -> str | None:
    """The module that importing `name` loads; for `package.module.attribute` that is `package.module`."""
    while name and _module_file(name) is None:
        name = name.rpartition(".")[0]
    return name or None


def _module_file(name: str) -> Path | None:
    """The source of a dotted module name of this package, or None."""
    if name.partition(".")[0] != PACKAGE:
        return None
    folder = _folder(name)
    plain = folder.with_suffix(".py") if "." in name else folder / "__init__.py"
    return next((file for file in (folder / "__init__.py", plain) if file.is_file()), None)


def _folder(name: str) -> Path:
    return PACKAGE_FOLDER.joinpath(*name.split(".")[1:])
