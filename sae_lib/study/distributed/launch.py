"""Start the ranks of one machine with PyTorch's elastic launch, the engine of torchrun, and say in one line why a run
ended early.

Nothing is restarted in place: the same command, on as many processes as there are then, goes on from what is finished.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sae_lib.profiles.profile import Profile
from sae_lib.study.distributed import PORT, Machines
from sae_lib.util.errors import ArtifactError, first_line
from sae_lib.util.ranks import LostRank

GO_ON = "finished SAEs are kept and the same command goes on from there"
INTERRUPTED = 130
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # that elastic launch takes over
JOIN_S = 900  # for the other machines to come


def launch(machines: Machines, command: Sequence[str], run: str, environment: Mapping[str, str] | None = None) -> None:
    """Run `command` as every rank of this machine; with several machines, each calls this with the same `run`.

    `environment` is added to that of the ranks.

    Raises ArtifactError: a rank has ended early (with its own ArtifactError where it had one), or the other machines
    did not come.
    """
    alone = machines.nodes == 1
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # a closed connection is thirty lines of a warning
    with tempfile.TemporaryDirectory(prefix="sae-lib-ranks-") as said, _surroundings({**quiet, **(environment or {})}):
        config = LaunchConfig(
            min_nodes=machines.nodes,
            max_nodes=machines.nodes,
            nproc_per_node=machines.gpus,
            logs_specs=DefaultLogsSpecs(log_dir=said),  # where ranks leave their exceptions; they print as they are
            run_id=run,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0" if alone else f"{machines.head}:{PORT}",
            rdzv_configs={"timeout": JOIN_S, "join_timeout": JOIN_S},
            local_addr="localhost" if alone else None,
            max_restarts=0,
            # Each rank sees its own GPU and no other: "cuda" is the right one in every thread.
            virtual_local_rank=torch.cuda.is_available(),
            shutdown_timeout=10,
        )
        _run(config, command, machines)


@contextmanager
def _surroundings(environment: Mapping[str, str]) -> Iterator[None]:
    """For the launcher: these variables, no account of failures (forty lines), and its own handlers of signals; all of
    it is taken back afterwards.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run(config: LaunchConfig, command: Sequence[str], machines: Machines) -> None:
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        raise ArtifactError(why(error.failures)) from None
    except SignalException:
        raise KeyboardInterrupt from None
    except RendezvousError as error:
        raise ArtifactError(
            f"NODES={machines.nodes}: the machines did not meet at {machines.head}:{PORT} ({first_line(error)}); start "
            "the same command on each of them, with a HEAD that all of them reach"
        ) from None


def why(failures: Mapping[int, ProcessFailure]) -> str:
    """One line for the failures of one run: what a rank said, else which was killed, else which stopped first.

    A rank that only noticed the end of another, or was ended for it, comes last.
    """

    def order(failure: ProcessFailure) -> tuple[int, int]:
        said = _said(failure)
        if said.startswith(LostRank.__name__) or failure.exitcode in (-signal.SIGTERM, INTERRUPTED):
            return 3, failure.timestamp
        if said.startswith(ArtifactError.__name__):
            return 0, failure.timestamp
        return (1 if failure.exitcode < 0 else 2), failure.timestamp

    rank, failure = min(failures.items(), key=lambda item: order(item[1]))
    said = _said(failure)
    if said.startswith(LostRank.__name__):
        return f"a rank on another machine has ended, its own machine says why; {GO_ON}"
    if said.startswith(ArtifactError.__name__):
        return said.removeprefix(f"{ArtifactError.__name__}: ")
    if failure.exitcode < 0:
        memory = " (often for want of memory)" if failure.signal_name() == "SIGKILL" else ""
        return f"rank {rank} was ended by {failure.signal_name()}{memory}; {GO_ON}"
    return f"rank {rank} stopped with {said or f'exit code {failure.exitcode}'}; {GO_ON}"


def _said(failure: ProcessFailure) -> str:
    """Kind and first line of the exception that a rank ended with; nothing for one that left none."""
    message = failure.error_file_data["message"]
    return message["message"].splitlines()[0] if isinstance(message, dict) else ""


def on_cpu(profile: Profile) -> bool:
    """Whether the profile computes on the CPU of this machine."""
    return profile.model.device == "cpu" or (profile.model.device == "auto" and not torch.cuda.is_available())


def check(profile: Profile, machines: Machines) -> None:
    """Raises ArtifactError when this machine has fewer GPUs, or cores in their place, than asked for."""
    if on_cpu(profile):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if machines.gpus > cores:
            raise ArtifactError(f"GPUS={machines.gpus}: on the CPU these are processes of one core, and it has {cores}")
    elif machines.gpus > (count := torch.cuda.device_count()):
        raise ArtifactError(f"GPUS={machines.gpus}: this machine has {count}; ask for {count} or fewer")
