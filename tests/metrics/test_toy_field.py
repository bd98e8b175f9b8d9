import dataclasses

import pytest
import torch

from sae_lib.metrics.toy import experiments
from sae_lib.metrics.toy.config import FieldConfig, ToyConfig
from sae_lib.metrics.toy.data import LOUD, PAIR, TREE
from sae_lib.metrics.toy.score import held_out, leave_similar_out, recovery_metrics
from sae_lib.metrics.toy.synthetic import SMALL, synthetic
from sae_lib.metrics.toy.training import ToyRun
from sae_lib.util.errors import ArtifactError
from tests.metrics.test_toy import SMALL as FEW
from tests.metrics.test_toy import Recorded
from tests.metrics.test_toy_score import absorbing, perfect
from tests.metrics.tiny_saes import make_sae

DEEP = dataclasses.replace(
    synthetic("deep", 90, 40, 30, roots=4, depth=2, correlation=0.3, orthogonal_steps=20), seed=42
)


def test_children_of_the_loud_tree_are_loud():
    tree, loud = (toy.sample(4000, 1)[1] for toy in (TREE, LOUD))
    children = [child for of_parent in TREE.children.values() for child in of_parent]
    others = [i for i in range(20) if i not in children]
    torch.testing.assert_close(loud[:, children], 5 * tree[:, children])
    assert torch.equal(loud[:, others], tree[:, others])


def test_keys_of_known_results_stay():
    config = experiments.toy_config("topk", TREE)
    run = ToyRun(TREE, config, 1, 10, 8)
    assert run.toy.key == [20, TREE.probability, TREE.parent, True, 0.0], "as it was before there were other toys"
    keys = {dataclasses.replace(run, toy=toy).key("x") for toy in (TREE, LOUD, SMALL)}
    assert len(keys) == 3
    assert dataclasses.replace(run, toy=dataclasses.replace(SMALL, seed=1)).key("x") not in keys


def test_synthetic_data_follows_its_definition():
    x, activations = DEEP.sample(200_000, 1)
    on = activations > 0
    assert DEEP.parent[:4] == (None,) * 4 and DEEP.children[0] == [4, 5, 6, 7] and DEEP.children[19] == [80, 81, 82, 83]
    assert DEEP.parent[84:] == (None,) * 6
    for parent, children in DEEP.children.items():
        assert not (on[:, children] & ~on[:, parent, None]).any() and int(on[:, children].sum(dim=1).max()) == 1
    # Roots are on as often as they are said to be; so is what can have a latent, siblings' competition included.
    rate = on.double().mean(dim=0)
    torch.testing.assert_close(rate[:4].float(), torch.tensor(DEEP.probability[:4]), atol=0.005, rtol=0)
    assert float(rate.topk(30).values.sum()) == pytest.approx(DEEP.true_l0, rel=0.03)
    # A root's size is that of its feature; a child's is its own times the parent's over the parent's mean.
    root = activations[on[:, 0], 0]
    assert float(root.mean()) == pytest.approx(5.0, abs=0.05) and float(root.std()) == pytest.approx(
        float(DEEP.sds[0]), rel=0.05
    )
    child = activations[on[:, 4]]
    assert float((child[:, 4] / (child[:, 0] / DEEP.means[0])).mean()) == pytest.approx(float(DEEP.means[4]), abs=0.1)
    # Correlations are those of the copula: the sign at least, where it is strong.
    wanted = DEEP.factors @ DEEP.factors.T
    found = torch.corrcoef(on[:, :4].T.float())
    strong = wanted[:4, :4].abs().fill_diagonal_(0.0) > 0.3
    assert strong.any() and (found[strong] * wanted[:4, :4][strong] > 0).all()
    constant = x - activations @ DEEP.directions()
    assert float(constant.std(dim=0).max()) < 1e-3 and float(constant[0].norm()) == pytest.approx(1.0, abs=1e-3)
    again = DEEP.sample(1000, 2)[0]
    assert torch.equal(again, DEEP.sample(1000, 2)[0]) and not torch.equal(again, x[:1000])


def test_orthogonalising_makes_directions_less_alike():
    def overlap(steps: int) -> float:
        directions = dataclasses.replace(DEEP, orthogonal_steps=steps).directions()
        assert directions.norm(dim=1).sub(1).abs().max() < 1e-5
        return float((directions @ directions.T).square().sum())

    assert overlap(100) < overlap(0)


@pytest.mark.parametrize("seed", [*ToyConfig().seeds, *ToyConfig().sweep_seeds])
def test_no_sae_starts_at_the_true_directions(seed: int):
    start = make_sae(d_in=SMALL.d_in, d_sae=SMALL.width, seed=seed).W_dec.detach()
    assert float((start * SMALL.directions()[: SMALL.width]).sum(dim=1).mean().abs()) < 0.1


