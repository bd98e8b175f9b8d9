"""Content keys of code: what a result depends on, read from the sources without running them.

A result is made again when the code that made it changes, and only then. The key of a module is the sha256
over its own source, over every module of this package that it imports, directly or not, inside functions as
well as at the top, and over the data files beside those modules that they name in a string ("claims.yaml").
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
PACKAGE = PACKAGE_FOLDER.name
DATA_FILE = re.compile(r"[\w-]+(/[\w-]+)*\.(yaml|json|safetensors|parquet|typ|css|js|html)")


def source_key(*modules: str, data: Iterable[str] = ()) -> str:
    """Hexadecimal sha256 of the static import closure of `modules` within this package.

    Args:
        modules: dotted names, such as "sae_lib.training.run".
        data: further package data, relative to the package folder ("profiles/smoke.yaml").

    Raises:
        ValueError: a name is not a module of this package.
        FileNotFoundError: a data file is missing.
    """
    files = {PACKAGE_FOLDER / name for name in data}
    for name in closure(modules):
        files |= {_source(name), *_read(name).data}
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        # Name and length go in too, so that no two lists of files share a digest.
        digest.update(f"{file.relative_to(PACKAGE_FOLDER).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def closure(modules: Iterable[str]) -> tuple[str, ...]:
    """Every module of this package that importing `modules` can load, sorted.

    A package's `__init__` counts as imported with each of its modules, as in Python.

    Raises:
        ValueError: a name is not a module of this package.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_read(name).imports)
            if "." in name:
                waiting.append(name.rpartition(".")[0])
    return tuple(sorted(found))


def imported_modules(source: str, package: str = "") -> frozenset[str]:
    """Modules of this package that `source` imports anywhere. `package` resolves relative imports."""
    return frozenset(
        module
        for node in ast.walk(ast.parse(source))
        for name in _named(node, package)
        if (module := _module_of(name)) is not None
    )


def module_file(name: str) -> Path | None:
    """The source of a dotted module name of this package, or None."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    folder = PACKAGE_FOLDER.joinpath(*rest)
    plain = folder.with_suffix(".py") if rest else folder / "__init__.py"
    for file in (folder / "__init__.py", plain):
        if file.is_file():
            return file
    return None


class _Read(NamedTuple):
    """What one source file names."""

    imports: frozenset[str]
    data: frozenset[Path]


def _read(name: str) -> _Read:
    file = _source(name)
    state = file.stat()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return _parse(file, package, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _parse(file: Path, package: str, changed: int, size: int) -> _Read:
    """Remembered for a file that has not changed."""
    text = file.read_text(encoding="utf-8")
    literals = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    named = [file.parent / word for word in literals if isinstance(word, str) and DATA_FILE.fullmatch(word)]
    return _Read(imported_modules(text, package), frozenset(path for path in named if path.is_file()))


def _source(name: str) -> Path:
    file = module_file(name)
    if file is None:
        raise ValueError(f"{name} is not a module of {PACKAGE}")
    return file


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
    while name and module_file(name) is None:
        name = name.rpartition(".")[0]
    return name or None
