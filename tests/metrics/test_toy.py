from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sae_lib.autoencoders import Autoencoder
from sae_lib.metrics import toy as toy_module
from sae_lib.metrics.toy import (
    NORM_SPREAD,
    PAIR,
    TREE,
    Toy,
    absorption_picture,
    match_latents,
    toy_config,
    toy_metrics,
    train_toy,
)
from sae_lib.report.results import Results
from tests.metrics.tiny_saes import make_sae

# Expected shares of the features: parents, all children, singles.
MARGINALS = {"pair": [0.25, 0.05, 0.05, 0.05], "tree": [0.15] * 3 + [0.03] * 9 + [0.05] * 8}


@pytest.mark.parametrize("toy", [PAIR, TREE], ids=lambda toy: toy.name)
def test_samples_follow_the_definition(toy: Toy):
    directions = toy.directions()
    torch.testing.assert_close(directions @ directions.T, torch.eye(toy.n_features), atol=1e-5, rtol=0)
    x, activations = toy.sample(100_000, 1, directions)
    assert x.shape == (100_000, toy.d_in)
    torch.testing.assert_close(x @ directions.T, activations, atol=1e-4, rtol=0)
    on = activations > 0
    torch.testing.assert_close(on.float().mean(dim=0), torch.tensor(MARGINALS[toy.name]), atol=0.004, rtol=0)
    for parent, children in toy.children.items():
        assert not (on[:, children] & ~on[:, parent, None]).any(), "a child without its parent"
        assert on[:, children].sum(dim=1).max() == 1
    # Families and singles are independent of one another.
    roots = [i for i, parent in enumerate(toy.parent) if parent is None]
    correlation = np.corrcoef(on[:, roots].T.numpy())
    assert np.abs(correlation - np.eye(len(roots))).max() < 0.02
    for feature in activations.T:
        assert len(feature.unique()) == 2, "off, or on with the feature's own norm"
    assert (activations[on] - 1).abs().max() < 4 * NORM_SPREAD and activations[on].std() > 0.2 * NORM_SPREAD


def test_true_l0():
    assert pytest.approx(1.12) == TREE.true_l0 and pytest.approx(0.4) == PAIR.true_l0
    for toy in (TREE, PAIR):
        _, activations = toy.sample(50_000, 2, toy.directions())
        assert float((activations > 0).sum(dim=1).double().mean()) == pytest.approx(toy.true_l0, abs=0.02)
    assert (PAIR.d_in, PAIR.n_features, TREE.d_in, TREE.n_features) == (50, 4, 20, 20)
    assert TREE.children == {0: [3, 4, 5], 1: [6, 7, 8], 2: [9, 10, 11]}


