"""One run's state, and its step: the same for every method."""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder, Step, squared_error
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import OptimizerConfig, SAEConfig
from sae_lib.data.activations import ActivationStore, Batch, WindowStream
from sae_lib.data.config import DataConfig
from sae_lib.mechanisms import Mechanism, build_mechanisms
from sae_lib.training.recipes import TrainingConfig
from sae_lib.util.checkpoint import load_optimizer_tensors, optimizer_tensors
from sae_lib.util.errors import ArtifactError


class Prefetched:
    """The first `steps` batches of a stream, in order. One is made ahead where its rows come from the disk, or from
    main memory to a GPU; rows that are where they are used are gathered at once."""

    def __init__(self, stream: WindowStream, steps: int) -> None:
        self._stream, self._steps = stream, steps
        self._waiting: dict[int, Future[Batch]] = {}
        resident = stream.store.resident
        at_hand = resident is not None and resident.device.type == stream.device.type
        self._thread = None if at_hand else ThreadPoolExecutor(1, thread_name_prefix="batches")

    def batch(self, index: int) -> Batch:
        ready = self._waiting.pop(index, None)
        batch = self._stream.batch(index) if ready is None else ready.result()
        if self._thread is not None and index + 1 < self._steps:
            self._waiting = {index + 1: self._thread.submit(self._stream.batch, index + 1)}
        return batch


def forward(sae: Autoencoder, mechanisms: Sequence[Mechanism], step: Step, autocast: bool = False) -> None:
    """Fill in what the SAE makes of `step.x`."""
    with torch.autocast(step.x.device.type, torch.bfloat16, enabled=autocast):
        step.latents = step.f = sae.encode_training(step)
        step.firing_rate = step.latents.rate()
        for mechanism in mechanisms:
            mask = mechanism.mask(step)
            if mask is not None:
                step.f = step.f.times(mask)
        step.x_hat = sae.decode_training(step)
    step.x_hat = step.x_hat.float()
    step.reconstruction = squared_error(step.x, step.x_hat)


