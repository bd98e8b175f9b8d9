"""What a run logs while it trains: every row, no step twice."""

import errno
import struct
from pathlib import Path

import pandas as pd
import pytest

from sae_lib.data.activations import ActivationStore
from sae_lib.training.log import run_log
from sae_lib.training.run import train_sae
from sae_lib.training.trainer import Trainer
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

    with run_log(events) as log:

        def watch(trainer: Trainer) -> None:
            log(trainer)
            if trainer.index == stop:
                raise Killed

        train_sae(tiny_config("atm"), store, DATA, tiny_training(), 0, folder, watch=watch)


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


def test_a_finished_run_leaves_its_curves_to_tensorboard(store, tmp_path):
    folder, events = tmp_path / "run", tmp_path / "tensorboard" / "main" / "atm"
    train(store, folder, events)
    assert sorted(file.name for file in folder.iterdir()) == ["history.parquet", "run.json", "sae.safetensors"]
    history = pd.read_parquet(folder / "history.parquet")
    curves = scalars(events)
    assert set(curves) == set(history) - {"step"}
    for name, points in curves.items():
        assert [step for step, _ in points] == STEPS
        assert [value for _, value in points] == pytest.approx([*history[name]], rel=1e-6, abs=1e-12)


def test_the_log_of_a_killed_run_stays_and_no_step_stands_in_it_twice_after_the_rerun(store, tmp_path):
    folder, events = tmp_path / "run", tmp_path / "events"
    with pytest.raises(Killed):
        train(store, folder, events, stop=28)
    assert [step for step, _ in scalars(events)["loss"]] == [0, 5, 10, 15, 20, 25]
    with pytest.raises(Killed):  # goes on from the checkpoint of step 20
        train(store, folder, events, stop=22)
    assert [step for step, _ in scalars(events)["loss"]] == [0, 5, 10, 15, 20]
    train(store, folder, events)
    assert {name: [step for step, _ in points] for name, points in scalars(events).items()} == dict.fromkeys(
        set(pd.read_parquet(folder / "history.parquet")) - {"step"}, STEPS
    )


def test_a_run_that_is_finished_already_keeps_its_events(store, tmp_path):
    train(store, tmp_path / "run", tmp_path / "events")
    before = scalars(tmp_path / "events")
    train(store, tmp_path / "run", tmp_path / "events")
    assert scalars(tmp_path / "events") == before


def test_a_disk_that_is_full_once_the_events_are_closed_is_told_in_one_line(store, tmp_path, monkeypatch):
    import tensorboardX

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorboardX.SummaryWriter, "close", full)
    with pytest.raises(ArtifactError, match="disk full"), run_log(tmp_path / "events") as log:
        train_sae(tiny_config("atm"), store, DATA, tiny_training(), 0, tmp_path / "run", watch=log)


def test_no_weights_depend_on_how_training_is_watched():
    assert "sae_lib.training.log" not in closure(["sae_lib.training.run"])
