"""The outputs of a run in the committed notebooks: `python -m tests.notebook_outputs` after `make smoke`, or with
`--profile pocket` after `make paper`.

Of an executed copy only the outputs are taken: not the cell of parameters that papermill adds, nor times, nor progress
bars. Prose may have changed since; code may not, but for the profile that the cell of parameters names.
"""

from __future__ import annotations

import argparse
from typing import Any

import nbformat

from sae_lib.util.paths import NOTEBOOKS, Paths

PARAMETERS = "parameters"


def put_back(committed: Any, executed: Any, profile: str = "smoke") -> None:
    """Give the cells of `committed` the outputs of `executed`, a run of `profile`, counted from 1.

    Raises ValueError for cells of code that are not those that ran.
    """
    added = "injected-parameters"
    ran = [c for c in executed.cells if c.cell_type == "code" and added not in c.metadata.get("tags", [])]
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    if _code(cells) != _code(ran):
        raise ValueError(f"its code is not what ran: make paper PROFILE={profile} again")
    for count, (cell, other) in enumerate(zip(cells, ran, strict=True), start=1):
        if PARAMETERS in cell.metadata.get("tags", []):
            cell.source = f'profile = "{profile}"'
        cell.execution_count = count
        cell.outputs = [output for output in other.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def _code(cells: list[Any]) -> list[tuple[str, str]]:
    return [(c.id, "" if PARAMETERS in c.metadata.get("tags", []) else c.source) for c in cells]


def main() -> None:
    """All notebooks, or none where one does not fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="smoke")
    profile = parser.parse_args().profile
    notebooks = {path: nbformat.read(path, as_version=4) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    for path, notebook in notebooks.items():
        put_back(notebook, nbformat.read(Paths(profile).notebooks / path.name, as_version=4), profile)
    for path, notebook in notebooks.items():
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
