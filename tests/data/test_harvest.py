import shutil
from copy import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sae_lib.data import harvest as harvest_module
from sae_lib.data.activations import ActivationStore
from sae_lib.data.harvest import harvest, row_chunks, tokens_sha256
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.store_manifest import lost_file
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, read_json
from tests.tiny_models import BOS, EOS, FAMILIES, VOCABULARY, random_tokens, save_tiny_model

TOKENS = random_tokens(20, 16, seed=1)
SHARD_ROWS = 50  # no multiple of the rows of a context, so that contexts straddle shards


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LanguageModel.load(save_tiny_model(tmp_path_factory.mktemp("model")), whole=False)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def make(lm, folder, **changes):
    return harvest(lm, TOKENS, folder, **({"shard_rows": SHARD_ROWS, "batch": 3} | changes))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npy", ".json")}


def counting(lm):
    """The model, and a list of how many contexts each of its forward passes had."""
    calls: list[int] = []

    def residual_stream(tokens):
        calls.append(len(tokens))
        return lm.residual_stream(tokens)

    counted = copy(lm)
    counted.residual_stream = residual_stream
    return counted, calls


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_residual_stream_without_special_positions_in_token_order(family, tmp_path):
    lm = LanguageModel.load(save_tiny_model(tmp_path / "model", family), whole=False)
    store = make(lm, tmp_path / "store")
    residual = lm.residual_stream(torch.from_numpy(TOKENS)).to(torch.bfloat16).float()
    row = 0
    for context in range(TOKENS.shape[0]):
        for position in range(TOKENS.shape[1]):
            if TOKENS[context, position] in (BOS, EOS):
                continue
            assert (store.contexts[row], store.positions[row]) == (context, position)
            # Other contexts in the same forward pass may change the last bits of float32, so one of bfloat16.
            torch.testing.assert_close(store.rows(np.array(row)), residual[context, position], rtol=2**-7, atol=1e-4)
            row += 1
    assert store.n_rows == row and store.d_in == lm.d_in
    assert store.contexts.dtype == np.int32 and store.positions.dtype == np.uint16


def test_manifest_says_what_is_there(lm, folder):
    store = make(lm, folder, max_rows=120)
    manifest = read_json(folder / "manifest.json")
    assert manifest["identity"] == lm.identity and manifest["layer"] == 1 and manifest["d_in"] == 16
    assert manifest["corpus_sha256"] == tokens_sha256(TOKENS)
    assert manifest["rows"] == store.n_rows == 120
    assert [shard["rows"] for shard in manifest["shards"]] == [50, 50, 20]
    for shard in manifest["shards"]:
        values = np.load(folder / shard["file"])
        assert values.shape == (shard["rows"], 16) and values.dtype == np.uint16
        assert (folder / shard["file"]).stat().st_size == shard["bytes"]


def test_token_budget_is_met_exactly_or_refused(lm, folder):
    everything = int((~np.isin(TOKENS, [BOS, EOS])).sum())
    assert make(lm, folder / "all").n_rows == everything
    assert make(lm, folder / "some", max_rows=everything - 1).n_rows == everything - 1
    with pytest.raises(ArtifactError, match=rf"data.train_tokens: {everything + 1} rows .* has {everything} tokens"):
        make(lm, folder / "more", max_rows=everything + 1)
    with pytest.raises(ArtifactError, match=r"data.train_tokens: 1 rows .* has 0 tokens"):
        harvest(lm, np.full((1, 4), BOS, dtype=np.int32), folder / "none")


def test_row_index_by_hand():
    tokens = np.array([[0, 5, 1, 6], [0, 1, 1, 1], [0, 7, 8, 9]], dtype=np.int32)
    contexts, positions = rows_in(tokens, frozenset({0, 1}), 4)
    assert contexts.tolist() == [0, 0, 2, 2] and positions.tolist() == [1, 3, 1, 2]
    assert contexts.dtype == np.int32 and positions.dtype == np.uint16


def rows_in(tokens, special, rows):
    return [np.concatenate(column) for column in zip(*row_chunks(tokens, special, rows), strict=True)]


def test_row_index_is_the_same_whatever_the_chunks(monkeypatch):
    special = frozenset({BOS, EOS})
    whole = rows_in(TOKENS, special, 150)
    monkeypatch.setattr(harvest_module, "CONTEXTS_PER_CHUNK", 3)
    contexts, positions = rows_in(TOKENS, special, 150)
    assert np.array_equal(contexts, whole[0]) and np.array_equal(positions, whole[1]) and len(contexts) == 150


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_an_interrupted_harvest_goes_on_and_ends_with_the_same_bytes(lm, tmp_path, batches):
    make(lm, tmp_path / "whole")
    stopping, calls = counting(lm)
    go_on = stopping.residual_stream

    def stop_after_some(tokens):
        if len(calls) == batches:
            raise KeyboardInterrupt
        return go_on(tokens)

    stopping.residual_stream = stop_after_some
    with pytest.raises(KeyboardInterrupt):
        make(stopping, tmp_path / "part")
    shards = read_json(tmp_path / "part" / "manifest.json")["shards"]
    missing = [i for i, shard in enumerate(shards) if not (tmp_path / "part" / shard["file"]).is_file()]
    with pytest.raises(ArtifactError, match=r"the shards in .* are not all made yet"):
        ActivationStore.open(tmp_path / "part")

    resumed, calls_after = counting(lm)
    make(resumed, tmp_path / "part")
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    needed = sum(contexts_of_shard(tmp_path / "whole", i) for i in missing)
    assert sum(calls_after) == needed, "finished shards are not computed again"


