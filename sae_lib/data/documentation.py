"""The packaged corpus: the documentation strings of the pinned packages of this environment.

Real technical English (about 35 MB), there without a download and the same on every machine that has the same pins:
files are read in sorted order and texts are deduplicated. Source is parsed (`ast`); no package is imported.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sae_lib.util.errors import ArtifactError

# Distribution name -> import name, where the two differ.
IMPORT_NAMES = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml", "ipython": "IPython"}
# Calls that attach a documentation string to a compiled function; the string is one of their arguments.
DOCSTRING_CALLS = {"add_docstr", "add_newdoc", "add_docstr_all"}
SHORTEST_TEXT = 80  # characters; shorter strings are mostly "See base class."


class Document(NamedTuple):
    """One documentation string. `kind` is module, class, function or compiled."""

    text: str
    package: str
    kind: str


def _docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(kind, text) for each documentation string of a parsed file, in source order."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield {"Module": "module", "ClassDef": "class"}.get(type(node).__name__, "function"), text
        elif isinstance(node, ast.Expr) and isinstance(call := node.value, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            parts = ast.walk(call) if name in DOCSTRING_CALLS else ()
            texts = (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))
            yield from (("compiled", inspect.cleandoc(text)) for text in texts if len(text) >= SHORTEST_TEXT)
        # Definitions hide only in statements, so expressions are never entered: ten times faster than ast.walk.
        for field in ("body", "orelse", "handlers", "finalbody"):
            stack.extend(reversed([n for n in getattr(node, field, []) if isinstance(n, ast.stmt | ast.excepthandler)]))


def package_folder(package: str) -> Path:
    """Folder of a package, found without importing it. Raises ArtifactError when it is not installed."""
    name = IMPORT_NAMES.get(package.lower(), package.replace("-", "_"))
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(package)
    return Path(next(iter(spec.submodule_search_locations)))


def _package_documents(package: str) -> list[Document]:
    folder = package_folder(package)
    documents: dict[str, Document] = {}  # keyed by text: the first occurrence stays
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escape sequences in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and deliberately broken test files
            continue
        for kind, text in _docstrings(tree):
            text = re.sub(r"\n{3,}", "\n\n", text).strip().encode("utf8", "replace").decode("utf8")
            if len(text) >= SHORTEST_TEXT:
                documents.setdefault(text, Document(text, package, kind))
    return list(documents.values())


def extract(packages: Sequence[str], processes: int | None = None) -> list[Document]:
    """All distinct documentation strings of `packages`, ordered by the sha256 of their text, so that any prefix is a
    fair sample of the whole. Raises ArtifactError when a package is missing or nothing was found."""
    import joblib

    for package in packages:
        package_folder(package)
    processes = min(processes or joblib.cpu_count(), len(packages))
    # loky's processes do not run the caller's script again, so it needs no `if __name__ == "__main__"`.
    found = joblib.Parallel(processes)(joblib.delayed(_package_documents)(package) for package in packages)
    distinct: dict[bytes, Document] = {}
    for document in (d for documents in found for d in documents):
        distinct.setdefault(hashlib.sha256(document.text.encode()).digest(), document)
    if not distinct:
        raise ArtifactError(f"corpus.packages: no documentation strings found in {', '.join(packages)}")
    return [distinct[digest] for digest in sorted(distinct)]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package, without a local build tag such as +cpu (the texts do not differ)."""
    try:
        return {package: importlib.metadata.version(package).split("+")[0] for package in sorted(packages)}
    except importlib.metadata.PackageNotFoundError as error:
        raise _not_installed(str(error.name)) from None


def _not_installed(package: str) -> ArtifactError:
    return ArtifactError(f"corpus.packages: '{package}' is not installed; install it or take it out of the list")
