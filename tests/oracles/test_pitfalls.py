"""What SAEBench's numbers depend on beside the SAE (the README tells how much)."""

from pathlib import Path

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import torch
from sae_bench.evals.absorption.k_sparse_probing import train_sparse_multi_probe
from torch.nn import functional as F

from benchmarks.saebench import save_probe_inputs
from sae_lib.data.words import Word, split_words
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import main_latents, steps_batch
from tests.oracles.peers import StoredModel
from tests.oracles.pitfalls import asked_words, logits
from tests.oracles.word_data import BLURRED, word_data, word_reference, word_sae

CONFIG = AbsorptionConfig(k_max=1)
DATA = word_data(words=900, d_in=64, noise=0.6)
CLEAR = [letter for letter in range(26) if letter not in BLURRED]


def test_one_step_an_epoch_leaves_the_sparse_probe_untrained() -> None:
    """Latent i is letter i's own. SAEBench's batch of 4,096 finds few of them; eight steps an epoch find the rest."""
    reference, sae = word_reference(DATA, CONFIG), word_sae(DATA, 200, architecture="standard")
    latents = sae.encode(reference.train_activations) * sae.W_dec.norm(dim=1)
    right = {}
    for batch in (4096, steps_batch(len(latents), 4096, CONFIG.sparse_min_steps)):
        torch.manual_seed(0)
        probe = train_sparse_multi_probe(
            latents, F.one_hot(reference.train_labels, 26), torch.device("cpu"), batch_size=batch, show_progress=False
        )
        right[batch] = sum(int(probe.weights[letter].argmax()) == letter for letter in CLEAR)
    mains = main_latents(sae, reference, CONFIG.model_copy(update={"min_probe_f1": -1.0}))
    ours = sum(mains[letter][0].tolist() == [letter] for letter in CLEAR)
    few, enough = right.values()
    assert few < enough <= ours + 1 and few < ours


def test_saebench_splits_the_words_anew_each_time_and_we_do_not() -> None:
    assert asked_words(DATA.words) != asked_words(DATA.words)
    words = [Word(text, token, 0) for token, text in enumerate(DATA.words)]
    assert split_words(words, 0.8, seed=1) == split_words(words, 0.8, seed=1)


def test_bfloat16_moves_words_across_the_probe_s_boundary(tmp_path: Path) -> None:
    """As SAEBench reads them where there is a GPU; ours are float32 everywhere."""
    reference = word_reference(word_data(words=1500, d_in=64, noise=3.0), CONFIG)
    save_probe_inputs(reference, tmp_path, "stored", 2)
    model = StoredModel(reference)
    exact, rounded = (logits(model, tmp_path, dtype) > 0 for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(exact, reference.probe.logits(reference.test_activations) > 0)
    assert (exact != rounded).any()
