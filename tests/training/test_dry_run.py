"""The GPU path without a GPU: at the size of `gemma-2-2b` no ordinary step waits for the device, and products are as
counted. Ordinary: nothing is logged or restarted, and no latent is dead. With dead latents, AuxK of the TopK family
counts them in every step, which waits; that is known and not mended."""

import json
import subprocess
import sys
from typing import Any

import pytest

from sae_lib.profiles.profile import load_profile
from sae_lib.study.measures import model_size
from sae_lib.study.plan import adam_bytes, bound_note, harvest_flop, losses_flop, product_flop, products
from sae_lib.util.paths import ROOT
from tests.training.dry_run import CONTEXT, D_IN, MISTAKES, first_runs

GEMMA = load_profile("gemma-2-2b")
RUNS = first_runs(GEMMA)
PRODUCT = product_flop(D_IN, GEMMA.training.d_sae, GEMMA.data.batch_tokens)


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
def test_products_are_those_of_the_bound(counted: dict[str, Any], method: str) -> None:
    """To within the gradient of b_dec, a product of one row."""
    flop = counted[method]["flop"]
    found = tuple(flop.get(kind, 0) / PRODUCT for kind in ("bfloat16", "float32"))
    assert found == pytest.approx(products(RUNS[method].config), abs=2e-3)


@pytest.mark.parametrize("method", RUNS)
def test_a_step_moves_more_than_the_optimiser_does(counted: dict[str, Any], method: str) -> None:
    adam = adam_bytes(D_IN, GEMMA.training.d_sae)
    assert adam == pytest.approx(2.11e9, rel=1e-2) and adam < counted[method]["bytes"] < 15 * adam


def test_the_harvest_never_waits_for_the_device(counted: dict[str, Any]) -> None:
    """A batch of 32 contexts. Beside its products with weights there is attention, in contexts of 128 a few percent."""
    assert "fault" not in counted["harvest"], counted["harvest"]
    flop = counted["harvest"]["flop"]["bfloat16"] / (32 * CONTEXT)
    assert 1 < flop / harvest_flop(model_size(GEMMA.model), GEMMA.model.layer) < 1.03


@pytest.mark.parametrize("architecture", sorted({run.config.architecture for run in RUNS.values()}))
def test_an_evaluation_never_waits_for_the_device(counted: dict[str, Any], architecture: str) -> None:
    """Until its sums are read at the end. The SAE computes in float32, the language model in bfloat16."""
    assert "fault" not in counted["evaluation"], counted["evaluation"]
    tokens = GEMMA.evaluation.reconstruction.batch_contexts * CONTEXT
    flop = counted["evaluation"][architecture]["flop"]
    lm = losses_flop(model_size(GEMMA.model), GEMMA.model.layer)
    assert flop["bfloat16"] / tokens == pytest.approx(lm, rel=0.02)
    assert flop["float32"] / tokens == pytest.approx(2 * product_flop(D_IN, GEMMA.training.d_sae, 1), rel=0.01)


def test_the_dry_run_sees_what_waits_for_a_device(counted: dict[str, Any]) -> None:
    assert counted["synchronises"] == dict.fromkeys(MISTAKES, True)


def test_the_bound_by_hand() -> None:
    """5 x 154.6 GFLOP at 989 TFLOP/s and 2.11 GB at 3.35 TB/s: .78 + .63 ms. JumpReLU: two products at 67 TFLOP/s."""
    note = bound_note(GEMMA, model_size(GEMMA.model))
    assert note.startswith("a training step takes at least 1.4 ms, of ")
    assert "155 GFLOP" in note and "2.1 GB of Adam" in note and "989 TFLOP/s" in note and "\n" not in note
    # 10 M tokens by 13 blocks of 77.9 M weights: 20.5 s.
    assert "the harvest 0.34 min" in note