def losses(sae: Autoencoder, mechanisms: Sequence[Mechanism], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its parts, each with its coefficient."""
    parts = {"reconstruction": sae.reconstruction_loss(step)}
    named = [("sparsity", sae.sparsity_loss(step)), ("auxiliary", sae.auxiliary_loss(step))]
    named += [(mechanism.term, mechanism.loss(step)) for mechanism in mechanisms]
    for name, term in named:
        if term is not None:
            parts[name] = parts[name] + term if name in parts else term
    return sum(parts.values(), torch.zeros((), device=step.x.device)), parts


@contextmanager
def products_in(factors: str) -> Iterator[None]:
    """Within, dense float32 products on a CPU round their factors to `factors`, "float32" or "bfloat16", and sum in
    float32: where the processor has units for that (AMX), about three times as fast; elsewhere nothing is rounded."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16" if factors == "bfloat16" else before
    try:
        yield
    finally:
        settings.fp32_precision = before


SCALE_ROWS = 2**17  # rows over which E||x||^2 is estimated


class Trainer:
    """The state of one run, and its step."""

    def __init__(
        self,
        config: SAEConfig,
        store: ActivationStore,
        data: DataConfig,
        training: TrainingConfig,
        seed: int,
        device: str,
    ) -> None:
        self.cfg, self.data, self.training = config, data, training
        self.device = torch.device(device)
        self.stream = WindowStream(store, data.window, data.batch_tokens, data.stream_seed, device=device)
        self.batches = Prefetched(self.stream, training.steps)
        self.sae = build_autoencoder(config, store.d_in, seed).to(self.device)
        self.mechanisms: list[Mechanism] = [m.to(self.device) for m in build_mechanisms(config)]
        # By names that stay the same for one configuration.
        self.modules = nn.ModuleDict({"sae": self.sae} | {f"mechanism{i}": m for i, m in enumerate(self.mechanisms)})
        self.input_scale = store.mean_squared_norm(SCALE_ROWS) ** -0.5 if config.normalize_inputs else 1.0
        if not 0.0 < self.input_scale < float("inf"):
            raise ArtifactError(
                "activations: their mean squared norm is zero, NaN or infinite, so they cannot be scaled to 1; "
                "harvest them again, with another model.dtype if that does not help"
            )
        asked = config.optimizer
        kind = torch.optim.AdamW if asked.name == "adamw" else torch.optim.Adam
        self.optimizer: torch.optim.Optimizer = kind(
            self.sae.parameters(), betas=(asked.beta1, asked.beta2), weight_decay=asked.weight_decay, fused=True
        )
        self._turned = [p for p in self.sae.parameters() if p.ndim == 2 and not p.is_contiguous()]
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.since_fired = torch.zeros(config.d_sae, dtype=torch.long, device=self.device)
        self.bad = torch.full((), -1, device=self.device)  # the first step with a loss that is no number
        self.any_dead = False
        self.index = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def step(self) -> None:
        with products_in(self.training.products):
            self._step(self.batches.batch(self.index))

    def _step(self, batch: Batch) -> None:
        x = batch.activations.flatten(0, 1)
        if self.index == 0:
            self.sae.initialise(x * self.input_scale)
        step = Step(
            index=self.index,
            total=self.training.steps,
            x=x * self.input_scale if self.cfg.normalize_inputs else x,
            has_predecessor=batch.has_predecessor.flatten(),
            dead=self.since_fired >= self.cfg.dead_after_tokens,
            any_dead=self.any_dead,
            generator=self.generator,
        )
        forward(self.sae, self.mechanisms, step, self.training.autocast == "bfloat16")
        loss, parts = losses(self.sae, self.mechanisms, step)
        # Noted without waiting for a GPU.
        self.bad = self.bad.masked_fill((self.bad < 0) & ~loss.detach().isfinite(), self.index)
        if self.device.type == "cpu" or self.index % self.training.log_every == 0:
            self.check_finite()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for mechanism in self.mechanisms:
            mechanism.before_update(self.sae, step)
        if self.cfg.unit_norm_decoder:
            self.sae.remove_parallel_gradient()
        if self.cfg.optimizer.clip_norm is not None:
            self._clip(self.cfg.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.index, self.training.steps, self.cfg.optimizer)
        self._turn_matrices()
        self.optimizer.step()
        self._turn_matrices()
        for mechanism in self.mechanisms:
            mechanism.after_update(self.sae, self.optimizer, step)
        if self.cfg.unit_norm_decoder:
            self.sae.normalise_decoder()
        self.sae.after_step(step)
        self._count_firing(step)
        if self.index % self.training.log_every == 0 or self.index + 1 == self.training.steps:
            self._log(step, loss, parts)
        self.index += 1

    @torch.no_grad()
    def _turn_matrices(self) -> None:
        """Let W_enc, its gradient and its moments be [d_sae, d_in], as they lie in memory, or back: fused Adam copies
        what is not contiguous."""
        for parameter in self._turned:
            for tensor in (parameter, parameter.grad, *self.optimizer.state[parameter].values()):
                if isinstance(tensor, Tensor) and tensor.ndim == 2:
                    tensor.t_()

    def _clip(self, most: float) -> None:
        """Scale all gradients to a norm of `most` at most, summed in two parts: those of latents, and all others."""
        latents = {id(tensor) for tensor, _ in self.sae.per_latent()}
        parameters = [*self.sae.parameters()]
        of_latents, shared = (
            nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None and (id(p) in latents) == wanted])
            for wanted in (True, False)
        )
        norm = (of_latents.square() + shared.square()).sqrt()
        if self.device.type == "cpu" and float(norm) + 1e-6 <= most:
            return  # the factor would be 1
        nn.utils.clip_grads_with_norm_(parameters, most, norm)

    def check_finite(self) -> None:
        """Raise ArtifactError when any step's loss has been NaN or infinite."""
        if (index := int(self.bad)) >= 0:
            raise ArtifactError(
                f"the loss is NaN or infinite at step {index}; the last checkpoint is kept; lower "
                "optimizer.learning_rate or look at the activations of that step's windows, then run again"
            )

    @torch.no_grad()
    def _count_firing(self, step: Step) -> None:
        self.since_fired.add_(len(step.x)).masked_fill_(step.firing_rate > 0, 0)
        # Reading a device's value waits for the device: often enough on a GPU is every 16 steps.
        if self.device.type == "cpu" or self.index % 16 == 0:
            self.any_dead = int(self.since_fired.max()) >= self.cfg.dead_after_tokens

    @torch.no_grad()
    def _log(self, step: Step, loss: Tensor, parts: dict[str, Tensor]) -> None:
        variance = (step.x - step.x.mean(dim=0)).square().sum(dim=1).mean()
        silent = self.since_fired >= min(self.cfg.dead_after_tokens, self.training.log_every * self.data.batch_tokens)
        row = {
            "step": self.index,
            "tokens": (self.index + 1) * self.data.batch_tokens,
            "loss": float(loss.detach()),
            "l0": float(step.firing_rate.sum()),
            "explained_variance": float(1.0 - step.reconstruction / variance),
            "dead_fraction": float(silent.to(torch.float32).mean()),
        }
        row |= {name: float(part.detach()) for name, part in parts.items()}
        for mechanism in self.mechanisms:
            row |= mechanism.log()
        self.history.append(row)

    def finish(self) -> Autoencoder:
        """Once, after the last step: the trained SAE on the CPU; it takes raw inputs. Raises as `check_finite`."""
        self.check_finite()
        return self.snapshot()

    def snapshot(self) -> Autoencoder:
        """What the SAE is by now, as `finish` would give it; the run goes on with its own."""
        sae, mechanisms = copy.deepcopy((self.sae, self.mechanisms))
        sae = sae.cpu()
        for mechanism in mechanisms:
            mechanism.cpu().finish(sae)
        sae.fold_input_scale(self.input_scale)
        return sae

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs that is a tensor."""
        others = {"generator": self.generator.get_state(), "since_fired": self.since_fired}
        return self.modules.state_dict() | others | optimizer_tensors(self.optimizer)

    def state(self) -> dict[str, Any]:
        """Everything else."""
        return {"index": self.index, "seconds": self.seconds, "any_dead": self.any_dead, "history": self.history}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to the moment of a checkpoint."""
        for name, buffer in self.modules.named_buffers():
            if buffer.shape != tensors[name].shape:  # a buffer that takes the batch's shape when first used
                owner, _, own = name.rpartition(".")
                setattr(self.modules.get_submodule(owner), own, torch.empty_like(tensors[name]))
        self.modules.load_state_dict({name: tensors[name] for name in self.modules.state_dict()})
        load_optimizer_tensors(self.optimizer, tensors)
        self.generator.set_state(tensors["generator"].cpu())
        self.since_fired = tensors["since_fired"]
        self.index, self.seconds, self.any_dead = state["index"], state["seconds"], state["any_dead"]
        self.history = state["history"]


def learning_rate(index: int, total: int, config: OptimizerConfig) -> float:
    """Linear warm-up over `warmup_steps`, constant, then linear to zero over the last `decay_fraction` of `total`."""
    ramp = min(1.0, (index + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * total
    fall = min(1.0, (total - index) / decay_steps) if decay_steps else 1.0
    return config.learning_rate * ramp * fall
