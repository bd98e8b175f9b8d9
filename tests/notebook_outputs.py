"""The outputs of `make smoke` in the committed notebooks: `python -m tests.notebook_outputs`, after it has run.

Of an executed copy only the outputs are taken: not the cell of parameters that papermill adds, nor times, nor progress
bars. Prose may have changed since; code may not.
"""

from __future__ import annotations

from typing import Any

import nbformat

from sae_lib.util.paths import NOTEBOOKS, Paths


def put_back(committed: Any, executed: Any) -> None:
    """Give the cells of `committed` the outputs of `executed`, counted from 1.

    Raises ValueError for cells of code that are not those that ran.
    """
    added = "injected-parameters"
    ran = [c for c in executed.cells if c.cell_type == "code" and added not in c.metadata.get("tags", [])]
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    if [(cell.id, cell.source) for cell in cells] != [(cell.id, cell.source) for cell in ran]:
        raise ValueError("its code is not what ran: make smoke again")
    for count, (cell, other) in enumerate(zip(cells, ran, strict=True), start=1):
        cell.execution_count = count
        cell.outputs = [output for output in other.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def main() -> None:
    """All notebooks, or none where one does not fit."""
    notebooks = {path: nbformat.read(path, as_version=4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    for path, notebook in notebooks.items():
        put_back(notebook, nbformat.read(Paths("smoke").notebooks / path.name, as_version=4))
    for path, notebook in notebooks.items():
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
