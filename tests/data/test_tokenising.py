import threading

import numpy as np
import pytest

from sae_lib.data import tokens as tokenising
from sae_lib.data.config import DataConfig
from sae_lib.data.tokens import SPLITS, Split, ahead, tokenised, with_masked, write_contexts
from tests.data.test_corpus import EOS, TOKENIZER


def test_documents_by_hand(monkeypatch):
    rows: list[tuple[Split, str]] = [("train", "w0 w1"), ("held_out", "w2"), ("train", "w3 w4 w5")]
    [made] = tokenised(rows, TOKENIZER)
    assert [split for split, _ in made] == ["train", "held_out", "train"]
    assert [ids.tolist() for _, ids in made] == [[3, 4, EOS], [5, EOS], [6, 7, 8, EOS]]
    assert {ids.dtype for _, ids in made} == {np.dtype(np.int32)}
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 2)
    assert [len(batch) for batch in tokenised(rows, TOKENIZER)] == [2, 1]


def test_batches_leave_no_trace(tmp_path, monkeypatch):
    rows: list[tuple[Split, str]] = [(SPLITS[i % 3], f"w{i} w{i + 1}") for i in range(50)]
    data = DataConfig(
        context_length=8, train_tokens=20, held_out_contexts=4, calibration_contexts=3, window=1, batch_tokens=1,
        shard_rows=1,
    )  # fmt: skip

    def written(folder):
        return write_contexts(folder, tokenised(rows, TOKENIZER), TOKENIZER, data)

    whole = written(tmp_path / "whole")
    monkeypatch.setattr(tokenising, "DOCUMENTS_PER_BATCH", 3)
    assert written(tmp_path / "batches") == whole


def test_work_is_done_ahead_in_order_and_within_bounds():
    """The thread is let through one item at a time, so nothing here depends on speed."""
    given, gate = [], threading.Semaphore(0)

    def items():
        for i in range(10):
            given.append(i)
            yield i

    def work(item):
        gate.acquire(timeout=30)
        return item * item

    results = ahead(work, items(), depth=3)
    gate.release(1)
    assert next(results) == 0
    assert given == [0, 1, 2, 3], "three items are taken in beyond the one that was asked for"
    gate.release(10)
    assert list(results) == [i * i for i in range(1, 10)]


def test_an_error_ahead_comes_out_in_its_place():
    def work(item):
        if item == 3:
            raise ValueError("third")
        return item

    results = ahead(work, range(6), depth=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)


def test_a_reader_that_stops_early_leaves_no_thread():
    before = threading.active_count()
    results = ahead(lambda item: item, range(1000), depth=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_hidden_tokens_are_the_one_that_opens_a_context():
    contexts = np.arange(1, 4001, dtype=np.int32).reshape(40, 100)
    contexts[:, 0] = 0
    hidden = with_masked(contexts, 0.25)
    changed = hidden != contexts
    assert hidden.dtype == np.int32 and (hidden[changed] == 0).all() and not changed[:, 0].any()
    assert 0.22 < changed[:, 1:].mean() < 0.28 and changed.any(axis=1).all()
    np.testing.assert_array_equal(with_masked(contexts, 0.25), hidden)
    np.testing.assert_array_equal(with_masked(contexts, 0.0), contexts)
