"""The README's tables: copied from the files that `make paper` made, never typed.

A table stands between `<!-- figures/table_main.md -->` and `<!-- end -->`; `python -m sae_lib readme` puts the
content of that file there, and a test compares the two.
"""

from __future__ import annotations

import re
from pathlib import Path

from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write
from sae_lib.util.paths import ROOT

BLOCK = re.compile(r"(<!-- (?P<file>[\w./-]+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, root: Path) -> str:
    """`text` with every marked block replaced by the content of its file, a path relative to `root`.

    Raises ArtifactError when a named file is not there.
    """

    def fill(match: re.Match[str]) -> str:
        file = root / match["file"]
        if not file.is_file():
            raise ArtifactError(f"README.md: {match['file']} is not there; run `make paper` first")
        return f"{match[1]}{file.read_text(encoding='utf8').strip()}\n{match[3]}"

    return BLOCK.sub(fill, text)


def fill_readme(root: Path = ROOT) -> None:
    """Fill the tables of README.md in `root`."""
    readme = root / "README.md"
    with atomic_write(readme) as file:
        file.write(with_tables(readme.read_text(encoding="utf8"), root))
