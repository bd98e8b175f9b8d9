from __future__ import annotations

import pytest

from sae_lib.metrics.toy.methods import crossing


def test_interpolation_is_log_linear_between_neighbours():
    # log L0 falls from log 100 to log 1 while log lambda goes from log 0.01 to log 1: slope -1, so L0 10 is at 0.1.
    assert crossing([1.0, 0.01], [1.0, 100.0], 10.0) == pytest.approx(0.1)
    assert crossing([0.1, 1.0, 10.0], [80.0, 20.0, 5.0], 10.0) == pytest.approx(10**0.5)


def test_outside_the_range_the_nearest_value_is_taken():
    assert crossing([1.0, 2.0, 4.0], [90.0, 60.0, 50.0], 40.0) == pytest.approx(4.0)
    assert crossing([1.0, 2.0, 4.0], [90.0, 60.0, 400.0], 40.0) == pytest.approx(2.0), "a collapse"


def test_of_several_the_smallest():
    # log L0 falls from log 4 to log 1 over a decade: 2 is half-way, whatever the order of the levels.
    assert crossing([0.1, 0.01], [1.0, 4.0], 2.0) == pytest.approx(10**-1.5, abs=1e-6)
    assert crossing([0.01, 0.1, 1.0], [4.0, 1.0, 4.0], 2.0) < 0.1, "the smallest of two"
    assert crossing([0.01, 0.1], [4.0, 3.0], 2.0) == 0.1 and crossing([0.01, 0.1], [1.0, 0.5], 2.0) == 0.01
