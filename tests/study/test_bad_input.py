"""What a user can get wrong: one clear line each, and nothing that was finished is lost.

Most mistakes are tested beside the module that refuses them. Here are those that need several modules.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sae_lib.autoencoders.build import WEIGHTS_FILE
from sae_lib.data import model_loading
from sae_lib.data.activations import ActivationStore, WindowStream
from sae_lib.data.config import ModelConfig
from sae_lib.data.corpus import build_tokens
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.tokens import pack
from sae_lib.study import pipeline
from sae_lib.study.experiment import Experiment
from sae_lib.training.recipes import merged
from sae_lib.training.run import CHECKPOINT_FILE, train_sae
from sae_lib.util.checkpoint import load_checkpoint
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import HELD, FolderLock
from sae_lib.util.paths import NOTEBOOKS
from tests.data.test_corpus import TOKENIZER, parts, tiny_profile
from tests.profiles.test_profile import content
from tests.tiny_models import random_tokens, save_tiny_model
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

NAN, INFINITY = 0x7FC0, 0x7F80  # bit patterns of bf16


def experiment_on(folder: Path, model: ModelConfig) -> Experiment:
    """A profile that reads `model`, with random tokens for training; nothing is harvested yet."""
    named = {"model": {"name": model.name, "layer": 1, "device": "cpu"}}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merged(content(), named)))
    experiment = Experiment.open(str(file))
    experiment.paths.tokens.mkdir(parents=True, exist_ok=True)
    np.save(experiment.paths.tokens / "train.npy", random_tokens(120, 16))
    return experiment


def flip_a_bit(file: Path) -> None:
    changed = bytearray(file.read_bytes())
    changed[-3] ^= 1
    file.write_bytes(changed)


def all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())


# -- models


@pytest.mark.parametrize(
    ("bf16", "free", "says"),
    [
        (False, 10**12, r"^model\.dtype: bfloat16 is not available on this GPU; choose float32 or float16$"),
        (True, 5_000, r"needs \d+\.\d KiB of GPU memory, 4\.9 KiB are free: choose a smaller model\.dtype or model"),
    ],
)
def test_a_gpu_without_the_dtype_or_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool, free: int, says: str
) -> None:
    config = save_tiny_model(tmp_path / "model").model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: bf16)
    monkeypatch.setattr("sae_lib.data.model_loading.free_memory", lambda device: 10**12 if device == "cpu" else free)
    monkeypatch.setattr(model_loading, "_load_weights", lambda *_: pytest.fail("went on to load"))
    with pytest.raises(ArtifactError, match=says):
        LanguageModel.load(config, whole=False)


# -- text


@pytest.mark.parametrize(
    ("name", "text"), [("empty.jsonl", ""), ("blank.txt", "\n\n\n"), ("nothing.jsonl", '{"text": ""}\n' * 3)]
)
def test_an_empty_corpus(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=r"^corpus.files|^data.train_tokens: .* give 0 tokens") as caught:
        build_tokens(*parts(tiny_profile(str(tmp_path / name))), TOKENIZER, tmp_path / "tokens", tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tokens" / "manifest.json").exists()


def test_documents_shorter_than_a_context_are_joined() -> None:
    assert pack(["w0 w1"] * 10, TOKENIZER, 8, contexts=2).shape == (2, 8)


# -- the activation store


def test_a_store_of_another_model_or_corpus_is_named_by_whoever_reads_it(tmp_path: Path) -> None:
    first = experiment_on(tmp_path, save_tiny_model(tmp_path / "first"))
    first.harvest(first.language_model(whole=False))
    second = experiment_on(tmp_path, save_tiny_model(tmp_path / "second", seed=1))
    for read in (lambda: second.harvest(second.language_model(whole=False)), second.store, lambda: second.train([])):
        with pytest.raises(ArtifactError, match=r"was made from something else \(identity "):
            read()
    np.save(first.paths.tokens / "train.npy", random_tokens(120, 16, seed=1))
    with pytest.raises(ArtifactError, match=r"was made from something else \(corpus_sha256 "):
        first.store()


def test_an_altered_shard_of_the_right_size_is_made_again(tmp_path: Path) -> None:
    experiment = experiment_on(tmp_path, save_tiny_model(tmp_path / "model"))
    lm = experiment.language_model(whole=False)
    shards = [experiment.paths.store / s["file"] for s in experiment.harvest(lm).manifest["shards"]]
    before = [shard.read_bytes() for shard in shards]
    others = [shard.stat().st_mtime_ns for shard in shards[1:]]
    flip_a_bit(shards[0])
    experiment.harvest(lm)
    assert [shard.read_bytes() for shard in shards] == before
    assert [shard.stat().st_mtime_ns for shard in shards[1:]] == others


# -- training


@pytest.mark.parametrize("bits", [NAN, INFINITY])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path: Path, bits: int) -> None:
    tiny_store(tmp_path / "store")
    row = 777
    shard = np.load(tmp_path / "store" / "activations-00001.npy", mmap_mode="r+")
    shard[row - DATA.shard_rows, 3] = bits
    shard.flush()
    store = ActivationStore.open(tmp_path / "store")
    stream = WindowStream(store, DATA.window, DATA.batch_tokens, DATA.stream_seed)
    step = next(i for i in range(100) if row // DATA.window in stream.windows(i))
    config, training = tiny_config("standard", {"normalize_inputs": False}), tiny_training(checkpoint_every=2)
    with pytest.raises(ArtifactError, match=rf"the loss is NaN or infinite at step {step};"):
        train_sae(config, store, DATA, training, 0, tmp_path / "run")
    tensors, state = load_checkpoint(tmp_path / "run" / CHECKPOINT_FILE)
    assert state["index"] == step - step % 2 and all_finite(tensors)
    assert not (tmp_path / "run" / WEIGHTS_FILE).exists()


def test_an_infinite_loss_in_the_first_step_leaves_no_sae(tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store")
    huge = {"normalize_inputs": False, "encoder_init_norm": 1.0, "sparsity_warmup_steps": 0, "l1_coefficient": 3e38}
    with pytest.raises(ArtifactError, match="the loss is NaN or infinite at step 0;"):
        train_sae(tiny_config("standard", huge), store, DATA, tiny_training(), 0, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_disk_that_fills_up_in_training_costs_nothing_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = tiny_store(tmp_path / "store"), tmp_path / "run"
    training = tiny_training(steps=10, checkpoint_every=2)
    flush = os.fsync
    flushed: list[int] = []

    def full_after_two_checkpoints(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) > 4:  # a file and its folder for each
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "fsync", full_after_two_checkpoints)
        with pytest.raises(ArtifactError, match=r"disk full while writing into .*: \d+ MiB free; make") as caught:
            train_sae(tiny_config("standard"), store, DATA, training, 0, folder)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(folder / CHECKPOINT_FILE)[1]["index"] == 4
    assert [file.name for file in folder.iterdir()] == [CHECKPOINT_FILE]
    assert train_sae(tiny_config("standard"), store, DATA, training, 0, folder)["steps"] == 10


def test_a_second_training_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_on(tmp_path, save_tiny_model(tmp_path / "model"))
    experiment.harvest(experiment.language_model(whole=False))
    with FolderLock(experiment.paths.root):
        experiment.train([])  # as a notebook does that `make paper` runs: its parent holds the folder
        monkeypatch.delenv(HELD)  # as another kernel, of JupyterLab
        with pytest.raises(ArtifactError, match=rf"is in use by process {os.getpid()} on "):
            experiment.train([])
        monkeypatch.setenv(HELD, "")


def test_what_a_notebook_is_writing_is_not_cleared_up(tmp_path: Path) -> None:
    """A run that clears up holds the folder, and so does an experiment that writes into it."""
    experiment = experiment_on(tmp_path, save_tiny_model(tmp_path / "model"))
    with experiment.writing(), pytest.raises(ArtifactError, match="is in use by process"):
        pipeline.run(experiment.profile, {}, notebooks=NOTEBOOKS)
