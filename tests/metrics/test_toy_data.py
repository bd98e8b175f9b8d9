import numpy as np
import pytest
import torch

from sae_lib.metrics.toy.data import NORM_SPREAD, PAIR, RARE, SEQUENCE, TREE, Toy, chain

# Expected shares of the features: parents, all children, singles.
MARGINALS = {
    "pair": [0.25, 0.05, 0.05, 0.05],
    "tree": [0.15] * 3 + [0.03] * 9 + [0.05] * 8,
    "rare": [0.01] * 3 + [0.002] * 9 + [0.05] * 8,
}


@pytest.mark.parametrize("toy", [PAIR, TREE, RARE], ids=lambda toy: toy.name)
def test_samples_follow_the_definition(toy: Toy):
    directions = toy.directions()
    torch.testing.assert_close(directions @ directions.T, torch.eye(toy.n_features), atol=1e-5, rtol=0)
    x, activations = toy.sample(100_000, 1)
    assert x.shape == (100_000, toy.d_in)
    torch.testing.assert_close(x @ directions.T, activations, atol=1e-4, rtol=0)
    on = activations > 0
    torch.testing.assert_close(on.float().mean(dim=0), torch.tensor(MARGINALS[toy.name]), atol=0.004, rtol=0)
    for parent, children in toy.children.items():
        assert not (on[:, children] & ~on[:, parent, None]).any(), "a child without its parent"
        assert on[:, children].sum(dim=1).max() == 1
    # Families and singles are independent of one another, and so are neighbouring rows.
    roots = [i for i, parent in enumerate(toy.parent) if parent is None]
    correlation = np.corrcoef(on[:, roots].T.numpy())
    assert np.abs(correlation - np.eye(len(roots))).max() < 0.02
    assert abs(np.corrcoef(on[1:, 0], on[:-1, 0])[0, 1]) < 0.02
    for feature in activations.T:
        assert len(feature.unique()) == 2, "off, or on with the feature's own norm"
    assert (activations[on] - 1).abs().max() < 4 * NORM_SPREAD and activations[on].std() > 0.2 * NORM_SPREAD


def test_true_l0():
    assert pytest.approx(1.12) == TREE.true_l0 and pytest.approx(0.4) == PAIR.true_l0
    for toy in (TREE, PAIR):
        _, activations = toy.sample(50_000, 2)
        assert float((activations > 0).sum(dim=1).double().mean()) == pytest.approx(toy.true_l0, abs=0.02)
    assert (PAIR.d_in, PAIR.n_features, TREE.d_in, TREE.n_features) == (50, 4, 20, 20)
    assert TREE.children == {0: [3, 4, 5], 1: [6, 7, 8], 2: [9, 10, 11]}
    assert TREE.singles == list(range(12, 20)) and PAIR.singles == [2, 3]


def test_seeds_of_samples():
    one, again, other = (TREE.sample(50, seed)[0] for seed in (1, 1, 2))
    assert one.shape == (50, 20)
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_roots_persist_and_children_do_not(rho: float):
    toy = chain(rho)
    _, activations = toy.sample(400_000, 3)
    on = (activations > 0).view(-1, SEQUENCE, toy.n_features)
    # Marginals are those of the tree at every place of a sequence.
    expected = torch.tensor(MARGINALS["tree"])
    torch.testing.assert_close(on[:, 0].float().mean(dim=0), expected, atol=0.006, rtol=0)
    torch.testing.assert_close(on[:, -1].float().mean(dim=0), expected, atol=0.006, rtol=0)
    before, after = on[:, :-1].flatten(0, 1), on[:, 1:].flatten(0, 1)
    for feature in (0, 12):  # a parent and a single
        p = toy.probability[feature]
        stays = after[before[:, feature], feature].float().mean()
        comes = after[~before[:, feature], feature].float().mean()
        assert float(stays) == pytest.approx(rho + (1 - rho) * p, abs=0.01)
        assert float(comes) == pytest.approx((1 - rho) * p, abs=0.005)
    # Given that the parent stays on, which child is on says nothing about the next token's child.
    family = before[:, 0] & after[:, 0]
    same = after[family & before[:, 3], 3].float().mean()
    assert float(same) == pytest.approx(0.2, abs=0.01)
    # Sequences are independent of one another.
    last, first = on[:-1, -1, 0].numpy(), on[1:, 0, 0].numpy()
    assert abs(np.corrcoef(last, first)[0, 1]) < 0.02


def test_chain_without_persistence_is_the_tree():
    assert chain(0.0) == TREE and chain(0.5) != TREE and chain(0.5).name == "chain"
