"""Worker processes: one core each, and jobs that share what is costly to open."""

import json
import subprocess
import sys

import pytest

from sae_lib.util import parallel as workers

POOLS = """
import json
from sae_lib.util.parallel import begin_worker

begin_worker()
import sklearn.linear_model
from threadpoolctl import threadpool_info

print(json.dumps([[pool["internal_api"], pool["num_threads"]] for pool in threadpool_info()]))
"""


def test_a_worker_uses_one_core_whatever_library_it_calls():
    found = json.loads(subprocess.run([sys.executable, "-c", POOLS], capture_output=True, text=True, check=True).stdout)
    assert {"openblas", "openmp"} <= {library for library, _ in found}
    assert {threads for _, threads in found} == {1}


def test_what_is_kept_is_made_once_for_a_source():
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    assert [workers.kept("one", "x", make), workers.kept("one", "x", make)] == [0, 0]
    assert workers.kept("one", "y", make) == 1
    assert workers.kept("two", "x", make) == 2, "another source forgets the first one's"
    assert workers.kept("one", "x", make) == 3


def test_with_one_worker_jobs_are_done_here_in_order(capsys: pytest.CaptureFixture[str]):
    done: list[tuple[str, list[int]]] = []
    workers.for_each(lambda source, job: done.append((source, job)), "s", [[1, 2], [3]], 1, "work")
    assert done == [("s", [1, 2]), ("s", [3])]


def fail_on_two(source: str, job: list[int]) -> None:
    if 2 in job:
        raise ValueError("two")


def test_the_first_failure_of_a_worker_ends_the_work():
    with pytest.raises(ValueError, match="two"):
        workers.for_each(fail_on_two, "s", [[1], [2], [3]], 2, "work")


UNGUARDED = """
from sae_lib.data import documentation
from sae_lib.util import parallel
from sae_lib.util.errors import ArtifactError

print(len(documentation.extract(["filelock", "tqdm"], processes=2)) > 20)
try:
    parallel.for_each(print, "source", [[1], [2]], 2, "work")
except ArtifactError as error:
    print(error)
"""


def test_a_script_without_a_main_guard_is_told_what_it_lacks(tmp_path):
    """The packaged corpus needs no guard; training in several processes does."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    told = [line for line in run.stdout.splitlines() if line]
    assert told[0] == "True" and told[-1].startswith("training.workers: a worker process ended at once"), run.stderr
    assert 'belongs under `if __name__ == "__main__":`' in told[-1]
