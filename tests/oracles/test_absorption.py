"""Absorption against SAEBench's whole evaluation: words, letters, averages and what it writes to its result file."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import numpy as np
import pandas as pd
import torch
from sae_bench.evals.absorption import main as saebench
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from torch.nn import functional as F

from benchmarks.saebench import TEMPLATE, TOKEN_POSITION, PeerSAE, save_probe_inputs
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.score import evaluate_absorption
from tests.metrics.words_of_a_letter import score_words
from tests.oracles.peers import StoredModel
from tests.oracles.same_draws import share_draws
from tests.oracles.word_data import BLURRED, word_data, word_reference, word_sae

CONFIG = AbsorptionConfig(sparse_batch=250, sparse_min_steps=1, k_max=3)
DATA = word_data(words=900, d_in=64, noise=0.6)
SAES: list[dict[str, Any]] = [
    {"architecture": "topk", "k": 1},
    {"architecture": "topk", "k": 4},
    {"architecture": "standard"},
]


@pytest.mark.parametrize("config", SAES, ids=["topk 1", "topk 4", "standard"])
def test_every_word_is_judged_as_saebench_does(config: dict[str, Any]) -> None:
    """Words of each letter, with one main latent, two, and one that is never on."""
    reference, sae = word_reference(DATA, CONFIG), word_sae(DATA, 200, **config)
    peer = PeerSAE(sae, "stored", 0)
    calculator = FeatureAbsorptionCalculator(
        model=StoredModel(reference),
        icl_word_list=DATA.words,
        max_icl_examples=10,
        base_template=TEMPLATE,
        word_token_pos=TOKEN_POSITION,
    )
    labels = reference.test_labels[reference.scored]
    directions = F.normalize(reference.probe.weight, dim=1)
    judged: list[tuple[float, bool]] = []
    for letter in range(26):
        at = (labels == letter).nonzero().flatten()
        for main in ([letter], [letter, 26 + 4 * letter], [199]):
            if not len(at):
                continue
            theirs = calculator.calculate_absorption(
                peer,
                [reference.test_words[int(index)] for index in reference.scored[at]],
                reference.probe.weight[letter],
                main,
                layer=0,
                show_progress=False,
            ).word_results
            x = reference.scored_activations[at]
            cosines = peer.W_dec @ directions[letter]
            ours = score_words(x, peer.encode(x), directions[letter], cosines, torch.tensor(main), CONFIG)
            assert ours.full.tolist() == [word.is_full_absorption for word in theirs]
            fractions = [float(word.absorption_fraction) for word in theirs]
            np.testing.assert_allclose(ours.fraction, fractions, rtol=1e-5, atol=1e-7)
            judged += zip(fractions, ours.full.tolist(), strict=True)
    assert {0.0, 1.0} <= {fraction for fraction, _ in judged} and {full for _, full in judged} == {False, True}


@pytest.mark.filterwarnings("ignore:Decoder weights are not normalized")
def test_an_sae_has_the_scores_that_saebench_writes_to_its_result_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SAEBench's `run_eval`, whole: k-sparse probing, absorption, gating by F1, averages over letters."""
    share_draws(monkeypatch, CONFIG.seed)
    reference = word_reference(DATA, CONFIG)
    assert 20 <= sum(f1 > CONFIG.min_probe_f1 for f1 in reference.probe_f1) < 26, "the gate leaves some letters out"
    save_probe_inputs(reference, tmp_path / "probes", "stored", 0)
    _run_in(tmp_path, StoredModel(reference), monkeypatch)
    (tmp_path / "results").mkdir()
    saes = [word_sae(DATA, 200, **config) for config in SAES[1:]]
    saebench.run_eval(
        AbsorptionEvalConfig(
            model_name="stored", max_k_value=CONFIG.k_max, k_sparse_probe_batch_size=CONFIG.sparse_batch
        ),
        [(f"sae{i}", PeerSAE(sae, "stored", 0)) for i, sae in enumerate(saes)],
        "cpu",
        str(tmp_path / "results"),
        force_rerun=True,
    )
    scores = []
    for i, sae in enumerate(saes):
        found = json.loads((tmp_path / f"results/sae{i}_custom_sae_eval_results.json").read_text())
        ours = evaluate_absorption(sae, reference, CONFIG)
        theirs = pd.DataFrame(found["eval_result_details"]).set_index("first_letter")
        letters = ours.tables["letters"].set_index("letter")
        assert letters.index.tolist() == theirs.index.tolist()
        assert not {chr(ord("a") + letter) for letter in BLURRED} <= set(letters.index)
        assert letters["num_split_features"].tolist() == theirs["num_split_features"].tolist()
        assert letters["true_positives"].tolist() == theirs["num_probe_true_positives"].tolist()
        words = letters["true_positives"]
        np.testing.assert_array_equal((letters["absorption_full"] * words).round(6), theirs["num_full_absorption"])
        np.testing.assert_allclose(
            letters["absorption_fraction"], theirs["mean_absorption_fraction"], rtol=1e-5, atol=1e-7
        )
        mean = found["eval_result_metrics"]["mean"]
        assert ours.summary["absorption_fraction"] == pytest.approx(mean["mean_absorption_fraction_score"], rel=1e-5)
        assert ours.summary["absorption_full"] == pytest.approx(mean["mean_full_absorption_score"], rel=1e-5)
        assert ours.summary["num_split_features"] == pytest.approx(mean["mean_num_split_features"], rel=1e-12)
        scores.append(ours.summary["absorption_fraction"])
    assert all(0 < score < 1 for score in scores), "words of both kinds went into the averages"


def test_saebench_refuses_a_model_with_too_few_letters_and_we_give_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share_draws(monkeypatch, CONFIG.seed)
    reference = word_reference(word_data(words=900, d_in=64, noise=2.0), CONFIG)
    save_probe_inputs(reference, tmp_path / "probes", "stored", 0)
    _run_in(tmp_path, StoredModel(reference), monkeypatch)
    sae = word_sae(DATA, 200, architecture="topk", k=4)
    results = saebench.run_eval(
        AbsorptionEvalConfig(model_name="stored", max_k_value=1),
        [("sae", PeerSAE(sae, "stored", 0))], "cpu", str(tmp_path / "results"), force_rerun=True,
    )  # fmt: skip
    assert results == {} and "insufficent first-letter features" in capsys.readouterr().out
    ours = evaluate_absorption(sae, reference, CONFIG)
    assert 0 < ours.summary["letters"] < 20 and "below 20" in ours.notes[0]


def _run_in(folder: Path, model: StoredModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAEBench writes into the folder it is called from and into its own package; here, into `folder` only."""
    monkeypatch.chdir(folder)
    places = {"probes_dir": folder / "probes"}
    sparse = {"experiment_dir": folder / "sparse"}
    absorption = {"experiment_dir": folder / "absorption", "sparse_probing_experiment_dir": folder / "sparse"}
    first, second = saebench.run_k_sparse_probing_experiment, saebench.run_feature_absortion_experiment
    monkeypatch.setattr(saebench, "run_k_sparse_probing_experiment", partial(first, **places, **sparse))
    monkeypatch.setattr(saebench, "run_feature_absortion_experiment", partial(second, **places, **absorption))
    monkeypatch.setattr(
        saebench.HookedTransformer, "from_pretrained_no_processing", lambda *arguments, **options: model
    )
