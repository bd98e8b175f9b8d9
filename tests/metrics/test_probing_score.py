"""Sparse probing of an SAE: hand-made latents, and the whole metric written out once more."""

from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.reference import ProbingPart
from sae_lib.metrics.probing.score import evaluate_probing
from sae_lib.metrics.probing.tasks import ProbingTask
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae, probing_part, sae_of

CONFIG = ProbingConfig(ks=(1, 2))


def reference_of(residual: torch.Tensor, lengths: list[int], tasks: list[ProbingTask]) -> list[ProbingPart]:
    accuracies = [0.75 + 0.05 * i for i in range(len(tasks))]
    return [probing_part(residual, torch.tensor(lengths), tasks, accuracies)]


def task(dataset: str, name: str, positive: torch.Tensor, tested: int) -> ProbingTask:
    """Trained on the texts before `tested`, and tested on the others."""
    texts = torch.arange(len(positive))
    return ProbingTask(dataset, name, texts[:tested], positive[:tested], texts[tested:], positive[tested:])


def test_a_latent_that_is_the_label_scores_one_and_noise_does_not():
    """Texts of two tokens. Latent 0 is on at one token of each positive text; nothing tells the other task."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(120) % 2 == 0
    unseen = torch.rand(120, generator=generator) < 0.5
    residual = torch.rand(240, 2, generator=generator) * 0.01
    residual[0::2, 0] += positive.float()
    sae = sae_of(torch.eye(2), torch.eye(2))
    tasks = [task("seen", "a", positive, 60), task("seen", "b", ~positive, 60), task("unseen", "c", unseen, 60)]
    result = evaluate_probing(sae, reference_of(residual, [2] * 120, tasks), CONFIG)
    assert list(result.tables["tasks"].columns) == ["dataset", "task", "k1", "k2", "all", "train", "test"]
    assert result.tables["tasks"]["dataset"].tolist() == ["seen", "seen", "unseen"]
    assert result.tables["tasks"]["k1"].tolist()[:2] == [1.0, 1.0]
    assert 0.3 < result.tables["tasks"]["k1"][2] < 0.7
    assert result.tables["tasks"]["train"].tolist() == result.tables["tasks"]["test"].tolist() == [60, 60, 60]
    # Within datasets first, then across: not the mean over the three tasks.
    assert result.summary["probing_k1"] == pytest.approx((1 + result.tables["tasks"]["k1"][2]) / 2)
    assert result.summary["probing_all"] == pytest.approx(((0.75 + 0.8) / 2 + 0.85) / 2)
    assert result.summary["probing_chance"] == 0.5
    assert set(result.summary) == {"probing_k1", "probing_k2", "probing_all", "probing_chance"}


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_the_whole_metric_text_by_text(architecture):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 9, (150,), generator=generator).tolist()
    residual = torch.randn(sum(lengths), 12, generator=generator)
    sums = torch.stack([text.mean(dim=0) for text in residual.split(lengths)])
    tasks = [
        task("d", f"dimension {i}", sums[:, i] + 0.3 * torch.randn(150, generator=generator) > 0, 100) for i in range(4)
    ]
    options: dict[str, Any] = {"k": 6} if architecture == "topk" else {}
    sae = make_sae(architecture=architecture, d_sae=40, d_in=12, seed=3, **options)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 3, 40)[:, None])
    result = evaluate_probing(sae, reference_of(residual, lengths, tasks), ProbingConfig(ks=(1, 2, 5)))
    by_text = []
    for text in residual.split(lengths):
        latents = torch.stack([sae.encode(token) for token in text]) * sae.W_dec.norm(dim=1)
        by_text.append(latents.mean(dim=0))
    means = torch.stack(by_text).detach()
    for row, (_, _, train, labels, test, truth) in zip(result.tables["tasks"].to_dict("records"), tasks, strict=True):
        gap = {i: abs(means[train][labels, i].mean() - means[train][~labels, i].mean()).item() for i in range(40)}
        best = sorted(gap, key=gap.__getitem__, reverse=True)
        for k in (1, 2, 5):
            probe = LogisticRegression(max_iter=1000).fit(means[train][:, best[:k]], labels)
            assert row[f"k{k}"] == pytest.approx(probe.score(means[test][:, best[:k]], truth), abs=1e-9)


def test_the_scale_of_decoder_rows_moves_into_the_latents():
    generator = torch.Generator().manual_seed(2)
    residual = torch.randn(300, 8, generator=generator)
    positive = residual.view(100, 3, 8)[:, :, 0].mean(dim=1) > 0
    reference = reference_of(residual, [3] * 100, [task("d", "t", positive, 60)])
    sae = make_sae(architecture="standard", d_sae=24, d_in=8, seed=0)
    first = evaluate_probing(sae, reference, CONFIG)
    scale = torch.linspace(0.2, 5, 24)
    with torch.no_grad():  # the same SAE, written differently
        sae.W_enc.div_(scale)
        sae.b_enc.div_(scale)
        sae.W_dec.mul_(scale[:, None])
    pd.testing.assert_frame_equal(evaluate_probing(sae, reference, CONFIG).tables["tasks"], first.tables["tasks"])


def test_an_sae_of_another_width_or_with_nan():
    positive = torch.arange(20) % 2 == 0
    reference = reference_of(torch.randn(20, 8), [1] * 20, [task("d", "t", positive, 10)])
    with pytest.raises(ArtifactError, match="d_in is 4, the reference's residual stream has 8"):
        evaluate_probing(make_sae(architecture="standard", d_sae=6, d_in=4), reference, CONFIG)
    sae = make_sae(architecture="standard", d_sae=6, d_in=8)
    with torch.no_grad():
        sae.b_enc[2] = float("nan")
    with pytest.raises(ArtifactError, match="NaN"):
        evaluate_probing(sae, reference, CONFIG)


def test_fewer_latents_than_k():
    positive = torch.arange(20) % 2 == 0
    reference = reference_of(torch.randn(20, 8), [1] * 20, [task("d", "t", positive, 10)])
    result = evaluate_probing(make_sae(architecture="standard", d_sae=3, d_in=8), reference, ProbingConfig(ks=(3, 5)))
    assert result.tables["tasks"]["k3"].tolist() == result.tables["tasks"]["k5"].tolist()
