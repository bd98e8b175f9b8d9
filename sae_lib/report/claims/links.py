"""Where a claim's evidence is seen: the figure or table, and the notebook cell that makes it.

A cell is addressed by its id, as JupyterLab and nbconvert address cells: `04_evaluation.ipynb#cell-id=04-15-code`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from sae_lib.report.figures.write import FIGURES
from sae_lib.report.tables.write import TABLES
from sae_lib.util.files import read_json
from sae_lib.util.paths import NOTEBOOKS

# What gives the verdicts; its cell is where a claim without a figure or table is seen.
LEDGER = "claims"
# File in the figures folder, without its ending -> what a cell calls that makes it: its function alone, or the writer
# of all.
CALLS = (
    {name: rf'\b{make.__name__}\(|\bwrite_figure\("{name}"' for name, (make, _) in FIGURES.items()}
    | {name: rf"\b{make.__name__}\(|\bmake_table\(" for name, (make, _) in TABLES.items()}
    | {LEDGER: r"\bevaluate_claims\("}
)
# The figures folder has the notebooks beside it, in the repository as in a profile's folder.
NOTEBOOKS_FROM_FIGURES = "../notebooks"


class Link(NamedTuple):
    """`target` is relative to the figures folder."""

    text: str
    target: str


def notebook_cells(folder: Path = NOTEBOOKS) -> dict[str, Link]:
    """File stem -> the first cell of the notebooks in `folder` that makes it; what none makes has no entry."""
    found: dict[str, Link] = {}
    for path in sorted(folder.glob("*.ipynb")):
        for cell in (cell for cell in read_json(path)["cells"] if cell["cell_type"] == "code"):
            source = "".join(cell["source"])
            link = Link(f"{path.stem}, cell {cell['id']}", f"{NOTEBOOKS_FROM_FIGURES}/{path.name}#cell-id={cell['id']}")
            for stem in (stem for stem, call in CALLS.items() if re.search(call, source)):
                found.setdefault(stem, link)
    return found


def evidence_links(shown: Iterable[str], cells: Mapping[str, Link]) -> list[Link]:
    """The files of a claim, then the cells that make them, each once; the ledger's cell where no other is known."""
    files = {stem: Link(stem, f"{stem}.md" if stem in TABLES else f"{stem}.png") for stem in shown}
    makers = [stem for stem in files if stem in cells] or [LEDGER]
    return [*files.values(), *dict.fromkeys(cells[stem] for stem in makers if stem in cells)]
