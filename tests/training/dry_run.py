"""One training step of every method at the size of `gemma-2-2b` on a GPU that computes nothing; prints what it counted.

    python -m tests.training.dry_run

As JSON, for each method {"flop": {type: ...}, "bytes": ...} or {"fault": ...}; under `synchronises`, for each of some
mistakes whether it was found.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_lib.data.activations import ActivationStore
from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.profiles.runs import RunSpec, plan_runs
from sae_lib.training.trainer import Trainer
from tests.training.fake_gpu import DEVICE, Watch, define_device, fake

D_IN, ROWS, CONTEXT = 2304, 2**16, 128
# After every warm-up, at a step at which nothing is logged, restarted or asked whether it is dead.
QUIET = 1001


class Store(ActivationStore):
    """Rows on the device that nobody has computed."""

    def __init__(self) -> None:
        self.n_rows, self.d_in = ROWS, D_IN
        self.contexts = np.repeat(np.arange(ROWS // CONTEXT, dtype=np.int32), CONTEXT)
        self.positions = np.tile(np.arange(CONTEXT, dtype=np.uint16), ROWS // CONTEXT)
        self.resident = torch.empty(ROWS, D_IN, dtype=torch.bfloat16, device=DEVICE)

    def mean_squared_norm(self, n: int) -> float:
        return 400.0


def first_runs(profile: Profile) -> dict[str, RunSpec]:
    """One run of each method that the profile trains."""
    found: dict[str, RunSpec] = {}
    for run in plan_runs(profile):
        if run.trained:
            found.setdefault(run.method, run)
    return found


def trainer_at(watch: Watch, profile: Profile, run: RunSpec, index: int) -> Trainer:
    """A run that has come to step `index`, its batch on the device."""
    with watch.opened():
        trainer = Trainer(run.config, Store(), profile.data, profile.training, run.seed, DEVICE)
        batch = trainer.batches.batch(index)
    trainer.index = index
    trainer.batches.batch = lambda index: batch  # type: ignore[method-assign]
    return trainer


def quiet_step(watch: Watch, profile: Profile, run: RunSpec) -> dict[str, Any]:
    """What a step computes; its second one, when Adam has its moments."""
    trainer = trainer_at(watch, profile, run, QUIET)
    trainer.step()
    watch.forget()
    trainer.step()
    state = [each for values in trainer.optimizer.state.values() for each in values.values()]
    for each in (*trainer.sae.state_dict().values(), *state, trainer.since_fired, trainer.bad):
        assert str(each.device) == DEVICE
    return {"flop": dict(watch.flop), "bytes": watch.bytes}


def told(work: Callable[[Watch], dict[str, Any]]) -> dict[str, Any]:
    """What `work` counts, or what stopped it."""
    try:
        with fake() as watch:
            return work(watch)
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"}


# What no step may do, on x `[2, 3]` of the device; `h` is a tensor of the host.
MISTAKES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "item": lambda x, h: x.sum().item(),
    "bool": lambda x, h: bool(x.sum() > 0),
    "tolist": lambda x, h: x.tolist(),
    "nonzero": lambda x, h: x.nonzero(),
    "boolean index": lambda x, h: x[x > 0],
    "unique": lambda x, h: x.unique(),
    "to the host": lambda x, h: x.cpu(),
    "from the host": lambda x, h: h.to(x.device),
    "sum with one of the host": lambda x, h: x + h,
    "product with one of the host": lambda x, h: x @ h.T,
    "index of the host": lambda x, h: x[torch.tensor([0])],
}


def found(mistake: Callable[[Tensor, Tensor], object]) -> bool:
    """Whether the dry run sees it."""
    return "fault" in told(lambda watch: {"made": mistake(torch.ones(2, 3, device=DEVICE), torch.ones(2, 3))})


def main() -> None:
    devices = define_device()
    profile = load_profile("gemma-2-2b")
    counted = {name: told(partial(quiet_step, profile=profile, run=run)) for name, run in first_runs(profile).items()}
    print(json.dumps(counted | {"synchronises": {name: found(mistake) for name, mistake in MISTAKES.items()}}))
    del devices


if __name__ == "__main__":
    main()
