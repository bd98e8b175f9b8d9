import math

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from sae_lib.metrics.toy import experiments, training
from sae_lib.metrics.toy.config import ToyConfig
from sae_lib.metrics.toy.data import PAIR, TREE, chain
from sae_lib.metrics.toy.experiments import Cell, match_l0
from sae_lib.metrics.toy.methods import at_level, toy_config, toy_methods
from sae_lib.metrics.toy.score import toy_metrics
from sae_lib.metrics.toy.training import (
    ToyPool,
    ToyRun,
    alpha_loss_correlation,
    mean_mask_rate,
    train_and_score,
    train_toy,
)
from sae_lib.report.results import Results

SMALL = ToyConfig(
    seeds=(1, 2), sweep_seeds=(7,), steps=20, l1_levels=(0.01, 0.1), k_levels=(1, 2), refinements=1, rhos=(0.0, 0.9)
)


def test_configurations():
    standard, topk = toy_config("standard", TREE), toy_config("topk", TREE)
    assert standard.d_sae == topk.d_sae == 20 and topk.get("k") == 1 and standard.get("masking") is None
    assert toy_config("jumprelu", TREE).get("target_l0") == pytest.approx(1.12)
    assert toy_config("matryoshka", TREE).get("prefix_sizes")() == (3, 8, 20)
    atm = toy_config("atm", TREE, ToyConfig(steps=4882), {"masking": {"c": 0.5}})
    assert atm.get("masking") and (atm.get("masking").c, atm.get("masking").warmup_steps, atm.get("masking").decay) == (
        0.5,
        1000,
        0.99,
    )
    short = toy_config("atm", TREE, ToyConfig(steps=488)).get("masking")
    assert short and short.warmup_steps == 100 and short.decay == pytest.approx(0.99**10, abs=1e-3)
    published, strong, variance = (
        toy_config(method, TREE).get("temporal") for method in ("temporal_sae", "temporal_strong", "variance")
    )
    assert published and strong and variance
    assert published.coefficient == 1e-4 and strong.coefficient == 2 * variance.coefficient == 0.05
    knobs = {method: toy_config(method, TREE).knob for method in toy_methods()}
    assert (knobs["gated"], knobs["matryoshka"], knobs["jumprelu"]) == ("l1_coefficient", "k", "target_l0")
    assert at_level(topk, 2).get("k") == 2 and at_level(standard, 0.3).get("l1_coefficient") == 0.3


@pytest.mark.parametrize(
    "values, message",
    [
        ({"seeds": (7, 42)}, "sweep_seeds \\[7\\] are also in seeds"),
        ({"seeds": (1, 1)}, "values are repeated: \\[1, 1\\]"),
        ({"rhos": (0.5, 1.0)}, "rhos.1\n  Input should be less than 1"),
        ({"l1_levels": (0.0, 0.1)}, "l1_levels.0\n  Input should be greater than 0"),
        ({"batch": 100}, "multiple of 8"),
    ],
)
def test_wrong_settings_are_told(values, message):
    with pytest.raises(ValidationError, match=message):
        ToyConfig(**values)


def test_training_uses_the_seed_and_learns():
    def run(seed: int) -> ToyRun:
        return ToyRun(PAIR, toy_config("standard", PAIR, ToyConfig(steps=80)), seed, steps=80, batch=128)

    one, history = train_toy(run(1))
    again, _ = train_toy(run(1))
    other, _ = train_toy(run(2))
    assert torch.equal(one.W_enc, again.W_enc) and not torch.equal(one.W_enc, other.W_enc)
    assert history["reconstruction"].iloc[-1] < 0.5 * history["reconstruction"].iloc[0]
    # What is returned takes raw inputs.
    assert toy_metrics(one, PAIR)["explained_variance"] == pytest.approx(
        history["explained_variance"].iloc[-1], abs=0.1
    )


