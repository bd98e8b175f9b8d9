"""What a run logs while it trains: rows on disk at once, no step twice, nothing left behind."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import pandas as pd
import pytest

from sae_lib.data.activations import ActivationStore
from sae_lib.training.log import PROGRESS_FILE, logged_rows, run_log
from sae_lib.training.run import train_sae
from sae_lib.util.errors import ArtifactError
from tests.source import closure
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

STEPS = [*range(0, 40, 5), 39]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


class Killed(BaseException):
    """What a test ends a run with."""


def train(store: ActivationStore, folder: Path, events: Path, stop: int | None = None) -> None:
    """40 steps with a checkpoint every 10; `stop` is the step after which the run is broken off."""

    def report(step: int) -> None:
        if step == stop:
            raise Killed

    with run_log(folder, events) as log:
        train_sae(tiny_config("atm"), store, DATA, tiny_training(), 0, folder, report=report, log=log)


def records(file: Path) -> list[bytes]:
    """The payloads of a TFRecord file: length, its checksum, payload, its checksum."""
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(content[12 : 12 + length])
        content = content[16 + length :]
    return found


def scalars(events: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each curve in the only event file of a folder."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    [file] = events.iterdir()
    assert "tfevents" in file.name
    version, _, start, *points = map(Event.FromString, records(file))
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 0)
    found: dict[str, list[tuple[int, float]]] = {}
    for event in points:
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_finished_run_leaves_its_curves_to_tensorboard_and_no_progress(store, tmp_path):
    folder, events = tmp_path / "run", tmp_path / "tensorboard" / "main" / "atm"
    train(store, folder, events)
    assert sorted(file.name for file in folder.iterdir()) == ["history.parquet", "run.json", "sae.safetensors"]
    history = pd.read_parquet(folder / "history.parquet")
    curves = scalars(events)
    assert set(curves) == set(history) - {"step"}
    for name, points in curves.items():
        assert [step for step, _ in points] == STEPS
        assert [value for _, value in points] == pytest.approx([*history[name]], rel=1e-6, abs=1e-12)
    assert logged_rows(folder) == []


def test_rows_are_on_disk_as_soon_as_they_are_known(store, tmp_path):
    seen: dict[int, list[float]] = {}

    def report(step: int) -> None:
        seen[step] = [row["step"] for row in logged_rows(tmp_path)]

    with run_log(tmp_path, tmp_path / "events") as log:
        train_sae(tiny_config("standard"), store, DATA, tiny_training(), 0, tmp_path, report=report, log=log)
    assert [seen[step] for step in (1, 5, 6, 40)] == [[0], [0], [0, 5], STEPS]


def test_the_log_of_a_killed_run_stays_and_no_step_stands_in_it_twice_after_the_rerun(store, tmp_path):
    folder, events = tmp_path / "run", tmp_path / "events"
    with pytest.raises(Killed):
        train(store, folder, events, stop=28)
    assert [row["step"] for row in logged_rows(folder)] == [0, 5, 10, 15, 20, 25]
    assert [step for step, _ in scalars(events)["loss"]] == [0, 5, 10, 15, 20, 25]
    with pytest.raises(Killed):  # goes on from the checkpoint of step 20
        train(store, folder, events, stop=22)
    assert [row["step"] for row in logged_rows(folder)] == [0, 5, 10, 15, 20]
    train(store, folder, events)
    assert {name: [step for step, _ in points] for name, points in scalars(events).items()} == dict.fromkeys(
        set(pd.read_parquet(folder / "history.parquet")) - {"step"}, STEPS
    )
    assert not (folder / PROGRESS_FILE).exists()


def test_a_run_that_is_finished_already_keeps_its_events(store, tmp_path):
    train(store, tmp_path / "run", tmp_path / "events")
    before = scalars(tmp_path / "events")
    train(store, tmp_path / "run", tmp_path / "events")
    assert scalars(tmp_path / "events") == before


def test_a_torn_last_line_is_left_out(tmp_path):
    rows = [{"step": 0, "l0": 4.5}, {"step": 5, "l0": float("nan")}]
    (tmp_path / PROGRESS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10, "l0')
    found = logged_rows(tmp_path)
    assert [row["step"] for row in found] == [0, 5] and found[0] == rows[0]


def test_before_a_run_begins_there_are_no_rows(tmp_path):
    assert logged_rows(tmp_path / "nothing") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_in_one_line(tmp_path):
    (tmp_path / PROGRESS_FILE).symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match="disk full"), run_log(tmp_path, tmp_path / "events") as log:
        log({"step": 0, "loss": 1.0})


def test_a_disk_that_is_full_once_the_events_are_closed_is_told_in_one_line(tmp_path, monkeypatch):
    import tensorboardX

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorboardX.SummaryWriter, "close", full)
    with pytest.raises(ArtifactError, match="disk full"), run_log(tmp_path, tmp_path / "events") as log:
        log({"step": 0, "loss": 1.0})


def test_no_weights_depend_on_how_training_is_watched():
    assert not {"sae_lib.training.log", "sae_lib.report.figures.live"} & set(closure(["sae_lib.training.run"]))
