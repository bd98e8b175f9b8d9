"""The committed notebooks: executed, short-celled, and with outputs for every cell that is checked."""

import ast
import re
from typing import Any

import nbformat
import pytest

from sae_lib.profiles.profile import PROFILES
from sae_lib.util.paths import NOTEBOOKS
from tests.notebook_outputs import put_back

NAMES = ("01_data", "02_train", "03_ablations", "04_evaluation", "05_figures")
CHECK = re.compile(r"^# NBVAL_CHECK_OUTPUT$", flags=re.MULTILINE)
LONGEST_CELL = 20
MOST_CELLS = 60
SHIPPED = [path.stem for path in PROFILES.glob("*.yaml")]
WORDS_PER_LINE = 2  # of prose for each line of code, at least
# Folders of one machine: a home, a temporary folder, the root of a drive.
PROGRESS_BAR = re.compile(r"\d%\||it/s\b|\r")
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|var|work|mnt|opt|private)/\S+|[A-Z]:\\\S+")


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> list[str]:
    """Everything a cell shows as text."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.text)
        elif "data" in output:
            found += [str(value) for kind, value in output.data.items() if kind.startswith("text/")]
    return found


def problems(notebook: Any) -> list[str]:
    """What is wrong with a committed notebook, a line each."""
    found = []
    cells = code_cells(notebook)
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not python3")
    if not notebook.cells or notebook.cells[0].cell_type != "markdown" or "?" not in notebook.cells[0].source:
        found.append("it does not open with the question it answers")
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or tagged[0].source not in [f'profile = "{name}"' for name in SHIPPED]:
        found.append('there must be one cell tagged parameters, such as profile = "smoke"')
    if not any("Experiment.of_notebook(profile)" in cell.source for cell in cells):
        found.append("SAE_LIB_PROFILE cannot override its profile: it must open Experiment.of_notebook(profile)")
    if not cells or not re.search(r"\bprovenance\(", cells[-1].source):
        found.append("its last code cell does not show the provenance")
    if not any(CHECK.search(cell.source) for cell in cells):
        found.append("no cell is checked")
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"it was not run from top to bottom in a fresh kernel: {counts}")
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in cells)
    if words < WORDS_PER_LINE * lines:
        found.append(f"{words} words of prose for {lines} lines of code")
    for number, cell in enumerate(cells, start=1):
        found += [f"code cell {number}: {problem}" for problem in cell_problems(cell)]
    return found


def cell_problems(cell: Any) -> list[str]:
    found = []
    if CHECK.search(cell.source) and not cell.outputs:
        found.append("is checked and has no output")
    if CHECK.search(cell.source) and "fails" in str(cell.outputs):
        found.append("is checked and says that something fails")
    if "write_figure(" in cell.source and not any("image/png" in output.get("data", {}) for output in cell.outputs):
        found.append("writes a figure and shows none")
    if len(cell.source.splitlines()) > LONGEST_CELL:
        found.append(f"has more than {LONGEST_CELL} lines")
    if any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(cell.source))):
        found.append("defines a class")
    if any(output.output_type == "error" for output in cell.outputs):
        found.append("ended with an error")
    for text in texts(cell):
        if re.search(r"\w*Warning\b", text):
            found.append("shows a warning")
        if PROGRESS_BAR.search(text):
            found.append("shows a progress bar")
        if path := MACHINE_PATH.search(text):
            found.append(f"shows a path of one machine: {path[0]}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_executed_and_readable(name: str) -> None:
    assert problems(read(name)) == []


def test_exactly_these_notebooks_exist_and_are_small_enough_for_a_repository() -> None:
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert [path.stem for path in found] == [*NAMES] and max(path.stat().st_size for path in found) < 1_500_000


def example(**changes: Any) -> Any:
    """A notebook without problems, with changes to its checked cell."""
    check = nbformat.v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nprint('1.00')", execution_count=2)
    check.outputs = [nbformat.v4.new_output("stream", text="1.00\n")]
    check.update(changes)
    return nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            nbformat.v4.new_markdown_cell("# How many? " + "word " * 60),
            nbformat.v4.new_code_cell('profile = "smoke"', execution_count=1, metadata={"tags": ["parameters"]}),
            check,
            nbformat.v4.new_code_cell(
                "Experiment.of_notebook(profile)\nprovenance(settings, started)", execution_count=3
            ),
        ],
    )


def test_good_example_has_no_problem() -> None:
    assert problems(example()) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"outputs": []}, "is checked and has no output"),
        (
            {"outputs": [nbformat.v4.new_output("stream", name="stdout", text="Eq. 1: fails\n")]},
            "says that something fails",
        ),
        ({"execution_count": None}, "not run from top to bottom"),
        ({"execution_count": 7}, "not run from top to bottom"),
        ({"source": "print(1)"}, "no cell is checked"),
        ({"source": "# NBVAL_CHECK_OUTPUT\n" + "x = 1\n" * 20}, "more than 20 lines"),
        ({"source": "# NBVAL_CHECK_OUTPUT\n" + "x = 1\n" * 40}, "words of prose for 44 lines of code"),
        ({"outputs": [nbformat.v4.new_output("stream", text=" 50%|████     | 1/2 [00:01, 1.2it/s]")]}, "progress bar"),
        ({"source": "# NBVAL_CHECK_OUTPUT\nclass A:\n    pass"}, "defines a class"),
        ({"outputs": [nbformat.v4.new_output("error", ename="E", evalue="")]}, "ended with an error"),
        ({"outputs": [nbformat.v4.new_output("stream", text="x: UserWarning: y")]}, "shows a warning"),
        (
            {"outputs": [nbformat.v4.new_output("execute_result", data={"text/plain": "'/home/me/a'"})]},
            "path of one machine: /home/me/a",
        ),
    ],
)
def test_each_problem_is_found(changes: dict[str, Any], problem: str) -> None:
    assert any(problem in line for line in problems(example(**changes)))


@pytest.mark.parametrize(("cell", "problem"), [(0, "question"), (1, "one cell tagged parameters"), (3, "provenance")])
def test_each_missing_cell_is_found(cell: int, problem: str) -> None:
    notebook = example()
    del notebook.cells[cell]
    assert any(problem in line for line in problems(notebook))


def test_paths_of_the_web_and_of_the_checkout_are_no_machine_paths() -> None:
    for text in ("https://huggingface.co/home/x", "figures/tmp/a.pdf", "a/b", "build/smoke/results"):
        assert MACHINE_PATH.search(text) is None
    assert MACHINE_PATH.search("saved '/tmp/a/b'") is not None


def test_outputs_are_put_back_without_what_papermill_adds() -> None:
    committed, executed = example(outputs=[]), example()
    for one, other in zip(committed.cells, executed.cells, strict=True):
        other.id = one.id
    committed.cells[0].source = "# How many, in other words?"
    result = nbformat.v4.new_output("execute_result", data={"text/plain": "1"}, execution_count=3)
    executed.cells[2].outputs += [nbformat.v4.new_output("stream", name="stderr", text="50%|"), result]
    added = nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, added)
    put_back(committed, executed)
    assert [cell.execution_count for cell in code_cells(committed)] == [1, 2, 3]
    printed, shown = committed.cells[2].outputs
    assert printed.text == "1.00\n" and shown.execution_count == 2
    assert committed.cells[0].source == "# How many, in other words?"
    executed.cells[3].source += "\nmore()"
    with pytest.raises(ValueError, match="its code is not what ran"):
        put_back(committed, executed)


def test_put_back_names_the_profile_that_ran() -> None:
    committed, executed = example(outputs=[]), example()
    for one, other in zip(committed.cells, executed.cells, strict=True):
        other.id = one.id
    for profile in ("pocket", "smoke"):
        put_back(committed, executed, profile)
        assert committed.cells[1].source == f'profile = "{profile}"' and problems(committed) == []


@pytest.mark.parametrize("name", NAMES)
def test_all_notebooks_are_of_one_profile_and_no_longer_than_a_sitting(name: str) -> None:
    notebook, first = read(name), read(NAMES[0])
    named = [[c.source for c in code_cells(n) if "parameters" in c.metadata.get("tags", [])] for n in (notebook, first)]
    assert named[0] == named[1]
    assert len(notebook.cells) <= MOST_CELLS


def test_every_equation_is_short_and_ends_in_an_assertion() -> None:
    equations = [cell for cell in code_cells(read("02_train")) if "InLibrary(x" in cell.source]
    assert len(equations) >= 10
    for cell in equations:
        assert len(cell.source.splitlines()) <= 15
        assert cell.source.splitlines()[-1].lstrip().startswith("assert")
