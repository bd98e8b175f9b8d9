"""What a key depends on: a stage's declared version, the packages that compute, what the result was made from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_lib.training import run
from sae_lib.training.run import TRAINING, run_key
from sae_lib.util import environment
from sae_lib.util.keys import NUMERICAL, Stage, numerical_pins, result_key
from sae_lib.util.paths import LOCK_FILE, ROOT
from tests.tiny_training import DATA, tiny_config, tiny_training


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A lock file of the test's own."""
    file = tmp_path / "requirements.lock"
    file.write_text(LOCK_FILE.read_text())
    monkeypatch.setattr(environment, "LOCK_FILE", file)
    numerical_pins.cache_clear()
    yield file
    numerical_pins.cache_clear()


def a_run() -> str:
    return run_key(tiny_config("standard"), "store", DATA, tiny_training(), 0)


def test_every_package_that_computes_is_pinned() -> None:
    assert tuple(numerical_pins()) == NUMERICAL


@pytest.mark.parametrize(
    "package, changes", [("torch", True), ("llvmlite", True), ("pytest", False), ("jupyterlab", False)]
)
def test_only_packages_that_compute_are_in_keys(lock: Path, package: str, changes: bool) -> None:
    before = a_run()
    lock.write_text(lock.read_text().replace(f"\n{package}==", f"\n{package}==9"))
    numerical_pins.cache_clear()  # another process reads the lock anew
    assert (a_run() != before) is changes


def test_an_edit_while_a_run_goes_on_gives_no_other_key(lock: Path) -> None:
    """What is loaded has the version that it declares, whatever lies on the disk by now."""
    before, file = a_run(), Path(run.__file__)
    text = file.read_text()
    assert f'Stage("training", {TRAINING.version})' in text, "the version is in the source that is loaded"
    read: list[Path] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "read_text", lambda path, *_, **__: read.append(path))
        patched.setattr(Path, "read_bytes", lambda path: read.append(path))
        lock.write_bytes(b"torch==9\n")
        assert a_run() == before
    assert read == [], "no source is read when a key is made"
    assert ROOT in file.parents


def test_version_and_inputs_are_in_the_key() -> None:
    one = Stage("one", 1)
    assert result_key(one, {"a": 1, "b": 2}) == result_key(one, {"b": 2, "a": 1})
    others = [
        result_key(Stage("one", 2), {"a": 1, "b": 2}),
        result_key(Stage("two", 1), {"a": 1, "b": 2}),
        result_key(one),
    ]
    assert len({result_key(one, {"a": 1, "b": 2}), *others}) == 4


def test_what_does_not_change_weights_is_in_no_key() -> None:
    training = tiny_training()
    busy = training.model_copy(update={"workers": 7, "checkpoint_every": 3, "seeds": (1, 2, 3)})
    assert run_key(tiny_config("standard"), "store", DATA, busy, 0) == a_run()
