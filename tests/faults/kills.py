"""Kill `make paper` again and again, and compare what it makes in the end with what an undisturbed run makes.

    python -m tests.faults.kills FOLDER SEED

This process imports everything once and starts no thread; each attempt is a fork of it. An attempt is killed either
by the clock, at a random share of a stage's time, or by itself, right before a random one of the stage's file
operations: the moments between two of them are short, and the clock hardly ever hits them. Or its disk is full from
such an operation on, which must end it with one line. Prints a report, as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import datasets  # noqa: F401 (imported by the package where text is read; here before the fork)
import torch

from sae_lib.data.language_model import LanguageModel
from sae_lib.profiles.profile import load_profile
from sae_lib.report.tables import write as table_files  # noqa: F401
from sae_lib.study import scoring  # noqa: F401
from sae_lib.study.pipeline import find_notebooks, made_from
from sae_lib.util.paths import Paths
from tests.faults import small_artifact
from tests.faults.comparison import compare
from tests.faults.small_artifact import NAME, STAGES

KILLS, LEAST_PER_STAGE, MOST_ROUNDS = 50, 5, 15
# Audit events of Python (`sys.addaudithook`) that change what lies in a folder.
OPERATIONS = frozenset({"os.mkdir", "tempfile.mkdtemp", "os.chmod", "os.rename", "os.remove", "os.rmdir"})
# A thread of PyArrow's allocator, which looks after itself in a fork.
ARROWS_OWN = "jemalloc"
# An attempt may take this long; it takes seconds.
STUCK_S = 300.0
NEVER = 10**9
FULL = re.compile(r"ArtifactError: disk full while writing into \S.*: \d+ MiB free; [^\n]*")


Way = Literal["clock", "operation", "full disk"]


class Kill(NamedTuple):
    """When to kill, or to fill the disk: at a share of the time, or of the file operations, that a stage takes
    undisturbed."""

    stage: str
    by: Way
    share: float


class Outcome(NamedTuple):
    """What became of an attempt.

    Attributes:
        ended: whether it came to its end.
        stopped: the error that it stopped with by itself.
        begun: each stage that began: its time, and the number of file operations until then; "end" likewise.
        ran: the notebooks that ran, of an attempt that came to its end.
    """

    ended: bool
    stopped: str | None
    begun: dict[str, tuple[float, int]]
    ran: list[str]

    @property
    def last(self) -> str:
        """The stage that was at work last; "start" before the first."""
        return next(reversed(self.begun), "start")


class Attempts:
    """Forks of this process, each of which runs the artifact into one output folder."""

    def __init__(self, profile: Path) -> None:
        self.profile = profile
        self.seconds: dict[str, float] = {}
        self.operations: dict[str, int] = {}

    def undisturbed(self, output: Path) -> None:
        """Run from nothing to the end, and learn what each stage takes."""
        begun = self.attempt(output).begun
        for stage, after in zip(STAGES, (*STAGES[1:], "end"), strict=True):
            self.seconds[stage] = begun[after][0] - begun[stage][0]
            self.operations[stage] = begun[after][1] - begun[stage][1]

    def attempt(self, output: Path, kill: Kill | None = None) -> Outcome:
        """Fork a run into `output`; it goes on from what is there.

        Raises RuntimeError when the run fails by itself, but for a disk that was filled and is told as such.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._run(output, writing, kill)
        os.close(writing)
        try:
            begun, message = _listen(child, reading, kill, self.seconds)
        finally:
            os.close(reading)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        error = message.get("error")
        if error is not None and not (kill is not None and kill.by == "full disk" and FULL.fullmatch(error)):
            raise RuntimeError(f"a run failed that should not: {error}")
        return Outcome("end" in begun, error, begun, message.get("ran", []))

    def _run(self, output: Path, writing: int, kill: Kill | None) -> None:
        """The fork: says which stage begins, and never returns."""
        done, wanted = 0, NEVER
        flush = os.fsync

        def on_event(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal done
            done += event in OPERATIONS
            if event in OPERATIONS and done == wanted and kill is not None and kill.by == "operation":
                os.kill(os.getpid(), signal.SIGKILL)

        def on_flush(handle: int) -> None:
            if done >= wanted and kill is not None and kill.by == "full disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(handle)

        def say(**message: Any) -> None:
            os.write(writing, (json.dumps(message) + "\n").encode())

        def stage(name: str) -> None:
            nonlocal wanted
            say(stage=name, operations=done)
            if kill is not None and kill.stage == name:
                wanted = done + 1 + int(kill.share * self.operations[name])

        try:
            small_artifact.quiet()
            os.environ["SAE_LIB_OUTPUT"] = str(output)
            sys.addaudithook(on_event)
            os.fsync = on_flush  # type: ignore[assignment]
            ran = small_artifact.run(self.profile, stage)
            say(stage="end", operations=done, ran=ran)
        except BaseException as error:
            say(error=f"{type(error).__name__}: {error}")
        # Until it is killed, so that its end cannot overtake a kill that is under way.
        time.sleep(STUCK_S)
        os._exit(1)


def _listen(
    child: int, reading: int, kill: Kill | None, seconds: dict[str, float]
) -> tuple[dict[str, tuple[float, int]], dict[str, Any]]:
    """Read what a fork says until it ends or is killed by the clock; the stages that began, and its last message."""
    begun: dict[str, tuple[float, int]] = {}
    message: dict[str, Any] = {}
    said = b""
    deadline = time.monotonic() + STUCK_S
    while "error" not in message and message.get("stage") != "end":
        line, end, rest = said.partition(b"\n")
        if not end:
            ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(reading, 2**16) if ready else b""
            if not more:  # the time is over, or the fork has ended
                break
            said += more
            continue
        said, message = rest, json.loads(line)
        if "stage" in message:
            begun[message["stage"]] = (time.monotonic(), message["operations"])
            if kill is not None and kill.by == "clock" and kill.stage == message["stage"]:
                deadline = time.monotonic() + kill.share * seconds[kill.stage]
    return begun, message


def plan(rng: random.Random) -> list[Kill]:
    """What happens in one round, in the order of the stages: both kinds of kill in each, and a third event. The one by
    itself comes first: on a busy machine the clock strikes late, in the stage after a short one."""
    kills = []
    for stage in STAGES:
        ways: list[Way] = ["clock", rng.choice(get_args(Way))]
        rng.shuffle(ways)
        ways.insert(0, "operation")
        # A disk that fills up after the last file of a stage is written stops nothing.
        kills += [Kill(stage, by, rng.random() / (2 if by == "full disk" else 1)) for by in ways]
    return kills


def battery(folder: Path, seed: int) -> dict[str, Any]:
    """Rounds until enough kills are counted; the report.

    A run that a kill misses, because what was left of its stage took less time, comes to its end: what it made is
    compared, and the round goes on from nothing. Else the last stages would hardly be reached on a quiet machine.
    """
    attempts = Attempts(small_artifact.write(folder))
    warm_up(attempts.profile)
    threads = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    expected, output = folder / "undisturbed", folder / "killed"
    attempts.undisturbed(expected)
    rng = random.Random(seed)
    fell: list[tuple[str, str]] = []
    full: list[str] = []
    differences: list[str] = []
    leftovers = [0]
    rounds = 0

    def settle() -> None:
        attempts.attempt(output)
        if again := attempts.attempt(output).ran:
            differences.append(f"round {rounds}: {again} ran although nothing was left to do")
        differences.extend(f"round {rounds}: {line}" for line in compare(expected / NAME, output / NAME))
        shutil.rmtree(output)

    while len(fell) < KILLS or min(Counter(stage for stage, _ in fell)[name] for name in STAGES) < LEAST_PER_STAGE:
        rounds += 1
        if rounds > MOST_ROUNDS:
            break
        last = "start"
        for kill in plan(rng):
            if last in STAGES and STAGES.index(kill.stage) < STAGES.index(last):
                continue
            outcome = attempts.attempt(output, kill)
            last = outcome.last
            if outcome.ended:
                settle()
                last = "start"
            elif outcome.stopped is not None:
                full.append(last)
            else:
                fell.append((last, kill.by))
                leftovers.append(sum(1 for _ in output.rglob("*.tmp")))
        settle()
    return {
        "kills": fell, "full_disks": full, "rounds": rounds, "differences": differences,
        "most_leftovers": max(leftovers), "operations": attempts.operations,
        "threads": sum(not name.startswith(ARROWS_OWN) for name in threads),
    }  # fmt: skip


def warm_up(profile: Path) -> None:
    """What is slow and the same for every attempt: imports, the keys of the code, the language model."""
    loaded = load_profile(profile)
    models = {whole: LanguageModel.load(loaded.model, whole=whole) for whole in (False, True)}
    LanguageModel.load = lambda config, *, whole: models[whole]  # type: ignore[method-assign]
    for notebook in find_notebooks(profile.parent):
        made_from(notebook, loaded, Paths(NAME))
    with torch.no_grad():
        models[True].residual_stream(torch.zeros(1, 2, dtype=torch.long))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(battery(Path(sys.argv[1]), int(sys.argv[2]))))
