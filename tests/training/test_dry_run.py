"""The GPU path without a GPU: at the size of `gemma-2-2b` no ordinary step waits for the device, and products are as
counted. Ordinary: nothing is logged or restarted, and no latent is dead. With dead latents, AuxK of the TopK family
counts them in every step, which waits; that is known and not mended."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sae_lib.autoencoders.config import SAEConfig
from sae_lib.profiles.profile import load_profile
from sae_lib.util.paths import ROOT
from tests.training.dry_run import D_IN, MISTAKES, first_runs

GEMMA = load_profile("gemma-2-2b")
RUNS = first_runs(GEMMA)
# Of one product [batch, d_in] x [d_in, d_sae], or of that size.
PRODUCT = 2 * GEMMA.data.batch_tokens * D_IN * GEMMA.training.d_sae
# Adam reads weight, gradient and two moments and writes weight and moments of W_enc and W_dec, in float32.
ADAM_BYTES = 28 * 2 * D_IN * GEMMA.training.d_sae


def products(config: SAEConfig) -> tuple[int, int]:
    """Products in bfloat16 and in float32 that no step of this SAE goes without.

    x W_enc, f W_dec, and the gradients of f, W_dec and W_enc. JumpReLU encodes in float32; the Gated SAE's frozen
    decoder and its gradient, and ATM's E[f (x - x_hat)] and decoder without masks, lie outside of autocast.
    """
    bf16, fp32 = {"jumprelu": (3, 2), "gated": (5, 2)}.get(config.architecture, (5, 0))
    masking = config.get("masking")
    without_mask = masking and masking.contribution == "leave_one_out" and "contribution" in masking.components
    return bf16, fp32 + 2 * bool(without_mask)


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.dry_run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("method", RUNS)
def test_an_ordinary_step_never_waits_for_the_device(counted: dict[str, Any], method: str) -> None:
    """Nor does it work with tensors of the host: all that the optimiser, the SAE and the trainer keep is on it."""
    assert "fault" not in counted[method], counted[method]


@pytest.mark.parametrize("method", RUNS)
def test_products_are_as_counted(counted: dict[str, Any], method: str) -> None:
    """To within the gradient of b_dec, a product of one row."""
    flop = counted[method]["flop"]
    found = tuple(flop.get(kind, 0) / PRODUCT for kind in ("bfloat16", "float32"))
    assert found == pytest.approx(products(RUNS[method].config), abs=2e-3)


@pytest.mark.parametrize("method", RUNS)
def test_a_step_moves_more_than_the_optimiser_does(counted: dict[str, Any], method: str) -> None:
    assert ADAM_BYTES < counted[method]["bytes"] < 15 * ADAM_BYTES


def test_the_dry_run_sees_what_waits_for_a_device(counted: dict[str, Any]) -> None:
    assert counted["synchronises"] == dict.fromkeys(MISTAKES, True)
