"""Which latents stand for a letter, and how many: against SAEBench's k-sparse probing."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import numpy as np
import pandas as pd
from sae_bench.evals.absorption.k_sparse_probing import (
    add_feature_splits_to_metrics_df,
    run_k_sparse_probing_experiment,
)

from benchmarks.saebench import TEMPLATE, TOKEN_POSITION, PeerSAE, save_probe_inputs
from sae_lib.data.words import LETTERS
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import accepted_f1, main_latents
from tests.oracles.peers import StoredModel
from tests.oracles.same_draws import share_draws
from tests.oracles.word_data import word_data, word_reference, word_sae

CONFIG = AbsorptionConfig(sparse_batch=250, sparse_min_steps=1, k_max=5)
DATA = word_data(words=900, d_in=64, noise=0.6)


@pytest.mark.parametrize("encoded_once", [True, False])
@pytest.mark.parametrize("config", [{"architecture": "topk", "k": 4}, {"architecture": "standard"}])
def test_letters_have_the_latents_and_the_f1_of_saebench(
    config: dict[str, Any], encoded_once: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    share_draws(monkeypatch, CONFIG.seed)
    reference, sae = word_reference(DATA, CONFIG), word_sae(DATA, 200, **config)
    save_probe_inputs(reference, tmp_path / "probes", "stored", 0)
    theirs = run_k_sparse_probing_experiment(
        model=StoredModel(reference),
        sae=PeerSAE(sae, "stored", 0),
        layer=0,
        sae_name="sae",
        max_k_value=CONFIG.k_max,
        prompt_template=TEMPLATE,
        prompt_token_pos=TOKEN_POSITION,
        device="cpu",
        experiment_dir=tmp_path / "sparse",
        probes_dir=tmp_path / "probes",
        k_sparse_probe_batch_size=CONFIG.sparse_batch,
        precalc_k_sparse_probe_sae_acts=encoded_once,
        verbose=False,
    )
    ours = [*main_latents(sae, reference, CONFIG.model_copy(update={"min_probe_f1": -1.0})).values()]  # of every letter
    assert [main.tolist() for main, _ in ours] == theirs["split_feats"].tolist()
    np.testing.assert_allclose([f1[0] for _, f1 in ours], theirs["f1_sparse_sae_1"], rtol=1e-5)
    np.testing.assert_allclose(reference.probe_f1, theirs["f1_probe"], rtol=1e-5)
    assert len({len(main) for main, _ in ours}) > 1, "some letters are split and some are not"


def test_the_split_rule_is_that_of_saebench() -> None:
    """At the limit too: a rise by exactly 0.03 is no split."""
    generator = np.random.default_rng(0)
    curves = generator.choice([0.2, 0.25, 0.28, 0.28 + 0.03, 0.5, 0.9], (26, 4))
    rows = [
        {"letter": letter}
        | {f"f1_sparse_sae_{k + 1}": f1 for k, f1 in enumerate(curve)}
        | {f"sparse_sae_k_{k + 1}_feats": np.arange(k + 1) for k in range(4)}
        for letter, curve in zip(LETTERS, curves, strict=True)
    ]
    frame = pd.DataFrame(rows)
    add_feature_splits_to_metrics_df(frame, max_k_value=4, f1_jump_threshold=0.03)
    assert [len(accepted_f1(curve.tolist(), 0.03)) for curve in curves] == frame["split_feats"].map(len).tolist()
    assert frame["split_feats"].map(len).nunique() > 2
