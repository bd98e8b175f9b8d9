"""Many GPUs, many machines: what the notebooks would do one after the other, done before them by ranks of torchrun.

Every piece of work is kept under a content key and is never done twice, so a distributed run is a step before the
notebooks: its ranks make the tokens, the activations, the SAEs and their scores with the calls that the notebooks make,
and the notebooks, on one process as always, find all of it done.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_lib.util.errors import ArtifactError, shortened

if TYPE_CHECKING:
    from sae_lib.profiles.profile import Profile

MOST = 10_000  # GPUS or NODES: more than anybody has
PORT = 29400  # of the head machine, where the others meet it


@dataclass(frozen=True)
class Machines:
    """What a run is spread over: `GPUS=`, `NODES=` and `HEAD=` of make."""

    gpus: int = 1
    """GPUs of each machine; where the profile computes on the CPU, processes of one core each."""
    nodes: int = 1
    head: str = ""
    """Name or address of the machine where the others meet and where the notebooks run."""

    @classmethod
    def asked(cls, gpus: str, nodes: str, head: str) -> Machines:
        """From the words of a command line. Raises ArtifactError: no number from 1 to `MOST`, or several machines
        without a head that has a name."""
        counts = {"GPUS": gpus, "NODES": nodes}
        for name, value in counts.items():
            # A number of thousands of digits is none to `int`.
            if not (value.isdecimal() and len(value) <= len(str(MOST)) and 1 <= int(value) <= MOST):
                raise ArtifactError(f"{name}={shortened(value)}: give a number from 1 to {MOST}")
        machines = cls(int(gpus), int(nodes), head)
        if machines.nodes > 1 and not head:
            raise ArtifactError(
                f"NODES={nodes} needs HEAD=<host>: the name of one of the machines, the same in the command of each"
            )
        if machines.nodes > 1:
            machines.here_is_head()
        return machines

    @property
    def alone(self) -> bool:
        """Whether one process does everything."""
        return self.gpus * self.nodes == 1

    def here_is_head(self) -> bool:
        """Whether this machine is the head. Raises ArtifactError for a head whose address nobody knows."""
        if self.nodes == 1:
            return True
        try:
            address = socket.getaddrinfo(self.head, 0, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ArtifactError(f"HEAD={self.head}: no such host ({error.strerror}); give its address") from None
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            try:
                probe.bind(address[4])  # which only an address of this machine allows
            except OSError:
                return False
        return True


ALONE = Machines()


def do_beforehand(profile: Profile, source: str, machines: Machines) -> None:
    """Do the work of the notebooks on `machines`; every machine calls this. Returns when all have finished.

    Raises ArtifactError when it was not done; what was finished is kept.
    """
    from sae_lib.study.distributed.launch import check, launch, on_cpu  # these import torch

    check(profile, machines)
    if on_cpu(profile):
        print(f"no GPU is used: each of GPUS={machines.gpus} is a process of one core", flush=True)
    command = [sys.executable, "-m", "sae_lib", "rank", "--profile", source]
    launch(machines, command, profile.name, {"OMP_NUM_THREADS": "1"} if on_cpu(profile) else {})
