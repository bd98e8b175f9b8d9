"""Many GPUs, many machines: what the notebooks would do one after the other, done before them by ranks of torchrun.

Every piece of work is kept under a content key and is never done twice: the ranks make tokens, activations, SAEs and
scores with the calls that the notebooks make, and the notebooks, on one process as always, find all of it done.
`make paper GPUS=4` starts ranks on one machine; on several, the same command on each does:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --virtual-local-rank \\
        -m sae_lib rank --profile gemma-2-2b

Nothing is restarted in place: the same command, on as many ranks as there are then, goes on from what is finished.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.run import parse_args
from torch.distributed.run import run as torchrun

from sae_lib.data.model_loading import device_of
from sae_lib.profiles.profile import Profile
from sae_lib.profiles.runs import ABLATION_GROUPS, ABLATION_SCORES, MAIN_GROUPS, plan_runs
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import evaluate
from sae_lib.util import ranks
from sae_lib.util.errors import ArtifactError
from sae_lib.util.parallel import end_with_parent, use_one_core

GO_ON = "finished SAEs are kept and the same command goes on from there"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # that torchrun takes over


def check(profile: Profile, gpus: int) -> None:
    """Raises ArtifactError when this machine has fewer GPUs, or cores in their place, than asked for."""
    if device_of(profile.model) == "cpu":
        there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        what = "on the CPU these are processes of one core, and it has"
    else:
        there, what = torch.cuda.device_count(), "this machine has"
    if not 1 <= gpus <= there:
        raise ArtifactError(f"GPUS={gpus}: {what} {there}; give a number from 1 to {there}")


def launch(gpus: int, command: Sequence[str]) -> None:
    """Run `command`, a script or `-m module` with its arguments, as so many ranks of this machine.

    Raises ArtifactError when a rank has ended early, in one line: with its own ArtifactError where it had one.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a closed connection is thirty lines of a warning
    logging.disable(logging.ERROR)  # and a failure forty
    with tempfile.TemporaryDirectory(prefix="sae-lib-ranks-") as said:
        options = ["--standalone", f"--nproc-per-node={gpus}", "--local-addr=localhost", "--shutdown-timeout=10"]
        # Each rank sees its own GPU and no other: "cuda" is the right one in every thread.
        options += ["--virtual-local-rank"] if torch.cuda.is_available() else []
        try:
            torchrun(parse_args([*options, f"--log-dir={said}", *command]))
        except ChildFailedError as error:
            raise ArtifactError(why(error.failures)) from None
        except SignalException:
            raise KeyboardInterrupt from None
        finally:
            logging.disable(logging.NOTSET)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def why(failures: Mapping[int, ProcessFailure]) -> str:
    """One line for the rank that ended first, and not for the end of another."""

    def is_echo(failure: ProcessFailure) -> bool:
        return failure.exitcode in (-signal.SIGTERM, 130) or _said(failure).startswith(ranks.LostRank.__name__)

    rank, failure = min(failures.items(), key=lambda item: (is_echo(item[1]), item[1].timestamp))
    kind, _, told = _said(failure).partition(": ")
    if kind == ArtifactError.__name__:
        return told
    if failure.exitcode < 0:
        memory = " (often for want of memory)" if failure.signal_name() == "SIGKILL" else ""
        return f"rank {rank} was ended by {failure.signal_name()}{memory}; {GO_ON}"
    return f"rank {rank} stopped with {_said(failure) or f'exit code {failure.exitcode}'}; {GO_ON}"


def _said(failure: ProcessFailure) -> str:
    """Kind and first line of the exception that a rank ended with; nothing for one that left none."""
    message = failure.error_file_data["message"]
    return message["message"].splitlines()[0] if isinstance(message, dict) else ""


def do_beforehand(source: str, gpus: int) -> None:
    """The work of the notebooks of the profile `source`, by so many ranks. Raises as `launch`."""
    launch(gpus, ["-m", "sae_lib", "rank", "--profile", source])


def do_all(experiment: Experiment) -> None:
    """What the notebooks ask for, in their order: tokens, activations, sweep, main comparison, ablations, scores."""
    _tell("tokens and activations")
    ranks.from_first(lambda: experiment.language_model(whole=False).d_in)  # the others then find its files on the disk
    lm = experiment.language_model(whole=False)
    experiment.build_tokens(lm.tokenizer)
    experiment.harvest(lm)
    _tell("sweep, main comparison")
    calibration = experiment.calibrate()
    main = plan_runs(experiment.profile, calibration, MAIN_GROUPS)
    experiment.train(main)
    _tell("ablations")
    ablations = plan_runs(experiment.profile, calibration, ABLATION_GROUPS)
    experiment.train(ablations)
    evaluate(experiment, ablations, ABLATION_SCORES)
    _tell("evaluation")
    evaluate(experiment, main)


def _tell(what: str) -> None:
    if ranks.rank() == 0:
        print(f"[{ranks.world()} ranks] {what}", flush=True)


@record
def _work(profile: str) -> None:
    experiment = Experiment.open(profile)
    if experiment.device == "cpu":
        use_one_core()
    with ranks.joined(), experiment.writing():
        do_all(experiment)
        ranks.barrier()


def be_a_rank(profile: str) -> int:
    """One rank's part of the work. Returns its exit code; the launcher says what an ArtifactError says, once."""
    end_with_parent()
    try:
        _work(profile)
    except ArtifactError:
        return 1
    return 0
