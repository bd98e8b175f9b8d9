import math

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.toy.data import PAIR, TREE, Toy
from sae_lib.metrics.toy.score import family_picture, held_out, match_latents, toy_metrics
from tests.metrics.tiny_saes import make_sae


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
    assert found["dead_fraction"] == found["dead_parents"] == found["dead_children"] == found["dead_singles"] == 0.0
    # The most frequent tenth: the parent of PAIR (0.25 of 0.4), two of the three parents of TREE.
    share = {"pair": 0.25 / 0.4, "tree": 2 * 0.15 / 1.12}[toy.name]
    assert found["top_share"] == pytest.approx(share, abs=0.02)


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
    assert (found["dead_fraction"], found["dead_parents"], found["dead_children"]) == (0.25, 1.0, 0.0)


def test_latents_are_matched_one_to_one():
    generator = torch.Generator().manual_seed(0)
    activations = (torch.rand(500, 5, generator=generator) < 0.3) * 1.0
    spare = torch.rand(500, 2, generator=generator)
    f = torch.cat([activations * 7.0, spare], dim=1)[:, torch.tensor([1, 3, 4, 0, 2, 5, 6])]
    assert match_latents(f, activations).tolist() == [3, 0, 4, 1, 2]
    silent = f.clone()
    silent[:, 0] = 0.0  # a dead latent has no correlation, and no NaN
    matched = match_latents(silent, activations)
    assert len(set(matched.tolist())) == 5 and matched.tolist()[2:] == [4, 1, 2]


def test_picture_of_a_family():
    picture = family_picture(absorbing(TREE), TREE)
    assert list(picture) == ["kind", "row", "latent", "value"] and len(picture) == 5 * 4 + 4 * 4
    activation = picture[picture["kind"] == "activation"].pivot(index="row", columns="latent", values="value")
    assert list(dict.fromkeys(picture["latent"])) == ["parent", "child 1", "child 2", "child 3"]
    assert activation.loc["parent only", "parent"] == pytest.approx(1.0, abs=0.12)
    assert activation.loc["parent + child 2", "parent"] == 0.0
    assert activation.loc["parent + child 2", "child 2"] == pytest.approx(1.0, abs=0.12)
    assert activation.loc["none"].max() < 1e-3
    cosine = picture[picture["kind"] == "cosine"].pivot(index="row", columns="latent", values="value")
    assert cosine.loc["parent", "child 1"] == pytest.approx(2**-0.5, abs=1e-3)
    assert cosine.loc["child 1", "parent"] == pytest.approx(0.0, abs=1e-3)


def test_scored_inputs_are_kept_per_toy():
    assert held_out(TREE)[0] is held_out(TREE)[0]
    assert held_out(TREE)[0].shape[1] == 20 and held_out(PAIR)[0].shape[1] == 50
