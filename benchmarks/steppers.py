"""One optimiser step of ours and of the peers behind one interface, on the same rows.

Ours is `sae_lib.training.trainer.Trainer.step`: it fetches its batch from the store in memory (bf16) and brings it to
float32. The peers are handed ready float32 batches, scaled to E||x||^2 = 1, so they are spared that.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_lib.autoencoders.config import SAEConfig, config_class, sae_config
from sae_lib.data.activations import ActivationStore, WindowStream
from sae_lib.data.config import DataConfig
from sae_lib.mechanisms import METHODS
from sae_lib.study.train_one import PUBLISHED_STEPS
from sae_lib.training.recipes import TrainingConfig, merged, method_recipe
from sae_lib.training.trainer import Trainer

WINDOW = 16
L1 = 0.1  # of inputs with E||x||^2 = 1; dictionary_learning's own default
SAE_LENS_LR = 3e-4  # its default, with a tenth of it at the end
# The parameters of `Stepper.offsets`, by the names that SAELens has as well.
OFFSETS = {"standard": {"b_enc": -1}, "gated": {"b_gate": -1, "b_mag": -1}, "jumprelu": {"threshold": 1}}
STEPS_LEFT = 100_000  # after the warm-up, so that no learning rate decays while it is timed


class Stepper(Protocol):
    """A training run that can be timed."""

    def step(self) -> None:
        """One optimiser step on a batch of the full size."""

    def warm(self, steps: int) -> None:
        """So many steps on small batches: they cost less and change the sparsity as much."""

    def l0(self) -> float:
        """Active latents per row now."""

    def offsets(self) -> list[tuple[Tensor, int]]:
        """What decides which latents fire, and whether more of it makes them fewer (1) or more (-1); nothing where L0
        is told as k.
        """

    def stay(self) -> None:
        """From now on steps with a learning rate of zero: they cost the same and leave L0 where it is."""


@torch.no_grad()
def bring_to_l0(stepper: Stepper, target: float) -> None:
    """Move a stepper's offsets, all by the same amount, to where its L0 is `target`.

    A step costs what is active, so it is timed at equal L0; training would bring each method to its own, in its own
    time, so it learns nothing from here on.
    """
    stepper.stay()
    starts = [tensor.clone() for tensor, _ in stepper.offsets()]
    low, high = -1e3, 1e3
    for _ in range(50 if starts else 0):
        middle = (low + high) / 2
        for (tensor, sign), start in zip(stepper.offsets(), starts, strict=True):
            tensor.copy_(start + sign * middle)
        low, high = (middle, high) if stepper.l0() > target else (low, middle)


class Rows:
    """The rows of a store, as every stepper gets them."""

    def __init__(self, store: ActivationStore, batch: int, small: int, device: str, ready: int = 8) -> None:
        self.store, self.batch, self.small, self.device = store, batch, small, device
        self.scale = store.mean_squared_norm(2**17) ** -0.5
        self.batches = self._ready(batch, ready)
        self.small_batches = self._ready(small, ready * batch // small)

    def _ready(self, rows: int, count: int) -> list[Tensor]:
        stream = WindowStream(self.store, WINDOW, rows, 0, device=self.device)
        available = max(1, self.store.n_rows // rows)
        return [stream.batch(i).activations.flatten(0, 1) * self.scale for i in range(min(count, available))]

    def data(self, batch: int) -> DataConfig:
        return DataConfig(
            train_tokens=self.store.n_rows, held_out_contexts=1, calibration_contexts=1, window=WINDOW,
            batch_tokens=batch, shard_rows=2**18,
        )  # fmt: skip


def _in_precision(precision: str, device: str) -> dict[str, Any]:
    if precision == "float32":
        return {}
    return {"products": precision} if device == "cpu" else {"autocast": precision}


class Ours:
    """A method of `sae_lib.training.recipes`, in float32 or in bf16: under autocast on a GPU, by the factors of its
    products on a CPU."""

    def __init__(self, rows: Rows, method: str, d_sae: int, k: int, warm_steps: int, precision: str) -> None:
        self.rows, self.k = rows, k
        self.config = our_config(method, d_sae, k, warm_steps, rows.scale)
        self.training = TrainingConfig(
            d_sae=d_sae, steps=warm_steps + STEPS_LEFT, seeds=(0,), ablation_seeds=(0,), log_every=2**30,
            checkpoint_every=2**30, **_in_precision(precision, rows.device),
        )  # fmt: skip
        self.trainer = self._trainer(rows.batch)
        self.step = self.trainer.step

    def warm(self, steps: int) -> None:
        small = self._trainer(self.rows.small)
        for _ in range(steps):
            small.step()
        self.trainer.load({name: t.clone() for name, t in small.tensors().items()}, copy.deepcopy(small.state()))

    def offsets(self) -> list[tuple[Tensor, int]]:
        sae = self.trainer.sae
        return [(sae.get_parameter(name), sign) for name, sign in OFFSETS.get(self.config.architecture, {}).items()]

    def l0(self) -> float:
        scale = self.rows.scale if not self.config.normalize_inputs else 1.0
        return _l0(self.trainer.sae, self.rows.batches[0] / scale, self.config.get("k"))

    def stay(self) -> None:
        still = self.config.optimizer.model_copy(update={"learning_rate": 0.0})
        self.trainer.cfg = self.config.model_copy(update={"optimizer": still})

    def _trainer(self, batch: int) -> Trainer:
        return Trainer(self.config, self.rows.store, self.rows.data(batch), self.training, 0, self.rows.device)


def our_config(method: str, d_sae: int, k: int, warm_steps: int, input_scale: float) -> SAEConfig:
    """The method's recipe with every warm-up done within `warm_steps`, at an L0 of k where the method is told one."""
    recipe = METHODS[method].recipe
    values: dict[str, Any] = {}
    knob = config_class(recipe["architecture"]).knob
    if knob == "l1_coefficient":
        # On raw inputs the same sparsity takes a coefficient as much larger as the inputs are.
        values[knob] = L1 if recipe.get("normalize_inputs", True) else L1 / input_scale
    else:
        values[knob] = k
    if "resampling" in recipe:
        values["resampling"] = {"warmup_interval": 100, "interval": 500}  # not shortened: that would cost more
    scale = max(warm_steps, 1) / PUBLISHED_STEPS
    return sae_config(method_recipe(method, d_sae, merged({}, values), scale))


