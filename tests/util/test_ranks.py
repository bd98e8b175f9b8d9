"""Two processes of torchrun share out work: the same SAEs as one process, and what a lost rank leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from sae_lib.data.activations import ActivationStore
from sae_lib.profiles.profile import load_profile
from sae_lib.study.distributed import check, why
from sae_lib.training.run import CHECKPOINT_FILE, Report, train_sae
from sae_lib.util import ranks
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, write_json
from sae_lib.util.paths import ROOT
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

METHODS = ("topk", "temporal_sae", "atm", "standard", "jumprelu")
TRAINING = tiny_training(steps=20, checkpoint_every=5)

# What each rank runs: the SAEs of `work.json`. `trouble` is for rank 1, in the middle of the SAE that it trains.
SCRIPT = """
import json, os, signal, sys
from contextlib import nullcontext
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from sae_lib.util import ranks
from sae_lib.data.activations import ActivationStore
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock
from sae_lib.data.config import DataConfig
from sae_lib.training.run_config import TrainingConfig
from sae_lib.autoencoders.config import sae_config
from sae_lib.training.trainer import Trainer
from sae_lib.training.run import train_sae
from sae_lib.util.parallel import for_each, use_one_core

folder, store, trouble = Path(sys.argv[1]), ActivationStore.open(sys.argv[2]), sys.argv[3]
configs, data, training = json.loads((folder / "work.json").read_text())
step = Trainer.step

def troubled(trainer):
    step(trainer)
    if ranks.rank() == 1 and trainer.index == 7:
        if trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "artifact":
            raise ArtifactError("the loss is NaN")
        if trouble == "fault":
            raise ZeroDivisionError("a fault of the code")

def work(source, job):
    (folder / f"{job[0]} by rank {ranks.rank()}").touch()
    while not any(folder.glob("* by rank 1")):  # so that both take part
        pass
    config = sae_config(configs[job[0]])
    run = DataConfig.model_validate(data), TrainingConfig.model_validate(training)
    train_sae(config, store, *run, 3, folder / job[0])

@record
def main():
    use_one_core()
    Trainer.step = troubled
    with ranks.joined():
        assert ranks.from_first(ranks.rank) == 0 and ranks.world() == 2
        with FolderLock(folder) if ranks.rank() == 0 else nullcontext():
            for_each(work, "tiny", [[method] for method in list(configs)[ranks.rank() :]], 1, "train")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
try:
    main()
except ArtifactError:
    sys.exit(1)
"""

LAUNCHER = """
import sys
from sae_lib.study.distributed import launch
from sae_lib.util.errors import ArtifactError

try:
    launch(2, sys.argv[1:])
except ArtifactError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


def train(store: ActivationStore, folder: Path, method: str, report: Report | None = None) -> None:
    """One of the SAEs of these tests, in this process."""
    train_sae(tiny_config(method), store, DATA, TRAINING, 3, folder / method, report=report)