def test_sizes():
    toy = synthetic("synthsaebench", 16_384, 768, 4096, roots=128)
    assert (toy.n_features, toy.d_in, toy.n_latents, len(toy.children)) == (16_384, 768, 4096, 128 + 512 + 2048)
    assert toy.true_l0 == pytest.approx(25, abs=2), "as its authors say of the 4,096 most frequent features"
    assert SMALL.true_l0 == pytest.approx(5.6, abs=0.1)
    with pytest.raises(ValueError, match="20 features are too few for trees of 340"):
        synthetic("no", 20, 8, 8, roots=4)


def test_recovery_of_the_true_dictionary_and_of_an_absorbing_one():
    found = recovery_metrics(perfect(TREE), TREE)
    assert found["f1"] > 0.99 and found["mcc"] == pytest.approx(1.0, abs=1e-5)
    assert found["excess_absorption"] == 0.0 and found["similar_missed"] < 1e-3
    absorbed = recovery_metrics(absorbing(TREE), TREE)
    assert absorbed["excess_absorption"] == 1.0 and absorbed["similar_excess"] > 0.9
    assert absorbed["mcc"] < 0.95 and absorbed["explained_variance"] > 0.95
    # A latent that is silent always misses its parent as often alone: that is no absorption.
    dead = perfect(PAIR)
    with torch.no_grad():
        dead.b_enc[3] = -100.0
    assert recovery_metrics(dead, PAIR)["excess_absorption"] == 0.0


def test_what_points_the_same_way_and_is_on_is_no_alarm():
    """x = d_1 is read by a similar latent as cos(d_1, d_2) only: below its own level."""
    sae = perfect(TREE)
    with torch.no_grad():
        sae.W_dec[1] = torch.nn.functional.normalize(sae.W_dec[0] + sae.W_dec[1], dim=0)
    x = held_out(TREE)[0]
    assert leave_similar_out(sae, x, share=0.75)["similar_missed"] < 0.01
    assert leave_similar_out(sae, x, share=0.6)["similar_missed"] > 0.01, "0.71 of its level"


def test_the_field_asks_for_what_it_says(tmp_path):
    settings = FEW.model_copy(update={"field": FieldConfig(methods=("standard", "topk"), k_levels=(3, 6), steps=30)})
    study = Recovered()
    rows = experiments.field_matched(study, settings, SMALL, ("standard", "topk"))
    assert set(rows["experiment"]) == {"field"} and set(rows["seed"]) == {1, 2} and set(rows["toy"]) == {"synthetic"}
    assert {run.steps for run in study.asked} == {30} and {run.config.d_sae for run in study.asked} == {128}
    assert {run.config.optimizer.learning_rate for run in study.asked} == {0.3 * 5e-2, 0.3 * 1e-2}
    study = Recovered()
    experiments.field_matched(study, settings, LOUD, ("standard",))
    assert {run.steps for run in study.asked} == {FEW.steps}, "only the synthetic data has settings of its own"
    assert len(experiments.field(tmp_path, FEW)) == 0, "nothing without the section"
    wrong = FEW.model_copy(update={"field": FieldConfig(methods=("topk", "untrained"))})
    with pytest.raises(ArtifactError, match="no toy for 'untrained'"):
        experiments.field(tmp_path, wrong)


def test_challengers_meet_those_to_beat_on_the_tree(tmp_path, monkeypatch):
    asked = FieldConfig(methods=("topk",), challengers=("consistent", "masked_matryoshka"), k_levels=(3,), steps=30)
    settings = FEW.model_copy(update={"field": asked})
    monkeypatch.setattr(experiments, "ToyPool", lambda *_: Recovered())
    rows = experiments.challengers(tmp_path, settings)
    assert {*rows["experiment"]} == {"field"} and {*rows["seed"]} == {*FEW.seeds}
    of = {toy: [*dict.fromkeys(part["method"])] for toy, part in rows.groupby("toy")}
    assert of == {
        "loud": [*asked.challengers], "synthetic": [*asked.challengers],
        "tree": [*experiments.TO_BEAT, *asked.challengers],
    }  # fmt: skip
    assert experiments.challengers(tmp_path, FEW).empty, "nothing without the section"
    wrong = FEW.model_copy(update={"field": FieldConfig(challengers=("untrained",))})
    with pytest.raises(ArtifactError, match=r"toy.field.challengers: no toy for 'untrained'"):
        experiments.challengers(tmp_path, wrong)


class Recovered(Recorded):
    def run(self, runs, description="", work=experiments.train_and_recover):
        assert work is experiments.train_and_recover
        return super().run(runs, description)
