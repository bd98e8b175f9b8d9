"""Curves that move while SAEs train: what is drawn, when, for whom, and that nothing stays behind."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel
from matplotlib.lines import Line2D

from sae_lib.report.figures import live
from sae_lib.report.figures.style import look
from sae_lib.study.notebooks import run_notebook
from sae_lib.training.log import PROGRESS_FILE

PNG = b"\x89PNG\r\n"
STEPS = 100


def rows(count: int) -> list[dict[str, float]]:
    """A logged row every ten steps."""
    return [{"step": 10.0 * i, "explained_variance": 1 - 0.5**i, "l0": 64.0 / (i + 1)} for i in range(count)]


def log(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / PROGRESS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows(count)))


class Handle:
    """A display handle that remembers: None for the empty bundle, else the bytes of a picture."""

    def __init__(self) -> None:
        self.shown: list[bytes | None] = []

    def update(self, what: Any, raw: bool = False) -> None:
        assert raw == (what == {})
        self.shown.append(None if raw else what.data)

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.shown) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """What `display` returns in a kernel that somebody looks at."""
    handle = Handle()

    def display(picture: Any, display_id: bool) -> Handle:
        assert display_id
        handle.update(picture)
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live, "somebody_looks_on", lambda: True)
    monkeypatch.setattr(live, "REDRAW_S", 0.01)
    return handle


def points(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_xydata()).tolist()


def no_thread_is_left() -> bool:
    return all(thread.name != "live curves" for thread in threading.enumerate())


def test_one_line_for_each_sae_in_the_look_of_its_method():
    curves = [("topk", rows(4)), ("standard", rows(11)), ("standard", rows(2))]
    fig = live.live_figure(curves, STEPS)
    unexplained, l0 = fig.axes
    # The first row explains nothing: 1 - 0 = 1.
    assert [line.get_color() for line in unexplained.lines] == [look(method).color for method, _ in curves]
    assert points(unexplained.lines[0]) == [[0, 1], [10, 0.5], [20, 0.25], [30, 0.125]]
    assert points(l0.lines[2]) == [[0, 64], [10, 32]]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["TopK", "Standard"]
    assert {ax.get_xlim() for ax in fig.axes} == {(0.0, 100.0)} and {ax.get_yscale() for ax in fig.axes} == {"log"}


def test_the_picture_follows_the_runs_and_is_taken_back(handle, tmp_path):
    runs = {tmp_path / name: method for name, method in (("a", "topk"), ("b", "atm"))}
    with live.live_curves(runs, STEPS):
        assert len(handle.shown) == 1, "axes are there at once"
        log(tmp_path / "a", 1)
        handle.wait_for(2)
        log(tmp_path / "b", 3)
        handle.wait_for(3)
        (tmp_path / "a" / PROGRESS_FILE).unlink()
        handle.wait_for(4)
    *pictures, last = handle.shown
    assert last is None
    assert all(picture is not None and picture.startswith(PNG) for picture in pictures)
    assert pictures[-1] == live._picture([("atm", rows(3))], STEPS).data and len(set(pictures)) == len(pictures)
    assert no_thread_is_left()


def test_it_is_drawn_again_only_for_something_new(handle, tmp_path):
    class Ended(threading.Event):
        """Ends at the sixth look; a new row is there at the second and at the fourth."""

        looks = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.looks += 1
            if self.looks in (2, 4):
                log(tmp_path / "a", self.looks)
            return self.looks == 6

    live._redraw(handle, {tmp_path / "a": "topk"}, STEPS, Ended())
    assert handle.shown == [live._picture([("topk", rows(count))], STEPS).data for count in (2, 4)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_ends_it_cleanly(handle, tmp_path, error):
    with pytest.raises(error), live.live_curves({tmp_path / "a": "topk"}, STEPS):
        raise error
    assert len(handle.shown) == 2 and handle.shown[-1] is None
    assert no_thread_is_left()


def test_nothing_is_shown_where_nothing_is_to_train(handle):
    with live.live_curves({}, STEPS):
        assert no_thread_is_left()
    assert handle.shown == []


def test_nothing_is_shown_in_plain_python(tmp_path, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: pytest.fail("shown"))
    with live.live_curves({tmp_path / "a": "topk"}, STEPS):
        assert no_thread_is_left()


CELL = f"""
import time
from pathlib import Path
from sae_lib.report.figures import live

picture, drawn = live._picture, []
live._picture = lambda *arguments: drawn.append(arguments) or picture(*arguments)
live.REDRAW_S = 0.05
with live.live_curves({{Path(FOLDER): "topk"}}, {STEPS}):
    Path(FOLDER, "{PROGRESS_FILE}").write_text({json.dumps(rows(1)[0])!r} + "\\n")
    while len(drawn) < PICTURES:
        time.sleep(0.01)
"""


def cell(folder: Path, pictures: int) -> str:
    """A cell with a run that logs one row, and ends when so many pictures have been drawn."""
    return CELL.replace("FOLDER", repr(str(folder))).replace("PICTURES", str(pictures))


def test_in_a_kernel_the_picture_comes_moves_and_goes(tmp_path, monkeypatch):
    monkeypatch.delenv(live.HEADLESS_VARIABLE, raising=False)
    manager, client = start_new_kernel(kernel_name="python3")
    messages: list[Any] = []

    def keep(message: Any) -> None:
        if message["msg_type"] not in ("status", "execute_input"):
            messages.append(message)

    try:
        reply = client.execute_interactive(cell(tmp_path, pictures=2), timeout=60, output_hook=keep)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    assert [message["msg_type"] for message in messages] == [
        "display_data",
        "update_display_data",
        "update_display_data",
    ]
    assert len({message["content"]["transient"]["display_id"] for message in messages}) == 1
    assert {message["parent_header"]["msg_id"] for message in messages} == {reply["parent_header"]["msg_id"]}
    *pictures, last = (message["content"]["data"] for message in messages)
    assert last == {}
    assert all(base64.b64decode(picture["image/png"]).startswith(PNG) for picture in pictures)


def test_a_notebook_that_papermill_runs_shows_nothing(tmp_path):
    cells = [nbformat.v4.new_code_cell("profile = 1", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(cell(tmp_path, pictures=0))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, tmp_path / "01_x.ipynb")
    done = run_notebook(
        tmp_path / "01_x.ipynb", tmp_path / "done", tmp_path / "failed", tmp_path / "log", {"profile": 2}
    )
    assert [cell.outputs for cell in nbformat.read(done, as_version=4).cells] == [[], [], []]
