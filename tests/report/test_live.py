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
import pandas as pd
import pytest
from jupyter_client.manager import start_new_kernel
from matplotlib.lines import Line2D

from sae_lib.report.figures import live
from sae_lib.report.figures.live_figure import Curve, live_figure, live_png
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


def finish(folder: Path, count: int) -> None:
    pd.DataFrame(rows(count)).to_parquet(folder / "history.parquet")
    (folder / PROGRESS_FILE).unlink()


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
    monkeypatch.setattr(live, "LARGEST_SHARE", 1e9)
    return handle


def points(line: Line2D) -> list[list[float]]:
    return np.asarray(line.get_xydata()).tolist()


def no_thread_is_left() -> bool:
    return all(thread.name != "live curves" for thread in threading.enumerate())


def test_one_line_for_each_sae_in_the_look_of_its_method():
    curves = [Curve("topk", rows(4), False), Curve("standard", rows(11), True), Curve("standard", rows(2), False)]
    fig = live_figure(curves, STEPS)
    unexplained, l0 = fig.axes
    # The first row explains nothing: 1 - 0 = 1.
    lines = [line for line in unexplained.lines if line.get_marker() == "None"]
    assert [line.get_color() for line in lines] == [look(curve.method).color for curve in curves]
    assert points(lines[0]) == [[0, 1], [10, 0.5], [20, 0.25], [30, 0.125]]
    lines = [line for line in l0.lines if line.get_marker() == "None"]
    assert points(lines[2]) == [[0, 64], [10, 32]]
    assert [line.get_alpha() for line in lines] == [1.0, 0.35, 1.0]
    tips = [points(line) for line in l0.lines if line.get_marker() == "o"]
    assert tips == [[[30, 16]], [[10, 32]]], "a dot for each SAE under way"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["Standard", "TopK"]
    assert "1 of 3" in l0.get_title(loc="left")
    assert {ax.get_xlim() for ax in fig.axes} == {(0.0, 100.0)} and {ax.get_yscale() for ax in fig.axes} == {"log"}


def test_what_a_log_axis_has_no_place_for_is_left_out():
    row = {"step": 0.0, "explained_variance": 1.0, "l0": 0.0}
    fig = live_figure([Curve("atm", [row, row | {"step": 10.0, "l0": 3.0}], False), Curve("topk", [], False)], STEPS)
    assert [points(line) for line in fig.axes[0].lines] == [[], []]
    assert [points(line) for line in fig.axes[1].lines] == [[[10, 3]], [[10, 3]], []]
    assert live_png([Curve("topk", [], False)], STEPS).startswith(PNG)


def test_the_picture_follows_the_runs_and_is_taken_back(handle, tmp_path):
    runs = {tmp_path / name: method for name, method in (("a", "topk"), ("b", "atm"))}
    with live.live_curves(runs, STEPS):
        assert len(handle.shown) == 1, "axes are there at once"
        log(tmp_path / "a", 1)
        handle.wait_for(2)
        log(tmp_path / "b", 3)
        handle.wait_for(3)
        finish(tmp_path / "b", 11)
        handle.wait_for(4)
    *pictures, last = handle.shown
    assert last is None
    assert all(picture is not None and picture.startswith(PNG) for picture in pictures)
    final = [Curve("topk", rows(1), False), Curve("atm", rows(11), True)]
    assert pictures[-1] == live_png(final, STEPS) and len(set(pictures)) == len(pictures)
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

    watched = live._Watched({tmp_path / "a": "topk"})
    live._redraw(handle, watched, watched.curves(), STEPS, Ended())
    assert handle.shown == [live_png([Curve("topk", rows(count), False)], STEPS) for count in (2, 4)]


def test_a_finished_run_is_read_once(tmp_path, monkeypatch):
    log(tmp_path / "a", 2)
    finish(tmp_path / "a", 2)
    watched = live._Watched({tmp_path / "a": "topk"})
    first = watched.curves()
    monkeypatch.setattr(live, "logged_rows", lambda folder: pytest.fail("read again"))
    assert watched.curves() == first == [Curve("topk", rows(2), True)]


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
