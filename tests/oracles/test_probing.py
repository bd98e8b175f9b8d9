"""Sparse probing against SAEBench: draws of a task, means over tokens, choice of latents, accuracies."""

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import torch
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.evals.sparse_probing.probe_training import get_top_k_mean_diff_mask, train_probe_on_activations
from sae_bench.sae_bench_utils.activation_collection import (
    create_meaned_model_activations,
    get_all_llm_activations,
    get_sae_meaned_activations,
)
from torch import Tensor
from transformer_lens import HookedTransformer

from benchmarks.saebench import PeerSAE
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.topk import TopKConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.score import evaluate_probing
from sae_lib.metrics.probing.tasks import LabelledTexts, Tokens, draw_tasks, top_dimensions
from tests.metrics.tiny_saes import probing_part

CLASSES, TRAIN, TEST, LENGTH = ("a", "b", "c"), 30, 16, 10
CONFIG = ProbingConfig(seed=5, ks=(1, 2, 5))


def test_a_dataset_has_the_accuracies_of_saebench(
    pocket: LanguageModel, hooked: HookedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same texts, drawn by the same seed into the same tasks; latents averaged over tokens without BOS."""
    # Its signature calls a class's texts and a task's texts by one name, which this version of jaxtyping refuses.
    monkeypatch.setattr(probe_training, "train_sklearn_probe", probe_training.train_sklearn_probe.__wrapped__)
    train, test = _texts(pocket, TRAIN, seed=0), _texts(pocket, TEST, seed=1)
    sae = build_autoencoder(TopKConfig(d_sae=256, k=20), pocket.d_in, seed=3)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, 256)[:, None])
    sae.requires_grad_(False)

    distinct, tasks = draw_tasks([LabelledTexts("letters", train, test, CLASSES)], CONFIG.seed)
    tokens = torch.tensor([[pocket.bos_token_id, *text] for text in distinct])
    part = probing_part(
        pocket.residual_stream(tokens)[:, 1:].flatten(0, 1), torch.full((len(distinct),), LENGTH), tasks, [0.5] * 3
    )
    ours = evaluate_probing(sae, [part], CONFIG).tables["tasks"].set_index("task")

    means = [
        get_sae_meaned_activations(_activations(pocket, hooked, texts), PeerSAE(sae, "pocket", pocket.layer), 16)
        for texts in (train, test)
    ]
    for k in CONFIG.ks:
        torch.manual_seed(CONFIG.seed)
        _, accuracies = train_probe_on_activations(*means, select_top_k=k)
        assert ours[f"k{k}"].to_dict() == pytest.approx(accuracies, rel=1e-12)
    assert ours["k5"].max() > 0.6 and ours["k5"].nunique() > 1, "there was something to find"


def test_the_residual_stream_is_averaged_as_saebench_does(pocket: LanguageModel, hooked: HookedTransformer) -> None:
    texts = _texts(pocket, 4, seed=2)
    theirs = create_meaned_model_activations(_activations(pocket, hooked, texts))
    for label, rows in texts.items():
        tokens = torch.tensor([[pocket.bos_token_id, *text] for text in rows])
        residual = pocket.residual_stream(tokens)[:, 1:].flatten(0, 1)
        part = probing_part(residual, torch.full((len(rows),), LENGTH), [])
        torch.testing.assert_close(part.means(lambda x: x, torch.device("cpu")), theirs[label], rtol=1e-5, atol=1e-5)


def test_the_latents_are_those_of_saebench() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(60, 40, generator=generator)
    labels = torch.rand(60, generator=generator) < 0.4
    # SAEBench's label of a positive is 0, and its mask is true where a latent is left out.
    theirs = get_top_k_mean_diff_mask(means, (~labels).int(), 7)
    assert sorted(top_dimensions(means, labels, 7).tolist()) == (~theirs).nonzero().flatten().tolist()


def _texts(pocket: LanguageModel, rows: int, seed: int) -> dict[str, list[Tokens]]:
    """Texts of random tokens; a class prefers a part of the vocabulary of its own."""
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, list[Tokens]] = {}
    for number, label in enumerate(CLASSES):
        anywhere = torch.randint(300, pocket.vocab_size, (rows, LENGTH), generator=generator)
        own = torch.randint(500 + 3 * number, 503 + 3 * number, (rows, LENGTH), generator=generator)
        prefers = torch.rand(rows, LENGTH, generator=generator) < 0.5
        texts[label] = [tuple(row) for row in torch.where(prefers, own, anywhere).tolist()]
    return texts


def _activations(pocket: LanguageModel, hooked: HookedTransformer, texts: dict[str, list[Tokens]]) -> dict[str, Tensor]:
    inputs = {
        label: {"input_ids": torch.tensor([[pocket.bos_token_id, *text] for text in rows])}
        for label, rows in texts.items()
    }
    activations: dict[str, Tensor] = get_all_llm_activations(
        inputs, hooked, 16, pocket.layer, f"blocks.{pocket.layer}.hook_resid_post", mask_bos_pad_eos_tokens=True
    )
    return activations