def contexts_of_shard(folder, shard):
    contexts = np.load(folder / "contexts.npy")[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
    return int(contexts[-1] - contexts[0]) + 1


def test_a_finished_store_is_not_computed_again(lm, folder):
    make(lm, folder)
    before = files(folder)
    again, calls = counting(lm)
    make(again, folder)
    assert calls == [] and files(folder) == before


def damage_byte(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "check", "word"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "size", "truncated"),
        (damage_byte, "full", "altered"),
        (lambda path: path.unlink(), "size", "missing"),
    ],
)
def test_a_damaged_shard_is_named_and_made_again_alone(lm, folder, spoil, check, word):
    make(lm, folder)
    before = files(folder)
    spoil(folder / "activations-00002.npy")
    with pytest.raises(ArtifactError, match=rf"activations-00002.npy in .* is {word}"):
        ActivationStore.open(folder, check=check)
    assert lost_file(folder) == (None if word == "altered" else "activations-00002.npy")
    mended, calls = counting(lm)
    make(mended, folder)
    assert files(folder) == before
    assert sum(calls) == contexts_of_shard(folder, 2)


def test_the_quick_check_looks_at_sizes_only(lm, folder):
    make(lm, folder)
    damage_byte(folder / "activations-00000.npy")
    assert ActivationStore.open(folder, check="size").n_rows > 0


@pytest.mark.parametrize("name", ["contexts.npy", "positions.npy"])
def test_a_damaged_index_is_named_and_made_again(lm, folder, name):
    make(lm, folder)
    before = files(folder)
    damage_byte(folder / name)
    with pytest.raises(ArtifactError, match=rf"{name} in .* is altered"):
        ActivationStore.open(folder, check="full")
    mended, calls = counting(lm)
    make(mended, folder)
    assert files(folder) == before and calls == []


def test_a_store_made_from_something_else_is_named_and_left_alone(lm, folder, tmp_path):
    make(lm, folder)
    before = files(folder)
    other = LanguageModel.load(save_tiny_model(tmp_path / "other", seed=1), whole=False)
    with pytest.raises(ArtifactError, match=rf"identity {lm.identity[:12]}.* instead of {other.identity[:12]}"):
        make(other, folder)
    changed = TOKENS.copy()
    changed[3, 5] = 4 + (changed[3, 5] - 3) % 36
    with pytest.raises(ArtifactError, match="corpus_sha256"):
        harvest(lm, changed, folder, shard_rows=SHARD_ROWS)
    with pytest.raises(ArtifactError, match=r"rows .* instead of 100"):
        make(lm, folder, max_rows=100)
    with pytest.raises(ArtifactError, match="layer 1 instead of 0"):
        ActivationStore.open(folder, layer=0)
    with pytest.raises(ArtifactError, match="identity"):
        ActivationStore.open(folder, identity=other.identity)
    with pytest.raises(ArtifactError, match="corpus_sha256"):
        ActivationStore.open(folder, corpus_sha256=tokens_sha256(changed))
    assert files(folder) == before
    ActivationStore.open(folder, identity=lm.identity, layer=1, corpus_sha256=tokens_sha256(TOKENS))


def test_a_copied_store_has_the_same_key_and_another_size_has_another(lm, tmp_path):
    store = make(lm, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert ActivationStore.open(tmp_path / "two").key == store.key
    assert make(lm, tmp_path / "three", max_rows=100).key != store.key


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_activations_stop_with_their_place(lm, folder, value):
    broken, calls = counting(lm)
    inner = broken.residual_stream

    def spoiled(tokens):
        residual = inner(tokens).clone()
        if len(calls) == 2:
            residual[1, 4, 7] = value
        return residual

    broken.residual_stream = spoiled
    tokens = random_tokens(20, 16, eos_rate=0.0)
    # The second batch of three contexts holds contexts 3 to 5; its second one is context 4.
    with pytest.raises(ArtifactError, match=r"NaN or infinity after layer 1, context 4, position 4; .* float32"):
        harvest(broken, tokens, folder, batch=3)
    with pytest.raises(ArtifactError, match="not all made yet"):
        ActivationStore.open(folder)


def test_tokens_of_another_tokenizer_and_wrong_shapes(lm, folder):
    tokens = TOKENS.copy()
    tokens[2, 2] = VOCABULARY
    with pytest.raises(ArtifactError, match=rf"embeddings for {VOCABULARY} tokens, and .* 0 to {VOCABULARY}"):
        harvest(lm, tokens, folder)
    for wrong in (TOKENS[:0], np.zeros((1, 2**16 + 1), dtype=np.int32)):
        with pytest.raises(ArtifactError, match=r"is not \[context, position\]"):
            harvest(lm, wrong, folder)


def test_no_room_on_the_disk_is_said_before_the_work(lm, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    idle, calls = counting(lm)
    with pytest.raises(ArtifactError, match=r"need .* KiB, .* has 1000 B free"):
        make(idle, folder)
    assert calls == []


def test_a_second_harvest_into_the_same_folder_is_refused(lm, folder):
    with FolderLock(folder), pytest.raises(ArtifactError, match="in use"):
        make(lm, folder)


def test_progress_counts_rows(lm, folder):
    seen = []
    store = make(lm, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (store.n_rows, store.n_rows)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    (folder / "activations-00001.npy").unlink()
    seen.clear()
    make(lm, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] > store.n_rows - SHARD_ROWS and seen[-1] == (store.n_rows, store.n_rows)