class _Peer:
    """Steps one after the other through ready batches; `_update` is one step of the peer's trainer."""

    rows: Rows
    k: int | None
    trainer: Any
    index = 0

    def step(self, batches: list[Tensor] | None = None) -> None:
        batches = batches or self.rows.batches
        self._update(batches[self.index % len(batches)])
        self.index += 1

    def warm(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.rows.small_batches)

    def _update(self, batch: Tensor) -> None:
        raise NotImplementedError


class DictionaryLearning(_Peer):
    """A trainer of dictionary_learning with its default settings; `update` is what its `trainSAE` calls.

    `trainSAE` applies autocast on a GPU only, so bf16 is timed there alone.
    """

    def __init__(self, rows: Rows, method: str, d_sae: int, k: int, warm_steps: int, precision: str) -> None:
        from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, standard, top_k

        warm_up = {"warmup_steps": _shortened(1000, warm_steps)}
        sparsity = {"sparsity_warmup_steps": _shortened(2000, warm_steps)}
        threshold = {"k": k, "threshold_start_step": _shortened(1000, warm_steps)}
        groups = {"group_fractions": [1 / 16, 1 / 8, 1 / 4, 9 / 16]}
        kinds: dict[str, tuple[Any, dict[str, Any]]] = {
            "standard": (standard.StandardTrainer, sparsity | {"l1_penalty": L1}),
            "gated": (gdm.GatedSAETrainer, sparsity | {"l1_penalty": L1}),
            "topk": (top_k.TopKTrainer, threshold),
            "batchtopk": (batch_top_k.BatchTopKTrainer, threshold),
            "matryoshka_4": (matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, threshold | groups),
            "jumprelu": (jumprelu.JumpReluTrainer, sparsity | {"target_l0": float(k)}),
        }
        kind, options = kinds[method]
        self.rows, self.k, self.method = rows, k if "k" in options else None, method
        self.trainer = kind(
            steps=warm_steps + STEPS_LEFT, activation_dim=rows.store.d_in, dict_size=d_sae, layer=0, lm_name="random",
            device=rows.device, seed=0, **warm_up, **options,
        )  # fmt: skip
        enabled = precision == "bfloat16"
        self.autocast = torch.autocast(rows.device, torch.bfloat16) if enabled else contextlib.nullcontext()

    def _update(self, batch: Tensor) -> None:
        with self.autocast:
            self.trainer.update(self.index, batch)

    def offsets(self) -> list[tuple[Tensor, int]]:
        ae = self.trainer.ae
        if self.method == "standard":
            return [(ae.encoder.bias, -1)]
        if self.method == "gated":
            return [(ae.gate_bias, -1), (ae.mag_bias, -1)]
        return [(ae.threshold, 1)] if self.method == "jumprelu" else []

    def l0(self) -> float:
        return _l0(self.trainer.ae, self.rows.batches[0], self.k)

    def stay(self) -> None:
        _hold_still(self.trainer.optimizer, self.trainer.scheduler)


