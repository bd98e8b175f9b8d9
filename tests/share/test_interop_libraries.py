"""Both directions, against the libraries' own classes: folders that they write, read here, and SAEs of this project,
exported and read there. Skipped where a library is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.autoencoders.matryoshka import Matryoshka
from sae_lib.data.language_model import LanguageModel
from sae_lib.mechanisms import methods
from sae_lib.share.dictionary_learning import save_dictionary_learning
from sae_lib.share.export import export_run
from sae_lib.share.load import load_sae, load_with_origin
from tests.run_folders import D_IN, D_SAE, K, perturbed, write_run
from tests.tiny_models import FAMILIES, random_tokens, save_tiny_model

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


# --- what this project exports, in the libraries it is exported for


@torch.no_grad()
def assert_exported(theirs: Any, ours: Any) -> None:
    """Latents and reconstruction of the exported SAE in the library are those of the SAE as it was."""
    f = ours.encode(X)
    assert 0.01 < (f != 0).float().mean() < 0.9
    assert torch.equal(theirs.encode(X) != 0, f != 0)
    torch.testing.assert_close(theirs.encode(X), f, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.decode(theirs.encode(X)), ours(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs(X), ours(X), rtol=1e-4, atol=1e-5)


VARIANTS = [
    *((method, {}, True) for method in methods("main", "as written")),
    # Encoding x or x - b_dec the other way round than the recipe, and decoder rows of any norm.
    *((method, {"subtract_b_dec": False}, True) for method in ("standard", "gated", "topk", "batchtopk")),
    ("jumprelu", {"subtract_b_dec": True}, True),
    *((method, {}, False) for method in ("standard", "paper_standard", "gated", "topk", "jumprelu", "matryoshka_2")),
]


@pytest.mark.parametrize(("method", "overrides", "unit_decoder"), VARIANTS)
def test_exported_to_saelens(tmp_path, method, overrides, unit_decoder):
    sae_lens = pytest.importorskip("sae_lens")
    sae = perturbed(method, overrides, unit_decoder=unit_decoder)
    export_run(write_run(tmp_path / "tiny" / "runs" / "one", sae), "saelens", tmp_path / "out")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "out" / "saelens")
    assert_exported(theirs, sae)
    metadata = theirs.cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("someone/tiny", "blocks.1.hook_resid_post")
    assert_same(tmp_path / "out" / "saelens", theirs)


@pytest.mark.parametrize(("method", "overrides", "unit_decoder"), VARIANTS)
def test_exported_to_dictionary_learning(tmp_path, method, overrides, unit_decoder):
    utils = pytest.importorskip("dictionary_learning.utils")
    sae = perturbed(method, overrides, unit_decoder=unit_decoder)
    export_run(write_run(tmp_path / "tiny" / "runs" / "one", sae), "dictionary_learning", tmp_path / "out")
    theirs, config = utils.load_dictionary(str(tmp_path / "out" / "dictionary_learning"), device="cpu")
    assert_exported(theirs, sae)
    assert (config["trainer"]["lm_name"], config["trainer"]["layer"]) == ("someone/tiny", 1)
    assert_same(tmp_path / "out" / "dictionary_learning", theirs)


def test_exported_matryoshka_keeps_its_groups(tmp_path):
    utils = pytest.importorskip("dictionary_learning.utils")
    sae = perturbed("matryoshka_4")
    save_dictionary_learning(sae, tmp_path)
    theirs, _ = utils.load_dictionary(str(tmp_path), device="cpu")
    assert isinstance(sae, Matryoshka) and theirs.group_sizes.tolist() == [*sae.cfg.level_sizes()]
    assert int(theirs.k) == sae.cfg.k


@pytest.mark.parametrize("library", ["sae_lens", "dictionary_learning"])
@pytest.mark.parametrize("method", ["batchtopk", "matryoshka_2"])
def test_exported_threshold_keeps_an_activation_that_lies_on_it(tmp_path, library, method):
    """The libraries keep what is above a threshold, this project what is at or above it."""
    pytest.importorskip(library)
    sae = perturbed(method)
    x = X[:1]
    with torch.no_grad():
        sae.get_buffer("threshold").copy_(sae.pre_activations(x).max())
    export_run(write_run(tmp_path / "runs" / "one", sae), "both", tmp_path / "out")
    if library == "sae_lens":
        from sae_lens import SAE

        theirs = SAE.load_from_disk(tmp_path / "out" / "saelens")
    else:
        from dictionary_learning.utils import load_dictionary

        theirs, _ = load_dictionary(str(tmp_path / "out" / "dictionary_learning"), device="cpu")
    assert int((sae.encode(x) != 0).sum()) == 1
    assert torch.equal(theirs.encode(x), sae.encode(x))


def test_exported_repository_in_saelens_from_pretrained(tmp_path, monkeypatch):
    """The folder as a hub repository: what `from_pretrained` asks the hub for lies where it looks."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens import SAE

    sae = perturbed("topk")
    export_run(write_run(tmp_path / "runs" / "one", sae), "saelens", tmp_path / "out")

    def fetched(repo_id: str, filename: str, **options: Any) -> str:
        assert repo_id == "someone/sae"
        if not (tmp_path / "out" / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(tmp_path / "out" / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", fetched)
    assert_exported(SAE.from_pretrained("someone/sae", "saelens"), sae)


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_hook_reads_the_same_activations_in_saelens(tmp_path, family):
    """SAELens, at the hook that cfg.json names in the local model that it names, gets what the SAE was trained on."""
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.load_model import load_model

    config = save_tiny_model(tmp_path / "tiny", family)
    run = write_run(tmp_path / "runs" / "one", perturbed("topk"), model=str(tmp_path / "tiny"))
    export_run(run, "saelens", tmp_path / "out")
    metadata = sae_lens.SAE.load_from_disk(tmp_path / "out" / "saelens").cfg.metadata
    assert metadata.model_name == "tiny"
    model = load_model(metadata.model_class_name, str(tmp_path / "tiny"), device="cpu")
    tokens = torch.from_numpy(random_tokens(3, 10)).long()
    _, cache = model.run_with_cache(tokens, names_filter=[metadata.hook_name])
    ours = LanguageModel.load(config, whole=False).residual_stream(tokens)
    torch.testing.assert_close(cache[metadata.hook_name], ours)


def test_sparsify_coder(tmp_path):
    pytest.importorskip("sparsify")
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K))
    randomise(coder)
    coder.save_to_disk(tmp_path)
    found = coder.encode(X)
    ours = load_sae(tmp_path)
    expected = torch.zeros(len(X), D_SAE).scatter(1, found.top_indices, found.top_acts)
    torch.testing.assert_close(ours.encode(X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(X), coder.decode(found.top_acts, found.top_indices), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_centred_stream_is_that_of_transformer_lens(tmp_path, monkeypatch, family):
    """The residual stream of a model whose writing weights it centred, and logits that stay as they are."""
    transformer_lens = pytest.importorskip("transformer_lens")
    from transformers import AutoModelForCausalLM

    lm = LanguageModel.load(save_tiny_model(tmp_path / "tiny", family), whole=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    model.config.n_ctx = model.config.max_position_embeddings  # as GPT-2's has it on the hub
    # It knows models by their names on the hub, and asks it for their sizes.
    monkeypatch.setattr(
        transformer_lens.loading_from_pretrained.AutoConfig, "from_pretrained", lambda *_, **__: model.config
    )
    hooked = transformer_lens.HookedTransformer.from_pretrained_no_processing(
        {"gpt2": "gpt2", "gpt_neox": "EleutherAI/pythia-70m"}[family],
        hf_model=model,
        tokenizer=lm.tokenizer,
        center_writing_weights=True,
        default_prepend_bos=False,
    )
    tokens = torch.from_numpy(random_tokens(3, 10)).long()
    logits, cache = hooked.run_with_cache(tokens)
    lm.centre()
    torch.testing.assert_close(lm.residual_stream(tokens), cache["blocks.1.hook_resid_post"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lm.logits(tokens), logits, rtol=1e-4, atol=1e-4)