def test_seeds_of_samples():
    directions = TREE.directions()
    one, again, other = (TREE.sample(50, seed, directions)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def perfect(toy: Toy) -> Autoencoder:
    """Latent i is feature n - 1 - i, with a threshold that noise does not pass."""
    sae = make_sae(d_in=toy.d_in, d_sae=toy.n_features)
    with torch.no_grad():
        sae.W_dec.copy_(toy.directions().flip(0))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.fill_(-0.01)
    return sae


def absorbing(toy: Toy) -> Autoencoder:
    """Children carry their parent's direction, and their presence silences the parent's latent."""
    sae = perfect(toy)
    n = toy.n_features - 1
    with torch.no_grad():
        for parent, children in toy.children.items():
            for child in children:
                sae.W_dec[n - child] = sae.W_dec[n - child] + sae.W_dec[n - parent]
                sae.W_enc[:, n - parent] -= 3.0 * toy.directions()[child]
        sae.W_dec[n - 1] = perfect(toy).W_dec[n - 1]
    return sae


@pytest.mark.parametrize("toy", [PAIR, TREE], ids=lambda toy: toy.name)
def test_metrics_of_the_true_dictionary(toy: Toy):
    found = toy_metrics(perfect(toy), toy)
    assert found["parent_silent_rate"] == found["miss_rate"] == 0.0
    assert found["cos_child_parent"] == pytest.approx(0.0, abs=1e-5)
    assert found["cos_parent_parent"] == pytest.approx(1.0, abs=1e-5)
    assert found["explained_variance"] > 0.999
    assert found["l0"] == pytest.approx(found["true_l0"], rel=1e-3) == pytest.approx(toy.true_l0, abs=0.03)


def test_metrics_of_an_absorbing_dictionary():
    found = toy_metrics(absorbing(TREE), TREE)
    assert found["parent_silent_rate"] == 1.0 and found["miss_rate"] == 0.0
    assert found["cos_child_parent"] == pytest.approx(1 / math.sqrt(2), abs=0.01)
    assert found["cos_parent_parent"] == pytest.approx(2 / 3 + 1 / 3, abs=0.35)
    assert found["explained_variance"] > 0.95, "absorption costs no reconstruction"
    assert found["l0"] < found["true_l0"], "that is why sparsity rewards it"


def test_silent_and_missed_are_told_apart():
    sae = perfect(PAIR)
    with torch.no_grad():
        sae.b_enc[3] = -100.0  # the parent's latent never fires
    found = toy_metrics(sae, PAIR)
    assert found["parent_silent_rate"] == found["miss_rate"] == 1.0
    assert found["explained_variance"] < 0.5


def test_latents_are_matched_one_to_one():
    generator = torch.Generator().manual_seed(0)
    activations = (torch.rand(500, 5, generator=generator) < 0.3) * 1.0
    order = torch.tensor([3, 0, 4, 1, 2, 6])
    spare = torch.rand(500, 2, generator=generator)
    f = torch.cat([activations * 7.0, spare], dim=1)[:, torch.tensor([1, 3, 4, 0, 2, 5, 6])]
    assert match_latents(f, activations).tolist() == [3, 0, 4, 1, 2]
    assert len(order) == 6
    silent = f.clone()
    silent[:, 0] = 0.0  # a dead latent has no correlation, and no NaN
    matched = match_latents(silent, activations)
    assert len(set(matched.tolist())) == 5 and matched.tolist()[2:] == [4, 1, 2]


def test_training_uses_the_seed_and_learns():
    config = toy_config("standard", PAIR)
    one, history = train_toy(config, PAIR, seed=1, steps=150, batch=128)
    again, _ = train_toy(config, PAIR, seed=1, steps=150, batch=128)
    other, _ = train_toy(config, PAIR, seed=2, steps=150, batch=128)
    assert torch.equal(one.W_enc, again.W_enc) and not torch.equal(one.W_enc, other.W_enc)
    assert history["reconstruction"].iloc[-1] < 0.7 * history["reconstruction"].iloc[0]
    # What is returned takes raw inputs.
    assert toy_metrics(one, PAIR)["explained_variance"] == pytest.approx(
        history["explained_variance"].iloc[-1], abs=0.1
    )


def test_configurations():
    standard, topk = toy_config("standard", TREE), toy_config("topk", TREE)
    assert standard.d_sae == topk.d_sae == 20 and topk.k == 2 and standard.masking is None
    assert toy_config("jumprelu", TREE).target_l0 == pytest.approx(1.12)
    atm = toy_config("atm", TREE, {"masking": {"c": 0.5}})
    assert atm.masking and (atm.masking.c, atm.masking.warmup_steps) == (0.5, 200)
    assert atm.l1_coefficient == standard.l1_coefficient, "the methods are compared at one coefficient"


def test_picture(monkeypatch, tmp_path):
    asked = []

    def instead(config, toy, seed):
        asked.append((config, seed))
        _, history = train_toy(config, toy, seed, steps=3, batch=32)
        return absorbing(toy), history.assign(mask_rate=0.25 + seed / 100)

    monkeypatch.setattr(toy_module, "train_toy", instead)
    frame, summary = absorption_picture(("dropout", "standard", "atm"), (1, 2))
    assert [config.dropout.probability for config, _ in asked if config.dropout] == [0.26, 0.27], "as often as ATM"
    assert list(frame) == ["method", "seed", "kind", "row", "latent", "value"]
    assert set(summary) >= {"method", "seed", "parent_silent_rate", "miss_rate", "cos_child_parent", "true_l0"}
    assert len(summary) == 6 and len(frame) == 6 * (5 * 4 + 4 * 4)
    one = frame[(frame["method"] == "atm") & (frame["seed"] == 1)]
    activation = one[one["kind"] == "activation"].pivot(index="row", columns="latent", values="value")
    assert list(dict.fromkeys(one["latent"])) == ["parent", "child 1", "child 2", "child 3"]
    assert activation.loc["parent only", "parent"] == pytest.approx(1.0, abs=0.12)
    assert activation.loc["parent + child 2", "parent"] == 0.0
    assert activation.loc["parent + child 2", "child 2"] == pytest.approx(1.0, abs=0.12)
    assert activation.loc["none"].max() < 1e-3
    cosine = one[one["kind"] == "cosine"].pivot(index="row", columns="latent", values="value")
    assert cosine.loc["parent", "child 1"] == pytest.approx(2**-0.5, abs=1e-3)
    assert cosine.loc["child 1", "parent"] == pytest.approx(0.0, abs=1e-3)
    from sae_lib.report.absorption_figures import absorption_picture as draw

    figure, _ = draw(frame, summary)
    figure.savefig(tmp_path / "picture.png")
    assert Results(toy=frame, toy_summary=summary).toy is frame


def test_masking_and_dropout_do_not_do_the_same():
    """Why uniform dropout is a control: after ATM the child's decoder row is its own, after dropout it still points
    along the parent, whether or not the parent's latent is silent."""
    found = {}
    for method in ("standard", "atm", "dropout"):
        sae, _ = train_toy(toy_config(method, PAIR), PAIR, seed=42, steps=1000)
        found[method] = toy_metrics(sae, PAIR)
    standard, atm, dropout = found["standard"], found["atm"], found["dropout"]
    assert standard["parent_silent_rate"] > 0.9 and standard["explained_variance"] > 0.95
    assert standard["cos_child_parent"] > 0.6 and standard["l0"] < standard["true_l0"]
    assert atm["parent_silent_rate"] < 0.1 and abs(atm["cos_child_parent"]) < 0.3
    assert dropout["cos_child_parent"] > 0.4