def test_penalties_are_one_without_order_and_two_with_it():
    """On tokens without order the adjacent-token penalty is, in expectation, the variance penalty at half its
    coefficient; where features persist it has less to punish."""

    def penalty(method: str, rho: float) -> float:
        settings = ToyConfig(steps=60, temporal_coefficient=0.3)
        config = toy_config(method, TREE, settings)
        _, history = train_toy(ToyRun(chain(rho), config, 1, settings.steps, settings.batch))
        return float(history["temporal"].iloc[3:].mean())

    adjacent, variance = penalty("temporal_strong", 0.0), penalty("variance", 0.0)
    assert adjacent == pytest.approx(2 * variance, rel=0.1)
    assert penalty("temporal_strong", 0.99) < 0.5 * adjacent
    assert penalty("variance", 0.99) == pytest.approx(variance, rel=0.25)


def test_of_training():
    history = pd.DataFrame(
        {"alpha": [0.1, 0.2, 0.4, 0.3], "reconstruction": [9.0, 4.0, 1.0, 2.0], "mask_rate": [0, 0, 0.2, 0.4]}
    )
    assert alpha_loss_correlation(history) == pytest.approx(-1.0), "by rank"
    assert math.isnan(alpha_loss_correlation(history.assign(alpha=0.5)))
    assert math.isnan(alpha_loss_correlation(history.drop(columns="alpha")))
    assert mean_mask_rate(history) == pytest.approx(0.3) and math.isnan(mean_mask_rate(history.iloc[:1]))


