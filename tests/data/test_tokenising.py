from __future__ import annotations

import threading
from itertools import chain

import numpy as np
import pytest

from sae_lib.data import tokens as tokenising
from sae_lib.data.tokens import Piece, ahead, tokenised
from tests.data.test_corpus import EOS, TOKENIZER


def piece(*rows: tuple[int, list[int]]) -> Piece:
    splits, ids = [split for split, _ in rows], [ids for _, ids in rows]
    return Piece(
        np.array(splits, np.int8), np.array([len(i) for i in ids], np.int32), np.array([*chain(*ids)], np.int32)
    )


def same(one: Piece, other: Piece) -> bool:
    fields = [(getattr(one, name), getattr(other, name)) for name in Piece._fields]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in fields)


def test_a_piece_by_hand():
    rows = [(0, "w0 w1"), (2, ""), (1, "w2"), (0, "w3 w4 w5")]
    [made] = tokenised(rows, TOKENIZER)
    assert same(made, piece((0, [3, 4, EOS]), (-1, []), (1, [5, EOS]), (0, [6, 7, 8, EOS])))
    assert made.of(0).tolist() == [3, 4, EOS, 6, 7, 8, EOS] and made.of(1).tolist() == [5, EOS]
    assert made.of(2).tolist() == []


def test_batches_leave_no_trace(monkeypatch):
    rows = [(i % 3, f"w{i} w{i + 1}" if i % 4 else "") for i in range(50)]
    [whole] = tokenised(rows, TOKENIZER)
    monkeypatch.setattr(tokenising, "ROWS_PER_BATCH", 3)
    pieces = list(tokenised(rows, TOKENIZER))
    assert len(pieces) == 17 and same(Piece(*(np.concatenate(each) for each in zip(*pieces, strict=True))), whole)


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
