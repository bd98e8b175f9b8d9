"""How fast a GPU can be at all: the matrix products and the optimiser's memory traffic at their peaks.

A step multiplies x W_enc and f W_dec, and three more products of their size are the gradients of f, W_dec and W_enc:

    product = 2 batch d_in d_sae FLOP,    Adam = 28 bytes x 2 d_in d_sae

Adam reads weight, gradient and two moments and writes weight and moments, in float32. Everything else (activation,
losses, norms, data) comes on top, so no step is faster. The language model multiplies a token by each weight of its
blocks, and by the embedding for logits. `tests/training/test_dry_run.py` counts all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_lib.profiles.runs import different, plan_runs

if TYPE_CHECKING:
    from sae_lib.autoencoders.config import SAEConfig
    from sae_lib.profiles.profile import Profile
    from sae_lib.study.measures import ModelSize

ADAM_BYTES = 28  # of a weight and a step
# NVIDIA H100 Tensor Core GPU data sheet, SXM: FLOP of dense products in a second in bfloat16 (half of what it states
# with sparsity), and in float32 without TF32, as PyTorch multiplies by default; bytes of its memory in a second.
BF16, FP32, BANDWIDTH = 989e12, 67e12, 3.35e12


def products(config: SAEConfig) -> tuple[int, int]:
    """Products `[batch, d_in] x [d_in, d_sae]`, or of that size, in bfloat16 and in float32: what no step of this SAE
    goes without under autocast. Of AuxK, which depends on the number of dead latents, none.

    JumpReLU encodes in float32, so encoder and gradient are; the Gated SAE's frozen decoder and its gradient, and ATM's
    E[f (x - x_hat)] and decoder without masks, lie outside of autocast.
    """
    bf16, fp32 = {"jumprelu": (3, 2), "gated": (5, 2)}.get(config.architecture, (5, 0))
    masking = config.get("masking")
    if masking is not None and masking.contribution == "leave_one_out" and "contribution" in masking.components:
        fp32 += 2
    return bf16, fp32


def step_seconds(config: SAEConfig, d_in: int, batch: int, *, autocast: bool) -> float:
    """Seconds that a training step takes at least.

    >>> from sae_lib.autoencoders.config import sae_config
    >>> topk = sae_config({"architecture": "topk", "d_sae": 16384, "k": 320})
    >>> round(1000 * step_seconds(topk, 2304, 2048, autocast=True), 2)
    1.41
    """
    bf16, fp32 = products(config)
    bf16, fp32 = (bf16, fp32) if autocast else (0, bf16 + fp32)
    flop = product_flop(d_in, config.d_sae, batch)
    return flop * (bf16 / BF16 + fp32 / FP32) + adam_bytes(d_in, config.d_sae) / BANDWIDTH


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


def bound_note(profile: Profile, model: ModelSize) -> str:
    """One line: the bound of a step, by method where it differs, of all SAEs that a profile trains, of the harvest, and
    of an SAE's CE and KL."""
    training, data, d_in, layer = profile.training, profile.data, model.d_in, profile.model.layer
    batch, held_out = data.batch_tokens, data.held_out_contexts * data.context_length
    runs = [run for run in different(plan_runs(profile)) if run.trained]
    autocast = training.autocast == "bfloat16"
    seconds = {run: step_seconds(run.config, d_in, batch, autocast=autocast) for run in runs}
    least, most = min(seconds.values()), max(seconds.values())
    slowest = ", ".join(sorted({run.method for run, value in seconds.items() if value == most}))
    hours = sum(seconds.values()) * training.steps / 3600
    lm_peak = FP32 if profile.model.dtype == "float32" else BF16
    harvest, losses = data.train_tokens * harvest_flop(model, layer), held_out * losses_flop(model, layer)
    flop, traffic = product_flop(d_in, training.d_sae, batch), adam_bytes(d_in, training.d_sae)
    return (
        f"a training step takes at least {1e3 * least:.1f} ms, of {slowest} {1e3 * most:.1f} (products of "
        f"{flop / 1e9:.0f} GFLOP, five or more; {traffic / 1e9:.1f} GB of Adam), {len(runs)} SAEs {hours:.2g} h, the "
        f"harvest {harvest / lm_peak / 60:.2g} min, CE and KL of an SAE {losses / lm_peak:.2g} s, at the peak of one "
        f"H100 SXM ({BF16 / 1e12:.0f} TFLOP/s in bf16, {FP32 / 1e12:.0f} in fp32, {BANDWIDTH / 1e12:.2f} TB/s)"
    )
