"""What a reader does to the notebooks: what runs again, and what is told in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from sae_lib.__main__ import main
from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.study import pipeline, plan
from sae_lib.study.pipeline import find_notebooks, why_not_done
from sae_lib.util.errors import ArtifactError
from sae_lib.util.paths import Paths
from tests.study.test_pipeline import NAMES, Kernel, write_notebook, writes

Edit = Callable[[Any], object]


class Reader:
    """Notebooks that ran, and what `make paper` runs after an edit of one of them."""

    def __init__(self, folder: Path, kernel: Kernel) -> None:
        self.folder, self.kernel = folder, kernel
        self.profile: Profile = load_profile("pocket")
        self.paths = Paths("pocket")
        assert self.run() == list(NAMES)

    def run(self) -> list[str]:
        return pipeline.run(self.profile, {"profile": "pocket"}, notebooks=self.folder)

    def edit(self, name: str, change: Edit) -> None:
        notebook = nbformat.read(self.folder / f"{name}.ipynb", as_version=4)
        change(notebook)
        nbformat.write(notebook, self.folder / f"{name}.ipynb")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in NAMES:
        write_notebook(folder, name, writes(name[:2]))
    kernel = Kernel(Paths("pocket"))
    monkeypatch.setattr("sae_lib.util.paths.NOTEBOOKS", folder)
    monkeypatch.setattr(pipeline, "run_notebook", kernel)
    return Reader(folder, kernel)


def cell(notebook: Any) -> Any:
    return notebook.cells[1]


def insert_code(notebook: Any) -> None:
    notebook.cells.insert(1, nbformat.v4.new_code_cell("print('what is in here?')"))


def insert_prose(notebook: Any) -> None:
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("My notes"))


def clear_outputs(notebook: Any) -> None:
    for each in notebook.cells:
        each.outputs, each.execution_count = [], None


def look_again(notebook: Any) -> None:
    """What JupyterLab changes by itself: folded cells, slide show settings, new ids, another kernel's name."""
    for number, each in enumerate(notebook.cells):
        each.metadata |= {"collapsed": True, "scrolled": False, "slideshow": {"slide_type": "slide"}}
        each.id = f"another-{number}"
    notebook.metadata = {"kernelspec": {"name": "mine", "display_name": "Mine"}, "language_info": {"name": "python"}}


@pytest.mark.parametrize("change", [clear_outputs, look_again])
def test_what_changes_no_cell_runs_nothing(reader: Reader, change: Edit) -> None:
    for name in NAMES:
        reader.edit(name, change)
    assert reader.run() == []


@pytest.mark.parametrize(
    "change",
    [
        insert_code,
        insert_prose,
        lambda notebook: cell(notebook).update(source=cell(notebook).source + "\nprint(1)"),
        lambda notebook: notebook.cells.reverse(),
        lambda notebook: cell(notebook).update(cell_type="raw"),
    ],
    ids=["a new cell", "prose", "a line of code", "the order", "a cell switched off"],
)
def test_an_edited_notebook_runs_again_alone_while_its_results_are_the_same(reader: Reader, change: Edit) -> None:
    """Prose as well: the executed copy would show the old one."""
    reader.edit("02_train", change)
    assert reader.run() == ["02_train"]
    assert reader.run() == []


def test_an_undone_edit_runs_nothing(reader: Reader) -> None:
    before = (reader.folder / "02_train.ipynb").read_bytes()
    reader.edit("02_train", insert_code)
    (reader.folder / "02_train.ipynb").write_bytes(before)
    assert reader.run() == []


def test_a_file_written_by_another_editor_is_the_same_notebook(reader: Reader) -> None:
    """A cell's text as one string or as a list of lines, another indentation, escaped letters, Windows' line ends."""
    file = reader.folder / "02_train.ipynb"
    content = json.loads(file.read_text(encoding="utf8"))
    for each in content["cells"]:
        each["source"] = "".join(each["source"])
    file.write_bytes(json.dumps(content, indent=4).replace("\n", "\r\n").encode())
    assert reader.run() == []


def test_a_deleted_last_cell_is_told_and_the_results_before_it_are_kept(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is a real one's stand-in that ends well without having written the manifest."""
    made = reader.paths.results / "value_02.txt"
    before = (reader.folder / "02_train.ipynb").read_bytes()
    reader.edit("02_train", lambda notebook: notebook.cells.pop())
    monkeypatch.setattr(pipeline, "run_notebook", lambda *_: Path())
    with pytest.raises(ArtifactError, match=r"^02_train ended without writing \S*02\.json; its last cells must write"):
        reader.run()
    assert made.is_file() and why_not_done(find_notebooks(reader.folder)[0], reader.profile, reader.paths) is None

    (reader.folder / "02_train.ipynb").write_bytes(before)
    monkeypatch.setattr(pipeline, "run_notebook", reader.kernel)
    assert reader.run() == ["02_train"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b'{"cells": [{}]}', b'{"cells": [3]}', b"\xff\xfe", b"<<<<<<< HEAD\n{}\n=======\n{}"],
    ids=["empty", "a list", "no cells", "null", "no type", "no cell", "no UTF-8", "a conflict"],
)
def test_a_broken_notebook_is_named_with_what_to_do(reader: Reader, content: bytes) -> None:
    (reader.folder / "02_train.ipynb").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"02_train\.ipynb cannot be read \(.*restore it with git$") as caught:
        reader.run()
    assert "\n" not in str(caught.value)


def test_a_copy_of_a_notebook_is_not_a_second_one(reader: Reader) -> None:
    """As JupyterLab's "Duplicate" leaves it: both would write one manifest."""
    original = reader.folder / "02_train.ipynb"
    (reader.folder / "02_train-Copy1.ipynb").write_bytes(original.read_bytes())
    with pytest.raises(ArtifactError, match=r"notebooks 02_train-Copy1, 02_train have one number; "):
        reader.run()
    (reader.folder / "02_train-Copy1.ipynb").unlink()
    (reader.folder / ".ipynb_checkpoints").mkdir()
    os.replace(original, reader.folder / ".ipynb_checkpoints" / "02_train-checkpoint.ipynb")
    assert [each.stem for each in find_notebooks(reader.folder)] == ["01_data", "03_report"]


def test_a_notebook_of_the_readers_own_runs_after_the_others(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "blockers", lambda *_: [])
    write_notebook(reader.folder, "06_mine", writes("06"))
    reader.kernel.results["06_mine"] = "1"
    assert main(["plan"]) == 0
    assert main(["run"]) == 0
    captured = capsys.readouterr()
    assert "06_mine: done" in captured.out and not captured.err
    assert reader.kernel.ran[-1] == "06_mine" and reader.run() == []
