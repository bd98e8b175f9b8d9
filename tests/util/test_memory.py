"""What is freed stays at hand."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from sae_lib.util.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def used():
    block = np.empty(2**24, np.float32)  # 64 MiB
    block.fill(1.0)
for _ in range(2):
    used()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    used()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told")
def test_blocks_that_are_freed_are_given_out_again() -> None:
    """As counted in pages that had to be fetched: all of ten blocks, or none."""
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("given back", "kept")
    )
    assert kept < given_back / 20