class SAELens(_Peer):
    """`SAETrainer` of SAELens with default settings: `step` and the count that its `fit` advances."""

    def __init__(self, rows: Rows, method: str, d_sae: int, k: int, warm_steps: int, precision: str) -> None:
        from sae_lens import saes
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        l1 = {"l1_coefficient": L1, "l1_warm_up_steps": _shortened(2000, warm_steps)}
        widths = [d_sae // 16, d_sae * 3 // 16, d_sae * 7 // 16, d_sae]
        kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
            "standard": (saes.StandardTrainingSAE, saes.StandardTrainingSAEConfig, l1),
            "gated": (saes.GatedTrainingSAE, saes.GatedTrainingSAEConfig, l1),
            "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig, {"k": k}),
            "batchtopk": (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig, {"k": k}),
            "matryoshka_4": (
                saes.MatryoshkaBatchTopKTrainingSAE, saes.MatryoshkaBatchTopKTrainingSAEConfig,
                {"k": k, "matryoshka_widths": widths},
            ),
            "jumprelu": (
                saes.JumpReLUTrainingSAE, saes.JumpReLUTrainingSAEConfig,
                {"l0_warm_up_steps": _shortened(2000, warm_steps)},
            ),
        }  # fmt: skip
        kind, config, options = kinds[method]
        self.rows, self.k, self.method = rows, options.get("k"), method
        sae = kind(config(d_in=rows.store.d_in, d_sae=d_sae, device=rows.device, **options))
        self.trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=(warm_steps + STEPS_LEFT) * rows.batch, train_batch_size_samples=rows.batch,
                lr=SAE_LENS_LR, lr_end=SAE_LENS_LR / 10, device=rows.device, autocast=precision == "bfloat16",
            ),
            sae, data_provider=iter(rows.batches),
        )  # fmt: skip

    def _update(self, batch: Tensor) -> None:
        self.trainer.step(batch)
        self.trainer.n_training_steps += 1

    def offsets(self) -> list[tuple[Tensor, int]]:
        return [(getattr(self.trainer.sae, name), sign) for name, sign in OFFSETS.get(self.method, {}).items()]

    def l0(self) -> float:
        return _l0(self.trainer.sae, self.rows.batches[0], self.k)

    def stay(self) -> None:
        _hold_still(self.trainer.optimizer, self.trainer.lr_scheduler)


PEERS: dict[str, type[DictionaryLearning] | type[SAELens]] = {
    "dictionary_learning": DictionaryLearning,
    "sae_lens": SAELens,
}
PEER_METHODS = ("standard", "gated", "topk", "batchtopk", "matryoshka_4", "jumprelu")


def peers_installed() -> list[str]:
    """The peers that this environment has."""
    return [name for name in PEERS if importlib.util.find_spec(name) is not None]


def peer_precisions(peer: str, device: str) -> tuple[str, ...]:
    """The precisions a peer's own training loop offers on this device."""
    return ("float32",) if peer == "dictionary_learning" and device == "cpu" else ("float32", "bfloat16")


def _shortened(steps: int, warm_steps: int) -> int:
    """A warm-up of the papers' run, shortened as ours are."""
    return max(1, round(steps * warm_steps / PUBLISHED_STEPS))


def _hold_still(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    scheduler.step = lambda: None


@torch.no_grad()
def _l0(sae: Any, x: Tensor, k: int | None) -> float:
    """k where the method is told it (on evaluation a threshold stands in for it), else as counted on a batch."""
    return float(k) if k else float((sae.encode(x) != 0).to(torch.float32).sum(dim=1).mean())
