"""How shards are made: ahead of the disk, in bounded memory, by any number of ranks."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sae_lib.data import harvest as harvest_module
from sae_lib.data.activations import ActivationStore
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write, read_json, write_json
from tests.data.test_activations import fake_model
from tests.data.test_corpus import peak_memory
from tests.data.test_harvest import SHARD_ROWS, TOKENS, counting, files, make
from tests.tiny_models import random_tokens, save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lm(model):
    return LanguageModel.load(model, whole=False)


@pytest.fixture(scope="module")
def alone(lm, tmp_path_factory):
    """The store as one process makes it."""
    folder = tmp_path_factory.mktemp("alone")
    make(lm, folder)
    return folder


SHARDS = 6


def test_files_are_those_of_numpy(alone, tmp_path):
    for name in ("contexts.npy", "positions.npy", "activations-00000.npy"):
        np.save(tmp_path / name, np.load(alone / name))
        assert (alone / name).read_bytes() == (tmp_path / name).read_bytes()


def run_ranks(model, folder, world, numbers, **changes):
    """`harvest` in as many threads as there are `numbers`, each with a model of its own."""
    barrier = threading.Barrier(world, timeout=30)
    models = {rank: counting(LanguageModel.load(model, whole=False)) for rank in numbers}

    def run(rank):
        return make(models[rank][0], folder, rank=rank, world=world, barrier=barrier.wait, **changes).key

    with ThreadPoolExecutor(len(numbers)) as threads:
        keys = list(threads.map(run, numbers))
    return keys, {rank: sum(calls) for rank, (_, calls) in models.items()}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_make_the_store_of_one_process(model, alone, tmp_path, world):
    keys, contexts = run_ranks(model, tmp_path, world, range(world))
    assert files(tmp_path) == files(alone)
    assert keys == [ActivationStore.open(alone).key] * world
    assert min(contexts.values()) > 0


def test_what_a_rank_had_finished_is_kept_when_another_dies(lm, model, alone, tmp_path):
    """Rank 0 dies in the barrier after its shards were asked for; rank 1 has finished its own."""

    def begun():
        if started.is_set():
            raise ArtifactError("another process has ended")
        started.set()

    started = threading.Event()
    with pytest.raises(ArtifactError, match="another process"):
        make(lm, tmp_path, rank=0, world=2, barrier=begun)
    assert made(tmp_path) == [0, 2, 4]
    (tmp_path / "activations-00002.npy").unlink()
    started.clear()
    with pytest.raises(ArtifactError, match="another process"):
        make(lm, tmp_path, rank=1, world=2, barrier=begun)
    assert made(tmp_path) == [0, 1, 3, 4, 5]
    resumed, calls = counting(lm)
    make(resumed, tmp_path)
    contexts = np.load(tmp_path / "contexts.npy")[2 * SHARD_ROWS : 3 * SHARD_ROWS]
    assert sum(calls) == contexts[-1] - contexts[0] + 1, "only the shard that was lost is made again"
    assert files(tmp_path) == files(alone)


def made(folder):
    return sorted(int(path.stem[-5:]) for path in folder.glob("activations-*.npy"))


def test_shards_without_their_manifest_are_not_believed(lm, alone, tmp_path):
    make(lm, tmp_path)
    (tmp_path / "manifest.json").unlink()
    np.save(tmp_path / "activations-00001.npy", np.zeros((SHARD_ROWS, lm.d_in), dtype=np.uint16))
    make(lm, tmp_path)
    assert files(tmp_path) == files(alone)


@pytest.mark.parametrize("size", [0, 200, -7])
def test_a_shard_that_a_copy_cut_short_before_it_was_entered_is_made_again(lm, alone, tmp_path, size):
    make(lm, tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["shards"][1] |= {"bytes": None, "sha256": None}
    write_json(tmp_path / "manifest.json", manifest)
    file = tmp_path / "activations-00001.npy"
    file.write_bytes(file.read_bytes()[:size])
    make(lm, tmp_path)
    assert files(tmp_path) == files(alone)


def test_an_unfinished_file_of_a_killed_run_is_removed(lm, alone, tmp_path):
    (tmp_path / ".activations-00001.npy.abc.tmp").write_bytes(b"half")
    make(lm, tmp_path)
    assert not list(tmp_path.glob(".*.tmp")) and files(tmp_path) == files(alone)


def when_written(monkeypatch, take):
    """Call `take(number)` when a shard is about to be written."""

    def write(path, mode):
        if path.name.startswith("activations"):
            take(int(path.stem[-5:]))
        return atomic_write(path, mode)

    monkeypatch.setattr(harvest_module, "atomic_write", write)


def test_a_shard_is_written_while_the_next_one_is_computed(tmp_path, monkeypatch):
    """The writer waits until the model is at work on the next shard, which it would never be without a thread."""
    begun, computed, taken, slow = [threading.Event() for _ in range(SHARDS)], [0], [], fake_model()
    go_on = slow.residual_stream

    def residual_stream(tokens):
        begun[computed[0] // SHARD_ROWS].set()
        return go_on(tokens)

    def take(number):
        assert number == SHARDS - 1 or begun[number + 1].wait(timeout=30)
        taken.append(number)

    slow.residual_stream = residual_stream  # type: ignore[method-assign]
    when_written(monkeypatch, take)
    make(slow, tmp_path, progress=lambda done, total: computed.insert(0, done))
    assert taken == list(range(SHARDS))


def test_at_most_two_shards_are_in_memory(tmp_path, monkeypatch):
    """However slow the disk is: no shard is begun while two wait."""
    taken, ahead = [0], []

    def take(number):
        time.sleep(0.02)
        taken[0] += SHARD_ROWS

    when_written(monkeypatch, take)
    make(fake_model(), tmp_path, progress=lambda done, total: ahead.append(done - taken[0]))
    assert SHARD_ROWS < max(ahead) <= 2 * SHARD_ROWS


def test_an_error_of_the_writer_ends_the_harvest_in_one_line(lm, alone, tmp_path, monkeypatch):
    def full(number):
        if number == 2:
            raise ArtifactError("disk full while writing")

    when_written(monkeypatch, full)
    with pytest.raises(ArtifactError, match=r"^disk full while writing$"):
        make(lm, tmp_path)
    assert made(tmp_path) == [0, 1]
    monkeypatch.undo()
    resumed, calls = counting(lm)
    make(resumed, tmp_path)
    assert files(tmp_path) == files(alone) and 0 < sum(calls) < len(TOKENS)


def test_memory_does_not_grow_with_the_number_of_tokens(tmp_path, monkeypatch):
    """NumPy's part of it, that is index and tokens; of activations there are two shards at a time."""
    monkeypatch.setattr(harvest_module, "CONTEXTS_PER_CHUNK", 64)

    def peak(contexts):
        np.save(tmp_path / f"{contexts}.npy", random_tokens(contexts, 32, eos_rate=0.0))
        tokens = np.load(tmp_path / f"{contexts}.npy", mmap_mode="r")
        return peak_memory(lambda: harvest(fake_model(), tokens, tmp_path / f"store-{contexts}", shard_rows=4000))

    peak(100)
    assert peak(4000) < peak(400) + 100_000, "the index alone would be 750 kB, the tokens 500 kB"