def on_two_ranks(store: ActivationStore, folder: Path, trouble: str) -> subprocess.CompletedProcess[str]:
    (folder / "rank.py").write_text(SCRIPT)
    configs = {method: tiny_config(method).model_dump(mode="json") for method in METHODS}
    write_json(folder / "work.json", [configs, DATA.model_dump(mode="json"), TRAINING.model_dump(mode="json")])
    command = [
        sys.executable,
        "-c",
        LAUNCHER,
        str(folder / "rank.py"),
        str(folder),
        str(store.folder),
        trouble,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def weights(folder: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in sorted(folder.glob("*/sae.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    for method in METHODS:
        train(store, folder, method)
    return weights(folder)


def test_two_ranks_train_the_same_saes_as_one_process(
    store: ActivationStore, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    done = on_two_ranks(store, tmp_path, "none")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == undisturbed
    took = [file.name.split(" by rank ") for file in tmp_path.glob("* by rank *")]
    assert sorted(method for method, _ in took) == sorted(METHODS), "each once, though rank 1 had found fewer to do"
    assert {rank for _, rank in took} == {"0", "1"}
    assert "train: 100%" in done.stderr and "3/3" in done.stderr and done.stderr.count("train:   0%") == 1


def test_a_killed_rank_ends_the_run_and_one_process_goes_on_to_the_same_saes(
    store: ActivationStore, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    done = on_two_ranks(store, tmp_path, "killed")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "error: rank 1 was ended by SIGKILL (often for want of memory); finished SAEs are kept and the same command "
        "goes on from there"
    )
    assert "Traceback" not in done.stderr
    (cut,) = [file.name.split()[0] for file in tmp_path.glob("* by rank 1")]
    assert (tmp_path / cut / CHECKPOINT_FILE).is_file() and cut not in weights(tmp_path)
    begun: list[int] = []
    with FolderLock(tmp_path):  # which no lost process still holds
        train(store, tmp_path, cut, begun.append)
    assert begun[0] == 6, "from the checkpoint on"
    for method in METHODS:
        train(store, tmp_path, method)
    assert weights(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("trouble", "line", "tracebacks"),
    [
        ("artifact", "error: the loss is NaN", 0),
        (
            "fault",
            "error: rank 1 stopped with ZeroDivisionError: a fault of the code; finished SAEs are kept and the same "
            "command goes on from there",
            1,
        ),
    ],
)
def test_what_one_rank_says_is_what_the_user_reads(
    store: ActivationStore, tmp_path: Path, trouble: str, line: str, tracebacks: int
) -> None:
    done = on_two_ranks(store, tmp_path, trouble)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == line
    assert done.stderr.count("Traceback (most recent call last)") == tracebacks


STOPPED = """
import sys
from sae_lib.study.distributed import launch

try:
    launch(2, sys.argv[1:])
except KeyboardInterrupt:
    sys.exit(130)
"""
# Each rank's line in one piece: both write to the same pipe.
ASLEEP = "import os, time; os.write(1, f'{os.getpid()}{os.linesep}'.encode()); time.sleep(120)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_its_ranks(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "asleep.py").write_text(ASLEEP)
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "asleep.py")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        ranks_asleep = [psutil.Process(int(launcher.stdout.readline())) for _ in range(2)]
        launcher.send_signal(number)
        launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert not [process for process in ranks_asleep if process.is_running() and process.status() != "zombie"]


def test_alone_nothing_is_shared() -> None:
    assert (ranks.rank(), ranks.world()) == (0, 1)
    ranks.barrier()
    assert ranks.from_first(lambda: 5) == 5


def test_the_rank_with_the_reason_is_told(tmp_path: Path) -> None:
    def failure(said: str = "", exitcode: int = 1, timestamp: int = 10) -> ProcessFailure:
        file = tmp_path / f"{len([*tmp_path.iterdir()])}.json"
        if said:
            write_json(file, {"message": {"message": said, "extraInfo": {"timestamp": timestamp}}})
        return ProcessFailure(0, 1234, exitcode, str(file))

    lost, ended = failure("LostRank: another rank has ended", timestamp=9), failure(exitcode=-15)
    said, crashed = failure("ArtifactError: disk full: a: b\nmore"), failure(exitcode=-11)
    assert why({0: lost, 1: ended, 2: said}) == "disk full: a: b"
    assert why({0: lost, 1: ended, 2: crashed}).startswith("rank 2 was ended by SIGSEGV; finished")
    assert why({0: lost, 3: failure(exitcode=7)}).startswith("rank 3 stopped with exit code 7; finished")
    assert "another rank has ended" in why({0: lost})


def test_more_gpus_than_there_are_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = load_profile("smoke")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    check(on_cpu, 2)
    with pytest.raises(ArtifactError, match=r"^GPUS=0: "):
        check(on_cpu, 0)
    with pytest.raises(
        ArtifactError,
        match=r"^GPUS=3: on the CPU .* of one core, and it has 2; give a number from 1 to 2$",
    ):
        check(on_cpu, 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    on_gpu = on_cpu.model_copy(update={"model": on_cpu.model.model_copy(update={"device": "auto"})})
    check(on_gpu, 4)
    with pytest.raises(ArtifactError, match=r"^GPUS=8: this machine has 4; give a number from 1 to 4$"):
        check(on_gpu, 8)
