"""One training step of every method, and a batch of the harvest and of every architecture's evaluation, at the size of
`gemma-2-2b` on a GPU that computes nothing; prints what it counted.

    python -m tests.training.dry_run

As JSON, for each method, for `harvest` and under `evaluation` for each architecture {"flop": {type: ...}, "bytes": ...}
or {"fault": ...}; under `synchronises`, for each of some mistakes whether it was found.
"""

import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.data import harvest, hub
from sae_lib.data.activations import ActivationStore
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics import core_reference
from sae_lib.metrics.reconstruction import ReconstructionSums
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


TOKENIZER = SimpleNamespace(
    bos_token="<bos>", bos_token_id=2, eos_token="<eos>", eos_token_id=1, pad_token_id=0, all_special_ids=[0, 1, 2],
    added_tokens_decoder={}, get_vocab=dict,
)  # fmt: skip


def language_model(watch: Watch, profile: Profile, *, whole: bool) -> LanguageModel:
    """The profile's model, by what is known of its configuration, in bfloat16."""
    pin, layer = hub.MODELS.get(profile.model.name), profile.model.layer
    assert pin is not None
    config = AutoConfig.for_model(**pin.config, dtype=torch.bfloat16)
    if not whole:
        config.num_hidden_layers, config.layer_types = layer + 1, config.layer_types[: layer + 1]
    with watch.opened():
        model = AutoModelForCausalLM.from_config(config).to(DEVICE)
    model = model if whole else model.base_model
    return LanguageModel(model, TOKENIZER, name="fake", layer=layer, whole=whole, identity="fake")  # type: ignore[arg-type]


def harvested(watch: Watch, profile: Profile) -> dict[str, Any]:
    """One batch of the harvest, its tokens on the device."""
    lm, contexts = language_model(watch, profile, whole=False), 32

    def on_device(array: Any) -> Tensor:
        with watch.opened():
            return torch.empty(array.shape, dtype=torch.int64, device=DEVICE)

    context, position = (each.flatten() for each in np.indices((contexts, CONTEXT), dtype=np.int32))
    tokens = np.ones((contexts, CONTEXT), np.int32)
    watch.forget()
    with patch.object(torch, "from_numpy", on_device):
        values, finite = harvest._shard(lm, tokens, context, position.astype(np.uint16), contexts, lambda rows: None)
    assert str(values.device) == str(finite.device) == DEVICE
    return {"flop": dict(watch.flop), "bytes": watch.bytes}


@torch.no_grad()
def evaluated(watch: Watch, profile: Profile, lm: LanguageModel, run: RunSpec) -> dict[str, Any]:
    """One batch of an SAE's reconstruction and behaviour, the language model's states on the device."""
    batch = profile.evaluation.reconstruction.batch_contexts
    kept = batch * (CONTEXT - 1)  # all but BOS
    with watch.opened():
        sae = build_autoencoder(run.config, D_IN, run.seed).to(DEVICE)
        seen, sums = ReconstructionSums(sae), torch.zeros(3, dtype=torch.float64, device=lm.device)
    residual, hidden = (torch.empty(*size, D_IN, dtype=lm.dtype, device=DEVICE) for size in ((batch, CONTEXT), (kept,)))
    following, at_kept = (torch.empty(kept, dtype=torch.long, device=DEVICE) for _ in range(2))
    reference = SimpleNamespace(residual=residual, hidden=hidden)
    watch.forget()
    logits, clean = (
        core_reference._logits(lm, reference, slice(0, batch), slice(0, kept), at_kept, splice)  # type: ignore[arg-type]
        for splice in (seen.splice, None)
    )
    for at in range(0, kept, 64):
        here = slice(at, at + 64)
        sums += core_reference.loss_sums(logits(here), following[here], core_reference.distribution(clean(here)))
    for each in (seen.squared_error, seen.on, sums):
        assert str(each.device) == DEVICE
    return {"flop": dict(watch.flop), "bytes": watch.bytes}


def all_evaluated(watch: Watch, profile: Profile) -> dict[str, Any]:
    """By architecture: no mechanism takes part."""
    lm = language_model(watch, profile, whole=True)
    runs = {run.config.architecture: run for run in first_runs(profile).values()}
    return {name: evaluated(watch, profile, lm, run) for name, run in runs.items()}


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
    counted["harvest"] = told(partial(harvested, profile=profile))
    counted["evaluation"] = told(partial(all_evaluated, profile=profile))
    print(json.dumps(counted | {"synchronises": {name: found(mistake) for name, mistake in MISTAKES.items()}}))
    del devices


if __name__ == "__main__":
    main()
