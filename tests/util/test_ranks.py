"""Two processes of torchrun share out work: the same SAEs as one process, and what a lost rank leaves behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_lib.data.activations import ActivationStore
from sae_lib.training.run import CHECKPOINT_FILE, train_sae
from sae_lib.training.trainer import Trainer
from sae_lib.util import ranks
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

from sae_lib.util import ranks
from sae_lib.data.activations import ActivationStore
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock
from sae_lib.data.config import DataConfig
from sae_lib.training.recipes import TrainingConfig
from sae_lib.autoencoders.config import sae_config
from sae_lib.training.trainer import Trainer
from sae_lib.training.run import train_sae
from sae_lib.util.parallel import end_with_parent, for_each, use_one_core

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

def main():
    end_with_parent()
    use_one_core()
    Trainer.step = troubled
    with ranks.joined():
        assert ranks.from_first(ranks.rank) == 0 and ranks.world() == 2
        with FolderLock(folder) if ranks.rank() == 0 else nullcontext():
            for_each(work, "tiny", [[method] for method in list(configs)[ranks.rank() :]], 1, "train")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
try:
    main()
except ArtifactError as error:
    sys.exit(f"error: {error}")
"""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


def train(
    store: ActivationStore, folder: Path, method: str, watch: Callable[[Trainer], None] = lambda trainer: None
) -> None:
    """One of the SAEs of these tests, in this process."""
    train_sae(tiny_config(method), store, DATA, TRAINING, 3, folder / method, watch=watch)


def on_two_ranks(store: ActivationStore, folder: Path, trouble: str) -> subprocess.CompletedProcess[str]:
    (folder / "rank.py").write_text(SCRIPT)
    configs = {method: tiny_config(method).model_dump(mode="json") for method in METHODS}
    write_json(folder / "work.json", [configs, DATA.model_dump(mode="json"), TRAINING.model_dump(mode="json")])
    command = [*TORCHRUN, str(folder / "rank.py"), str(folder), str(store.folder), trouble]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)


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
    assert "Signal 9 (SIGKILL)" in done.stderr
    (cut,) = [file.name.split()[0] for file in tmp_path.glob("* by rank 1")]
    assert (tmp_path / cut / CHECKPOINT_FILE).is_file() and cut not in weights(tmp_path)
    begun: list[int] = []
    with FolderLock(tmp_path):  # which no lost process still holds
        train(store, tmp_path, cut, lambda trainer: begun.append(trainer.index))
    assert begun[0] == 6, "from the checkpoint on"
    for method in METHODS:
        train(store, tmp_path, method)
    assert weights(tmp_path) == undisturbed


def test_what_one_rank_says_is_what_the_user_reads(store: ActivationStore, tmp_path: Path) -> None:
    done = on_two_ranks(store, tmp_path, "artifact")
    assert done.returncode == 1 and done.stderr.count("error: the loss is NaN") == 1


def test_alone_nothing_is_shared() -> None:
    assert (ranks.rank(), ranks.world()) == (0, 1)
    ranks.barrier()
    assert ranks.from_first(lambda: 5) == 5
