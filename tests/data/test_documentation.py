import importlib
import json
import sys
from pathlib import Path

import pytest

from sae_lib.data import documentation
from sae_lib.util.errors import ArtifactError

LONG = "A sentence that is long enough to be kept by the extraction, which drops what is short. "

SOURCES = {
    "__init__.py": f'"""Module of the package. {LONG}"""\n',
    "alpha.py": f'''"""{LONG} Module alpha."""

class Thing:
    """{LONG} A thing.



    With three empty lines, of which one stays.
    """

    def method(self):
        """{LONG} A method."""
        def inner():
            """{LONG} A function inside of a method."""

    async def waits(self):
        """{LONG} An asynchronous method."""

    def short(self):
        """See base class."""

if True:
    def conditional():
        """{LONG} Defined under a condition."""
else:
    try:
        pass
    except ValueError:
        def handler():
            """{LONG} Defined in a handler."""

NOT_A_DOCSTRING = """{LONG} Just a string."""
''',
    "beta.py": f'''
def copy_of_method():
    """{LONG} A method."""

add_docstr(compiled, """{LONG} Attached to a compiled function.""")
library.add_newdoc("module", "name", ("attribute", """{LONG} Attached by another name."""))
print("""{LONG} An argument of another call.""")
''',
    "deep/gamma.py": f'"""{LONG} In a folder below."""\n',
    "broken.py": "def (:\n",
    "data.txt": LONG,
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package that must not be imported."""
    folder = tmp_path / "site" / "fakepack"
    for name, source in SOURCES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source + ("\nraise RuntimeError('imported')\n" if name == "__init__.py" else ""))
    information = tmp_path / "site" / "fakepack-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fakepack\nVersion: 1.2+local\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return "fakepack"


def test_what_is_extracted(package):
    documents = documentation.extract([package])
    found = sorted((d.kind, d.text.removeprefix(LONG.strip()).strip().splitlines()[0]) for d in documents)
    assert found == [
        ("class", "A thing."),
        ("compiled", "Attached by another name."),
        ("compiled", "Attached to a compiled function."),
        ("function", "A function inside of a method."),
        ("function", "A method."),
        ("function", "An asynchronous method."),
        ("function", "Defined in a handler."),
        ("function", "Defined under a condition."),
        ("module", "In a folder below."),
        ("module", "Module alpha."),
        ("module", f"Module of the package. {LONG}".strip()),
    ]
    assert {d.package for d in documents} == {package}
    assert all(len(d.text) >= documentation.SHORTEST_TEXT and "\n\n\n" not in d.text for d in documents)
    assert package not in sys.modules, "sources are parsed, not imported"


def test_the_order_is_that_of_the_hashes_whatever_the_processes(package):
    once = documentation.extract([package], processes=1)
    assert once == documentation.extract([package], processes=1)
    import hashlib

    digests = [hashlib.sha256(d.text.encode()).digest() for d in once]
    assert digests == sorted(digests) and len(set(digests)) == len(digests)


def test_texts_that_two_packages_share_are_kept_once(package, tmp_path):
    twin = tmp_path / "site" / "twinpack"
    twin.mkdir()
    (twin / "__init__.py").write_text(SOURCES["alpha.py"] + f'\ndef own():\n    """{LONG} Only here."""\n')
    importlib.invalidate_caches()
    texts = [d.text for d in documentation.extract([package, "twinpack"], processes=1)]
    assert len(texts) == len(set(texts)) == 12
    assert set(texts) == {d.text for p in (package, "twinpack") for d in documentation.extract([p])}


def test_packages_that_are_missing_or_empty(package, tmp_path):
    with pytest.raises(ArtifactError, match="'no_such_package' is not installed"):
        documentation.extract([package, "no_such_package"])
    empty = tmp_path / "site" / "emptypack"
    empty.mkdir()
    (empty / "__init__.py").write_text("x = 1\n")
    importlib.invalidate_caches()
    with pytest.raises(ArtifactError, match="no documentation strings found in emptypack"):
        documentation.extract(["emptypack"])


def test_versions_without_local_tags(package):
    assert documentation.versions([package]) == {"fakepack": "1.2"}
    assert json.dumps(documentation.versions(["torch", "numpy"])).startswith('{"numpy"')


def test_compiled_documentation_of_a_real_package():
    """torch attaches the documentation of its compiled functions in `_torch_docs.py`."""
    import ast

    tree = ast.parse((documentation.package_folder("torch") / "_torch_docs.py").read_bytes())
    compiled = [text for kind, text in documentation._docstrings(tree) if kind == "compiled"]
    assert len(compiled) > 200 and any(text.startswith("abs(input") for text in compiled)
