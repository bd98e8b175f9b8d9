"""One SAE whose dictionary two processes hold in pieces: it becomes the SAE of one process, but for rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.data.activations import ActivationStore
from sae_lib.training.run import CHECKPOINT_FILE, train_sae
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json
from sae_lib.util.latent_group import LatentGroup
from sae_lib.util.paths import ROOT
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

D_SAE = 64
TRAINING = tiny_training(d_sae=D_SAE, steps=24, log_every=1, checkpoint_every=10)
STOPPED = "stopped"
# What happens to each method within the 24 steps: a column of its history and the least it must reach.
METHODS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "standard": ({"sparsity_warmup_steps": 5, "l1_coefficient": 0.05}, {"sparsity": 1e-6}),
    "gated": ({"l1_coefficient": 0.05, "optimizer": {"learning_rate": 1e-2}}, {"auxiliary": 1e-6}),
    "topk": ({}, {"auxiliary": 1e-6}),
    "batchtopk": ({"threshold_start_step": 5}, {"auxiliary": 1e-6}),
    "matryoshka_4": ({"threshold_start_step": 5}, {"auxiliary": 1e-6}),
    "jumprelu": ({}, {"sparsity": 1e-6}),
    "temporal_sae": (
        {
            "resampling": {"warmup_steps": 12, "warmup_interval": 6, "interval": 10, "threshold": 0.3,
                           "encoder_norm": "alive_fraction"},
            "temporal": {"coefficient": 0.5, "scale": "constant"},
        },
        {"resampled": 1, "temporal": 1e-6},
    ),
    "atm": ({"masking": {"warmup_steps": 8}, "l1_coefficient": 0.05}, {"mask_rate": 0.01}),
    "dropout": ({"dropout": {"warmup_steps": 8, "probability": 0.3}}, {"mask_rate": 0.01}),
    "paper_standard": ({"temporal": {"pairing": "previous_batch", "coefficient": 0.5}}, {"temporal": 1e-6}),
}  # fmt: skip

# What both processes run: every method, and one that is stopped in between.
SCRIPT = """
import json, sys
from pathlib import Path

from sae_lib.util import ranks
from sae_lib.data.activations import ActivationStore
from sae_lib.data.config import DataConfig
from sae_lib.training.run_config import TrainingConfig
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.training.run import train_sae
from sae_lib.util.parallel import use_one_core

class Stop(Exception):
    pass

def stop(step):
    if step == 13:
        raise Stop

folder, store = Path(sys.argv[1]), ActivationStore.open(sys.argv[2])
configs, data, training = json.loads((folder / "work.json").read_text())
use_one_core()
with ranks.joined():
    assert ranks.latent_group("cpu").world == 2
    for name, config in configs.items():
        run = SAEConfig.model_validate(config), store, DataConfig(**data), TrainingConfig.model_validate(training), 3
        try:
            train_sae(*run, folder / name, group=ranks.latent_group("cpu"), report=stop if name == "stopped" else None)
        except Stop:
            pass
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return tiny_store(tmp_path_factory.mktemp("store"))


def config(method: str) -> Any:
    return tiny_config(method, {"d_sae": D_SAE, **METHODS[method][0]})


@pytest.fixture(scope="module")
def pieces(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders that two processes leave."""
    folder = tmp_path_factory.mktemp("pieces")
    configs = {method: config(method).model_dump(mode="json") for method in METHODS}
    configs[STOPPED] = configs["temporal_sae"]
    write_json(folder / "work.json", [configs, DATA.model_dump(mode="json"), TRAINING.model_dump(mode="json")])
    (folder / "rank.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    command = [*torchrun, "--nproc-per-node", "2", str(folder / "rank.py"), str(folder), str(store.folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def agree(one: Path, two: Path) -> None:
    """Weights and training curves, to a hundred-thousandth."""
    ours, theirs = (load_autoencoder(folder).state_dict() for folder in (one, two))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-5, atol=1e-5)
    histories = [pd.read_parquet(folder / "history.parquet") for folder in (one, two)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_pieces_become_the_sae_of_one_process(
    method: str, store: ActivationStore, pieces: Path, tmp_path: Path
) -> None:
    train_sae(config(method), store, DATA, TRAINING, 3, tmp_path)
    history = pd.read_parquet(tmp_path / "history.parquet")
    for column, least in METHODS[method][1].items():
        assert history[column].fillna(0).max() >= least, "what the test is about has not happened"
    agree(tmp_path, pieces / method)


def test_one_process_goes_on_from_the_checkpoint_of_two(store: ActivationStore, pieces: Path) -> None:
    begun: list[int] = []
    assert (pieces / STOPPED / CHECKPOINT_FILE).is_file()
    train_sae(config("temporal_sae"), store, DATA, TRAINING, 3, pieces / STOPPED, report=begun.append)
    assert begun[0] == 11
    agree(pieces / "temporal_sae", pieces / STOPPED)


def test_a_dictionary_that_does_not_divide_is_one_line() -> None:
    with pytest.raises(ArtifactError, match=r"^training\.shard_dictionary: d_sae 64 cannot be cut into 3 equal pieces"):
        LatentGroup(rank=0, world=3).piece(torch.zeros(64), dim=0)
