"""Whatever moment a run is killed at, the next ones end with what an undisturbed run makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sae_lib.util.files import write_json
from sae_lib.util.paths import ROOT
from tests.faults.comparison import compare
from tests.faults.small_artifact import STAGES

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="forks, and counts threads in /proc")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The battery, in a process of its own: it forks, and pytest's process has threads.

    Its folder has a space and other letters in its path, and there is no home folder, nor can one be made.
    """
    folder = tmp_path_factory.mktemp("kills") / "à la carte, 山 🙂"
    folder.mkdir()
    (folder / "file").touch()
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | one | {"HF_DATASETS_CACHE": str(folder / "datasets"), "PYTHONPATH": str(ROOT)}
    environment["HOME"] = str(folder / "file" / "home")
    command = [sys.executable, "-m", "tests.faults.kills", str(folder), "20260101"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_fifty_kills_change_nothing(report: dict[str, Any]) -> None:
    assert report["threads"] == 1, "a fork of a process with threads can hang"
    assert report["differences"] == []
    stages = Counter(stage for stage, _ in report["kills"])
    assert len(report["kills"]) >= 50 and all(stages[stage] >= 5 for stage in STAGES), stages
    kinds = Counter(by for _, by in report["kills"])
    assert min(kinds["clock"], kinds["operation"]) >= 15, kinds
    assert len(report["full_disks"]) >= 3, report["full_disks"]
    assert all(report["operations"][stage] for stage in STAGES), "a stage wrote nothing"


def test_what_a_killed_run_was_writing_does_not_pile_up(report: dict[str, Any]) -> None:
    """At most the files of the killed moment, three where the splits of the tokens are written side by side; the next
    run removes them."""
    assert report["most_leftovers"] <= 3


def test_the_comparison_sees_what_it_should(tmp_path: Path) -> None:
    for name, seconds, loss in (("a", 1.0, 0.5), ("b", 2.0, 0.5), ("c", 1.0, 0.6)):
        write_json(tmp_path / name / "run.json", {"seconds": seconds, "final": {"loss": loss}})
        (tmp_path / name / "weights").write_bytes(name.encode() if name == "c" else b"w")
    (tmp_path / "c" / ".run.json.x.tmp").touch()
    assert compare(tmp_path / "a", tmp_path / "b") == []
    lines = [".run.json.x.tmp is too many", "run.json differs", "weights differs"]
    assert compare(tmp_path / "a", tmp_path / "c") == lines
    assert compare(tmp_path / "c", tmp_path / "a")[0] == ".run.json.x.tmp is missing"
