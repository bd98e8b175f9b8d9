"""T-SAE's term: which tokens are paired, and what is asked of a pair."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from sae_lib.mechanisms.temporal_contrast import ContrastConfig, TemporalContrast, contrast, window_starts
from tests.tiny_training import make_step, tiny_config

# Two windows of three tokens; latent 2 is not among the first two.
LINKED = torch.tensor([False, True, True, False, True, True])
F = torch.tensor([[1.0, 0, 9], [2, 0, 9], [1, 0, 9], [0, 1.0, 9], [0, 3, 9], [1, 1, 9]])


def term(f: torch.Tensor = F, **settings: Any) -> torch.Tensor:
    mechanism = TemporalContrast(ContrastConfig(**{"coefficient": 1.0, "share": 2 / 3, **settings}), f.shape[1])
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0], [1, 1], [1, 1]])
    loss = mechanism.loss(make_step(f, has_predecessor=LINKED, x=x))
    assert loss is not None
    return loss


def test_window_starts():
    assert window_starts(LINKED).tolist() == [0, 0, 0, 3, 3, 3]
    assert window_starts(torch.tensor([False, False, True])).tolist() == [0, 1, 1]


def test_contrast_by_hand():
    """Pairs (1, 0), (2, 1), (4, 3), (5, 4): z (2,0) (1,0) (0,3) (1,1), z' (1,0) (2,0) (0,1) (0,3). A pair's negatives
    are those of the other window."""
    logits = [[2.0, None, 0.0, 0.0], [None, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, None], [1.0, 2.0, None, 3.0]]

    def missed(rows: list[list[float | None]]) -> float:
        each = [math.log(sum(math.exp(v) for v in row if v is not None)) - (row[i] or 0) for i, row in enumerate(rows)]
        return sum(each) / len(each)

    columns = [list(column) for column in zip(*logits, strict=True)]
    assert float(term()) == pytest.approx((missed(logits) + missed(columns)) / 2, rel=1e-6)
    assert float(term(coefficient=0.25)) == pytest.approx(float(term()) / 4)


def test_cosines_do_not_see_the_size():
    scaled = F * torch.tensor([1.0, 5, 2, 7, 1, 3])[:, None]
    assert float(term(scaled, similarity="cosine")) == pytest.approx(float(term(similarity="cosine")), rel=1e-5)
    assert float(term(scaled)) != pytest.approx(float(term()), rel=0.1)
    silent = F.clone()
    silent[:, :2] = 0.0
    assert float(term(silent, similarity="cosine")) == pytest.approx(math.log(3)), "no code, no telling apart"


def test_any_earlier_token_of_the_window():
    """Only row 2 has two: its partner is row 1 or row 0, half the time each."""
    f, counts = torch.zeros(6, 3), Counter[float]()
    f[:, 0] = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    mechanism = TemporalContrast(ContrastConfig(pairing="earlier"), 3)
    step = make_step(f, has_predecessor=LINKED)
    for _ in range(400):
        loss = mechanism.loss(step)
        assert loss is not None
        counts[round(float(loss), 4)] += 1
    assert len(counts) == 2 and counts.most_common()[0][1] == pytest.approx(200, abs=40)


def test_gradient_reaches_the_first_latents_of_both_tokens():
    f = F.clone().requires_grad_()
    term(f).backward()
    assert f.grad is not None and not f.grad[:, 2].any() and f.grad[[0, 3], :2].any(dim=1).all()


def test_a_batch_without_pairs_has_no_term():
    mechanism = TemporalContrast(ContrastConfig(), 3)
    assert mechanism.loss(make_step(F, has_predecessor=torch.zeros(6, dtype=torch.bool))) is None


def test_one_pair_has_nothing_to_be_told_from():
    assert float(contrast(torch.tensor([[3.0]]), torch.tensor([0]))) == 0.0


def test_what_the_two_methods_share_and_what_not():
    released, stated = (tiny_config(m).model_dump() for m in ("t_sae", "t_sae_stated"))
    assert {n for n in released if released[n] != stated[n]} == {"balance", "auxk_coefficient", "contrast", "optimizer"}
    # Weights 0.2 and 0.8 of two errors, their mean, times 2.5.
    assert released["balance"] == pytest.approx(2.5 * 0.2 / 2)
    assert released["contrast"]["coefficient"] == pytest.approx(2.5 * 0.1)
    assert released["prefixes"] == (0.2, 1.0) and released["contrast"]["share"] == 0.2