class Recorded(ToyPool):
    """A pool whose SAEs have L0 = 0.02 / l1_coefficient, or their k."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.asked: list[ToyRun] = []

    def run(self, runs, description="", work=train_and_score):
        runs = list(runs)
        self.asked += runs
        made = []
        for run in runs:
            l0 = run.config.get("k") or run.config.get("target_l0") or 0.02 / run.config.get("l1_coefficient")
            names = ("parent_silent_rate", "miss_rate", "cos_child_parent", "explained_variance", "dead_fraction")
            made.append(dict.fromkeys(names, 0.5) | {"l0": l0, "true_l0": 1.12, "mask_rate": 0.25})
        return made


def one_order(run: ToyRun) -> dict[str, float]:
    return {"z": 1.0, "a": math.nan}


def another(run: ToyRun) -> dict[str, float]:
    return {"z": 2.0}


def test_what_is_read_stands_in_the_order_in_which_it_was_made(tmp_path):
    run = ToyRun(PAIR, toy_config("standard", PAIR), 1, steps=10, batch=8)
    for pool_ in (ToyPool(tmp_path), ToyPool(tmp_path)):
        [found] = pool_.run([run], work=one_order)
        assert [*found] == ["z", "a"] and found["z"] == 1.0 and math.isnan(found["a"])
    assert ToyPool(tmp_path).run([run], work=another) == [{"z": 2.0}], "each function's numbers are its own"


def test_matching_finds_the_true_l0():
    settings = ToyConfig(l1_levels=(0.001, 0.1), refinements=1, sweep_seeds=(7, 8))
    recorded = Recorded()
    cells = [Cell(TREE, toy_config(method, TREE, settings)) for method in ("standard", "topk", "jumprelu")]
    l1, k, target = match_l0(recorded, cells, settings)
    assert l1 == pytest.approx(0.02 / 1.12, rel=1e-3) and k == 1 and target == pytest.approx(1.12)
    assert {run.seed for run in recorded.asked} == {7, 8}, "the reported seeds decide nothing"
    tried = [run.config.get("l1_coefficient") for run in recorded.asked]
    assert sorted(set(tried)) == pytest.approx([0.001, l1, 0.1]), "the interpolated coefficient was trained too"


def test_experiments_ask_for_what_they_say():
    study = Recorded()
    matched = experiments.matched(study, SMALL)
    tree = matched[(matched["toy"] == "tree") & (matched["experiment"] == "matched")]
    assert set(tree["method"]) == set(toy_methods()) and (tree.groupby("method")["seed"].nunique() == 2).all()
    assert set(matched.loc[matched["experiment"] == "next_k", "method"]) == {"topk", "batchtopk", "matryoshka"}
    assert tree.set_index("method").loc["standard", "l0_ratio"].to_numpy() == pytest.approx(1.0, rel=1e-3)
    dropout = {run.config.get("dropout").probability for run in study.asked if run.config.get("dropout")}
    assert dropout == {0.25}, "as often as ATM"

    sweep = experiments.sweep(Recorded(), SMALL)
    assert "variance" not in set(sweep["method"])
    assert (sweep.groupby("method")["label"].nunique() == 2).all() and set(sweep["seed"]) == {7}
    assert sweep.loc[sweep["method"] == "gated", "sparsity"].min() == pytest.approx(0.1)

    study = Recorded()
    rho = experiments.rho_sweep(study, SMALL)
    strong = rho[rho["label"] == "strong"]
    assert strong.groupby(["method", "rho"]).size().to_list() == [2] * 6 and set(rho["toy"]) == {"chain"}
    pairings = {run.config.get("temporal").pairing for run in study.asked if run.config.get("temporal")}
    assert pairings == {"adjacent_token", "previous_batch", "variance"}
    assert set(rho.loc[rho["label"] == "published", "temporal_coefficient"]) == {1e-4}

    factorial = experiments.factorial(Recorded(), SMALL)
    cells = factorial.groupby(["temporal", "resampling", "gradient_scaling"])["seed"].nunique()
    assert len(cells) == 8 and (cells == 2).all() and factorial["sparsity"].nunique() == 1

    importance = experiments.importance(Recorded(), SMALL)
    assert importance["importance"].nunique() == 6 and set(importance["method"]) == {"atm", "dropout"}
    rare = experiments.rare(Recorded(), SMALL)
    assert set(rare["toy"]) == {"rare"} and set(rare["method"]) == {"standard"}
    assert set(rare["label"]) >= {"none", "threshold=1e-05", "threshold=0.005"}


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    config = toy_config("topk", PAIR, SMALL)
    runs = [ToyRun(PAIR, config, seed, 10, 64) for seed in (1, 2, 1)]
    with ToyPool(tmp_path) as first:
        found = first.run(runs)
    assert found[0] == found[2] != found[1] and len(list(tmp_path.iterdir())) == 2
    assert math.isnan(found[0]["mask_rate"]), "no mask, no rate"

    def forbidden(run: ToyRun) -> dict[str, float]:
        raise AssertionError("trained again")

    forbidden.__name__ = train_and_score.__name__
    monkeypatch.setattr(training, "train_and_score", forbidden)
    again = ToyPool(tmp_path).run(runs, work=forbidden)
    assert [{k: v for k, v in row.items() if v == v} for row in again] == [
        {k: v for k, v in row.items() if v == v} for row in found
    ]
    # A damaged file is made again.
    file = next(iter(tmp_path.iterdir()))
    file.write_text('{"l0":')
    with pytest.raises(AssertionError, match="trained again"):
        ToyPool(tmp_path).run(runs, work=forbidden)


def test_picture_is_of_the_matched_saes(tmp_path):
    settings = SMALL.model_copy(update={"seeds": (1,), "refinements": 0, "steps": 10})
    frame = experiments.absorption_picture(tmp_path, settings)
    assert list(frame) == ["method", "seed", "kind", "row", "latent", "value"]
    assert len(frame) == 3 * (5 * 4 + 4 * 4) and np.isfinite(frame["value"]).all()
    rows = [*dict.fromkeys(frame["row"])]
    assert rows[:2] == ["parent only", "parent + child 1"] and "none" in rows
    summary = pd.DataFrame({"experiment": "matched", "toy": "tree", "method": "standard", "label": "", "seed": [1]})
    assert Results(toy=frame, toy_summary=summary).toy is frame


def test_masking_and_dropout_do_not_do_the_same():
    """Why uniform dropout is a control: after ATM the child's decoder row is its own, after dropout it still points
    along the parent, whether or not the parent's latent is silent."""
    settings = ToyConfig()
    found = {}
    for method, change in (("standard", {}), ("atm", {}), ("dropout", {"dropout": {"probability": 0.45}})):
        config = at_level(toy_config(method, PAIR, settings, change), 0.03)
        found[method] = train_and_score(ToyRun(PAIR, config, 7, settings.steps, settings.batch))
    standard, atm, dropout = found["standard"], found["atm"], found["dropout"]
    assert standard["parent_silent_rate"] > 0.9 and standard["explained_variance"] > 0.95
    assert standard["cos_child_parent"] > 0.6 and standard["l0"] < standard["true_l0"]
    assert atm["parent_silent_rate"] < 0.1 and abs(atm["cos_child_parent"]) < 0.3
    assert dropout["cos_child_parent"] > 0.4
