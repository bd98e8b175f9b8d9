"""From one token to the next: hand-computed cases, and plain NumPy on random ones."""

import math

import numpy as np
import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.stability import score
from sae_lib.metrics.stability.score import token_stability
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae


def identity_sae(n: int) -> Autoencoder:
    """Its latents are the positive part of its input."""
    sae = make_sae(architecture="standard", d_sae=n, d_in=n)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc.copy_(torch.eye(n))
        sae.W_dec.copy_(torch.eye(n))
    return sae


def linked(*breaks: int, rows: int) -> torch.Tensor:
    """Rows in contexts that begin at 0 and at `breaks`."""
    mask = torch.ones(rows, dtype=torch.bool)
    mask[[0, *breaks]] = False
    return mask


def by_hand(f: np.ndarray, has_predecessor: np.ndarray, min_density: float) -> tuple[float, float, int]:
    """Change, autocorrelation and number of latents, from their definitions."""
    later = np.flatnonzero(has_predecessor)
    a, b = f[later - 1], f[later]
    either = (a != 0) | (b != 0)
    ends = np.concatenate([a, b])
    change = np.abs(b - a)[either].mean() / ends[ends != 0].mean()
    frequent = [i for i in range(f.shape[1]) if (ends[:, i] != 0).mean() >= min_density]
    frequent = [i for i in frequent if a[:, i].std() > 0 and b[:, i].std() > 0]
    return change, np.mean([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in frequent]), len(frequent)


def test_three_tokens_by_hand():
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    found = token_stability(identity_sae(2), rows, linked(rows=3))
    # Changes 2, 3 and 2 of the three that are on at either end; activations 1 and 3, then 3 and 2.
    assert found["token_change"] == pytest.approx(((2 + 3 + 2) / 3) / ((1 + 3 + 3 + 2) / 4))
    # Latent 0: (1, 3), (3, 0): falling. Latent 1: never on at an earlier token, so it has no correlation.
    assert found["token_autocorrelation"] == pytest.approx(-1)
    assert found["token_latents"] == 1 and found["token_pairs"] == 2


def test_what_stays_and_what_never_stays():
    steady = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = token_stability(identity_sae(2), steady, linked(2, rows=4))
    assert found["token_change"] == 0 and found["token_pairs"] == 2
    assert found["token_autocorrelation"] == pytest.approx(1)
    changing = torch.eye(5)
    assert token_stability(identity_sae(5), changing, linked(rows=5))["token_change"] == pytest.approx(1)
    silent = token_stability(identity_sae(2), -steady, linked(2, rows=4))
    assert math.isnan(silent["token_change"]) and math.isnan(silent["token_autocorrelation"])
    assert silent["token_latents"] == 0
    alone = token_stability(identity_sae(2), steady, torch.zeros(4, dtype=torch.bool))
    assert alone["token_pairs"] == 0 and math.isnan(alone["token_change"])


@pytest.mark.parametrize("elements", [2**22, 64, 1])
@pytest.mark.parametrize("architecture", [{"architecture": "standard"}, {"architecture": "topk", "k": 5}])
def test_definitions_on_random_rows(architecture: dict, elements: int, monkeypatch):
    monkeypatch.setattr(score, "_CHUNK_ELEMENTS", elements)
    sae = make_sae(d_sae=24, d_in=8, seed=5, **architecture)
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-2.5, 0.5, 24))
        sae.W_dec.mul_(torch.linspace(0.5, 3, 24)[:, None])
    rows = torch.randn(150, 8, generator=torch.Generator().manual_seed(1)).cumsum(0) * 0.3
    mask = linked(1, 40, 41, 90, rows=150)
    with torch.no_grad():
        f = (sae.encode(rows) * sae.W_dec.norm(dim=1)).double().numpy()
    change, autocorrelation, latents = by_hand(f, mask.numpy(), 0.1)
    monkeypatch.setattr(score, "MIN_DENSITY", 0.1)
    found = token_stability(sae, rows, mask)
    assert found["token_change"] == pytest.approx(change, rel=1e-5)
    assert found["token_autocorrelation"] == pytest.approx(autocorrelation, rel=1e-4)
    assert found["token_latents"] == latents < 24


def test_autocorrelation_of_a_known_process_and_of_the_same_tokens_shuffled():
    generator = np.random.default_rng(0)
    n, rho = 20_000, 0.6
    process = np.empty((n, 2))
    process[0] = 0
    for t in range(1, n):
        process[t] = rho * process[t - 1] + math.sqrt(1 - rho**2) * generator.standard_normal(2)
    rows = torch.from_numpy(process + 10).float()  # far above 0: the ReLU cuts nothing off
    found = token_stability(identity_sae(2), rows, linked(rows=n))
    assert found["token_autocorrelation"] == pytest.approx(rho, abs=0.02)
    assert found["token_autocorrelation_shuffled"] == pytest.approx(0, abs=0.02)
    # E|x - y| of two normals with correlation rho is 2 sqrt((1 - rho) / pi).
    assert found["token_change"] == pytest.approx(2 * math.sqrt((1 - rho) / math.pi) / 10, rel=0.02)
    assert found["token_change_shuffled"] == pytest.approx(2 * math.sqrt(1 / math.pi) / 10, rel=0.02)


def test_a_large_offset_costs_no_precision():
    wave = torch.sin(torch.arange(400.0) / 3)[:, None]
    small = token_stability(identity_sae(1), wave + 2, linked(rows=400))["token_autocorrelation"]
    large = token_stability(identity_sae(1), wave + 2000, linked(rows=400))["token_autocorrelation"]
    assert large == pytest.approx(small, abs=1e-4)
    constant = token_stability(identity_sae(1), torch.full((50, 1), 0.1), linked(rows=50))
    assert constant["token_latents"] == 0 and constant["token_change"] == 0


def test_scale_and_context_borders():
    rows = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) - 0.4
    mask = linked(20, 40, rows=60)
    sae = identity_sae(3)
    found = token_stability(sae, rows, mask)
    assert token_stability(sae, rows * 7, mask) == pytest.approx(found, rel=1e-5)
    # The same function of the input, with other norms of the decoder rows.
    scale = torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        sae.W_enc.mul_(scale)
        sae.W_dec.div_(scale[:, None])
    assert token_stability(sae, rows, mask) == pytest.approx(found, rel=1e-5)
    # Contexts in another order: no pair goes over their borders.
    moved = torch.cat([rows[40:], rows[:20], rows[20:40]])
    again = token_stability(identity_sae(3), moved, mask)
    assert again["token_change"] == pytest.approx(found["token_change"], rel=1e-5)
    assert again["token_autocorrelation"] == pytest.approx(found["token_autocorrelation"], rel=1e-5)
    assert again["token_change_shuffled"] == token_stability(identity_sae(3), moved, mask)["token_change_shuffled"]
    assert token_stability(identity_sae(3), moved, mask, seed=1) != again


def test_bad_input():
    rows, mask = torch.ones(4, 3), linked(rows=4)
    with pytest.raises(ArtifactError, match="d_in is 2, the rows have 3"):
        token_stability(identity_sae(2), rows, mask)
    broken = identity_sae(3)
    with torch.no_grad():
        broken.b_enc[1] = math.nan
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        token_stability(broken, rows, mask)
