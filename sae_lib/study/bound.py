"""How fast a GPU can be at all: the matrix products and the optimiser's memory traffic at their peaks.

A step multiplies x W_enc and f W_dec, and three more products of their size are the gradients of f, W_dec and W_enc:

    product = 2 batch d_in d_sae FLOP,    Adam = 28 bytes x 2 d_in d_sae

Adam reads weight, gradient and two moments and writes weight and moments, in float32. Everything else (activation,
losses, norms, data) comes on top, so no step is faster. The language model multiplies a token by each weight of its
blocks, and by the embedding for logits. `tests/training/test_dry_run.py` counts all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sae_lib.profiles.runs import different, plan_runs

if TYPE_CHECKING:
    from sae_lib.autoencoders.config import SAEConfig
    from sae_lib.profiles.profile import Profile
    from sae_lib.study.measures import ModelSize

ADAM_BYTES = 28  # of a weight and a step


class Peak(NamedTuple):
    """What a device does at most in a second."""

    name: str
    bf16: float
    """FLOP of dense products in bfloat16."""
    fp32: float
    """In float32, without TF32, as PyTorch multiplies by default."""
    bandwidth: float
    """Bytes of its memory."""


# NVIDIA H100 Tensor Core GPU data sheet, SXM: 1,979 TFLOP/s in bfloat16 with sparsity, half of it without; 67 TFLOP/s
# in float32; 3.35 TB/s.
H100 = Peak("H100 SXM", 989e12, 67e12, 3.35e12)


class Products(NamedTuple):
    """Products `[batch, d_in] x [d_in, d_sae]`, or of that size, in one step of a run with autocast."""

    bf16: int
    fp32: int


def products(config: SAEConfig) -> Products:
    """Those that no step of this SAE goes without. Of AuxK, which depends on the number of dead latents, none.

    JumpReLU encodes in float32, so encoder and gradient are; the Gated SAE's frozen decoder and its gradient, and ATM's
    E[f (x - x_hat)] and decoder without masks, lie outside of autocast.
    """
    found = Products(5, 0)
    if config.architecture == "jumprelu":
        found = Products(3, 2)
    elif config.architecture == "gated":
        found = Products(5, 2)
    masking = config.get("masking")
    if masking is not None and masking.contribution == "leave_one_out" and "contribution" in masking.components:
        found = Products(found.bf16, found.fp32 + 2)
    return found


def step_seconds(config: SAEConfig, d_in: int, batch: int, *, autocast: bool, peak: Peak = H100) -> float:
    """Seconds that a training step takes at least.

    >>> from sae_lib.autoencoders.config import sae_config
    >>> topk = sae_config({"architecture": "topk", "d_sae": 16384, "k": 320})
    >>> round(1000 * step_seconds(topk, 2304, 2048, autocast=True), 2)
    1.41
    """
    count, flop = products(config), product_flop(d_in, config.d_sae, batch)
    bf16, fp32 = count if autocast else (0, sum(count))
    return flop * (bf16 / peak.bf16 + fp32 / peak.fp32) + adam_bytes(d_in, config.d_sae) / peak.bandwidth


def product_flop(d_in: int, d_sae: int, batch: int) -> int:
    """Floating-point operations of one product."""
    return 2 * batch * d_in * d_sae


def adam_bytes(d_in: int, d_sae: int) -> int:
    """Memory traffic of the optimiser in one step, of W_enc and W_dec."""
    return ADAM_BYTES * 2 * d_in * d_sae


def harvest_flop(model: ModelSize, layer: int) -> float:
    """Of a token: the blocks up to `layer`, without attention, which multiplies by no weights."""
    return 2 * model.blocks * (layer + 1) / model.layers


def losses_flop(model: ModelSize, layer: int) -> float:
    """Of a token, for CE and KL of an SAE: the later blocks, and the head for the clean and the changed stream."""
    later = model.blocks * (model.layers - layer - 1) / model.layers
    return 2 * (later + 2 * model.d_in * model.vocab)


def bound_note(profile: Profile, model: ModelSize, peak: Peak = H100) -> str:
    """One line: the bound of a step, by method where it differs, of all SAEs that a profile trains, of the harvest, and
    of an SAE's CE and KL."""
    training, data, d_in, layer = profile.training, profile.data, model.d_in, profile.model.layer
    batch, held_out = data.batch_tokens, data.held_out_contexts * data.context_length
    autocast = training.autocast == "bfloat16"
    runs = [run for run in different(plan_runs(profile)) if run.trained]
    seconds = {run: step_seconds(run.config, d_in, batch, autocast=autocast, peak=peak) for run in runs}
    least, most = min(seconds.values()), max(seconds.values())
    slowest = ", ".join(sorted({run.method for run, value in seconds.items() if value == most}))
    hours = sum(seconds.values()) * training.steps / 3600
    lm_peak = peak.fp32 if profile.model.dtype == "float32" else peak.bf16
    harvest, losses = data.train_tokens * harvest_flop(model, layer), held_out * losses_flop(model, layer)
    flop, traffic = product_flop(d_in, training.d_sae, batch), adam_bytes(d_in, training.d_sae)
    return (
        f"a training step takes at least {1e3 * least:.1f} ms, of {slowest} {1e3 * most:.1f} (products of "
        f"{flop / 1e9:.0f} GFLOP, five or more; {traffic / 1e9:.1f} GB of Adam), {len(runs)} SAEs {hours:.2g} h, the "
        f"harvest {harvest / lm_peak / 60:.2g} min, CE and KL of an SAE {losses / lm_peak:.2g} s, at "
        f"the peak of one {peak.name} ({peak.bf16 / 1e12:.0f} TFLOP/s in bf16, {peak.fp32 / 1e12:.0f} in fp32, "
        f"{peak.bandwidth / 1e12:.2f} TB/s)"
    )
