"""The synthetic data and its scores beside SAELens' own, on the same parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from sae_lib.metrics.reconstruction import reconstruction_statistics
from sae_lib.metrics.toy.score import held_out, recovery_metrics
from sae_lib.metrics.toy.synthetic import SMALL, Synthetic, synthetic
from tests.metrics.tiny_saes import make_sae

sae_lens = pytest.importorskip("sae_lens.synthetic")
ROWS = 60_000


def theirs(toy: Synthetic, roots: int, depth: int) -> Any:
    """SAELens' model as the benchmark's documentation configures it, at the size of `toy`."""
    return sae_lens.SyntheticModel(
        sae_lens.SyntheticModelConfig(
            num_features=toy.n_features,
            hidden_dim=toy.d_in,
            firing_probability=sae_lens.ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
            hierarchy=sae_lens.HierarchyConfig(
                total_root_nodes=roots, branching_factor=4, max_depth=depth, mutually_exclusive_portion=1.0,
                compensate_probabilities=True, scale_children_by_parent=True,
            ),
            orthogonalization=sae_lens.OrthogonalizationConfig(num_steps=toy.orthogonal_steps, lr=3e-4),
            correlation=sae_lens.LowRankCorrelationConfig(rank=toy.rank, correlation_scale=toy.correlation),
            mean_firing_magnitudes=sae_lens.LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=sae_lens.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            seed=toy.seed,
        )
    )  # fmt: skip


def parents(model: Any, n: int) -> list[int | None]:
    found: list[int | None] = [None] * n

    def walk(node: Any) -> None:
        for child in node.children:
            found[child.feature_index] = node.feature_index
            walk(child)

    for root in model.hierarchy.roots:
        walk(root)
    return found


DEEP = synthetic("deep", 400, 64, 100, roots=4, depth=3, orthogonal_steps=5)


@pytest.mark.parametrize("toy, roots, depth", [(SMALL, 16, 2), (DEEP, 4, 3)], ids=["small", "deep"])
def test_the_generator_is_theirs(toy: Synthetic, roots: int, depth: int):
    model = theirs(toy, roots, depth)
    generator, dictionary = model.activation_generator, model.feature_dict
    assert parents(model, toy.n_features) == list(toy.parent)
    same = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-5)
    same(generator.firing_probabilities, torch.tensor(toy.probability))
    same(generator.mean_firing_magnitudes, toy.means)
    same(generator.std_firing_magnitudes, toy.sds)
    same(model.correlation_matrix.correlation_factor, toy.factors)
    torch.testing.assert_close(dictionary.feature_vectors.data, toy.directions(), atol=2e-4, rtol=0)

    torch.manual_seed(0)
    their_acts = model.activation_generator.sample(ROWS)
    x, ours = toy.sample(ROWS, 1)
    torch.testing.assert_close(dictionary(ours).detach(), x, atol=2e-2, rtol=0)
    on = [their_acts > 0, ours > 0]
    rate = [each.float().mean(dim=0) for each in on]
    spread = (2 * rate[0] * (1 - rate[0]) / ROWS).sqrt()
    assert float(((rate[0] - rate[1]) / spread.clamp_min(1e-5)).abs().max()) < 4.5
    l0 = [each.sum(dim=1).double().mean() for each in on]
    assert float(l0[0]) == pytest.approx(float(l0[1]), rel=0.01)
    frequent = rate[0] > 0.01
    for moment in (1, 2):
        sizes = [
            a[:, frequent].pow(moment).sum(dim=0) / b[:, frequent].sum(dim=0)
            for a, b in zip((their_acts, ours), on, strict=True)
        ]
        torch.testing.assert_close(sizes[0], sizes[1], rtol=0.08 * moment, atol=0)
    # Which features are on together: roots by their correlation, a parent and its child, siblings never.
    together = [torch.corrcoef(each[:, frequent].float().T) for each in on]
    assert float((together[0] - together[1]).abs().max()) < 0.035
    assert torch.corrcoef(torch.stack([each.flatten() for each in together]))[0, 1] > 0.99


def test_the_scores_are_theirs():
    from sae_lens.evals import ExplainedVarianceCalculator
    from sae_lens.synthetic.evals import compute_classification_metrics, mean_correlation_coefficient

    sae = make_sae(d_in=SMALL.d_in, d_sae=SMALL.width)
    with torch.no_grad():
        sae.W_dec.copy_(SMALL.directions()[: SMALL.width] + 0.05 * torch.randn(SMALL.width, SMALL.d_in))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-2.0)
    x, activations = held_out(SMALL)
    found = recovery_metrics(sae, SMALL)
    f, directions = sae.encode(x).detach(), SMALL.directions()
    W_dec = sae.W_dec.detach()
    expected = compute_classification_metrics(f, activations, W_dec, directions)
    assert 0.1 < found["f1"] < 0.95
    for name, value in (("f1", expected.f1_score), ("precision", expected.precision), ("recall", expected.recall)):
        assert found[name] == pytest.approx(value, abs=1e-5), name
    assert found["mcc"] == pytest.approx(mean_correlation_coefficient(W_dec, directions), abs=1e-5)
    variance = ExplainedVarianceCalculator()
    variance.add_batch(sae.decode(f).detach(), x)
    assert reconstruction_statistics(sae, x)[0]["explained_variance"] == pytest.approx(variance.compute(), abs=1e-4)
