"""Folders written by the libraries themselves, against the libraries' own classes; skipped where they are missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.interop import load_sae, load_with_origin

D_IN, D_SAE, K = 8, 24, 4
X = torch.randn(200, D_IN, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    """Every parameter away from its initial value: biases that are zero would hide a wrong sign."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)


@torch.no_grad()
def assert_same(folder: Path, theirs: Any) -> None:
    f = theirs.encode(X)
    assert 0.01 < (f != 0).float().mean() < 0.9
    ours = load_sae(folder)
    torch.testing.assert_close(ours.encode(X), f, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(X), theirs.decode(f), rtol=1e-4, atol=1e-5)


def saelens_saes() -> dict[str, Any]:
    pytest.importorskip("sae_lens")
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    def shared() -> dict[str, Any]:
        return {
            "d_in": D_IN, "d_sae": D_SAE,
            "metadata": SAEMetadata(model_name="gpt2-small", hook_name="blocks.3.hook_resid_pre"),
        }  # fmt: skip

    return {
        "standard": StandardSAE(StandardSAEConfig(**shared())),
        "standard, input not centred": StandardSAE(StandardSAEConfig(**shared(), apply_b_dec_to_input=False)),
        "topk": TopKSAE(TopKSAEConfig(**shared(), k=K)),
        "topk, rescaled": TopKSAE(TopKSAEConfig(**shared(), k=K, rescale_acts_by_decoder_norm=True)),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**shared())),
        "gated": GatedSAE(GatedSAEConfig(**shared())),
    }


@pytest.mark.parametrize(
    "name", ["standard", "standard, input not centred", "topk", "topk, rescaled", "jumprelu", "gated"]
)
def test_saelens_inference_sae(tmp_path, name):
    sae = saelens_saes()[name]
    randomise(sae)
    sae.save_model(tmp_path)
    assert_same(tmp_path, type(sae).load_from_disk(tmp_path))
    origin = load_with_origin(tmp_path).origin
    assert (origin.model, origin.layer) == ("gpt2-small", 2)


def test_saelens_scaled_inputs(tmp_path):
    sae = saelens_saes()["standard"]
    randomise(sae)
    sae.cfg.normalize_activations = "expected_average_only_in"
    sae.save_model(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.5}))
    sae.fold_activation_norm_scaling_factor(2.5)
    assert_same(tmp_path, sae)


@pytest.mark.parametrize("matryoshka", [False, True])
def test_saelens_batchtopk_as_trained_and_as_checkpointed(tmp_path, matryoshka):
    pytest.importorskip("sae_lens")
    from sae_lens import SAE
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )

    trained: Any
    if matryoshka:
        config = MatryoshkaBatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, matryoshka_widths=[8, D_SAE])
        trained = MatryoshkaBatchTopKTrainingSAE(config)
    else:
        trained = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K))
    randomise(trained)
    trained.topk_threshold.fill_(3.0)
    trained.save_model(tmp_path / "checkpoint")
    trained.save_inference_model(tmp_path / "final")
    final = SAE.load_from_disk(tmp_path / "final")
    assert_same(tmp_path / "final", final)
    # The checkpoint keeps the decoder's norms apart; loaded, it is the same SAE as the final one.
    assert_same(tmp_path / "checkpoint", final)


def dictionary_learning_saes() -> dict[str, Any]:
    pytest.importorskip("dictionary_learning")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    return {
        "AutoEncoder": dictionary.AutoEncoder(D_IN, D_SAE),
        "AutoEncoderNew": dictionary.AutoEncoderNew(D_IN, D_SAE),
        "GatedAutoEncoder": dictionary.GatedAutoEncoder(D_IN, D_SAE),
        "JumpReluAutoEncoder": dictionary.JumpReluAutoEncoder(D_IN, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_IN, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_IN, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_IN, D_SAE, K, [8, D_SAE - 8]),
    }


@pytest.mark.parametrize(
    "name",
    [
        "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
)  # fmt: skip
def test_dictionary_learning_sae(tmp_path, name):
    sae = dictionary_learning_saes()[name]
    randomise(sae)
    if "threshold" in dict(sae.named_buffers()):
        sae.threshold.fill_(1.2)
    torch.save(sae.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, "k": K, "layer": 3, "lm_name": "EleutherAI/pythia-70m", "submodule_name": None}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    assert_same(tmp_path, sae)
