import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel

from sae_lib.data import model_loading
from sae_lib.data.language_model import LanguageModel
from sae_lib.util.errors import ArtifactError
from tests.tiny_models import BOS, EOS, FAMILIES, PAD, UNKNOWN, VOCABULARY, random_tokens, save_tiny_model

TOKENS = torch.from_numpy(random_tokens(3, 12, eos_rate=0.0))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(configuration, cut, whole) of one family."""
    config = save_tiny_model(tmp_path_factory.mktemp(request.param), request.param)
    return config, LanguageModel.load(config, whole=False), LanguageModel.load(config, whole=True)


@pytest.fixture
def config(tmp_path):
    return save_tiny_model(tmp_path / "model")


def stored_weights(config) -> dict[str, torch.Tensor]:
    """Read into memory, not mapped: some tests write the file again."""
    return load((Path(config.name) / "model.safetensors").read_bytes())


def refusal(config, whole=False) -> str:
    with pytest.raises(ArtifactError) as caught:
        LanguageModel.load(config, whole=whole)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- the residual stream


@pytest.mark.parametrize("layer", [0, 1])
def test_residual_stream_is_the_hidden_state_that_transformers_reports(family, layer):
    config, _, _ = family
    oracle = AutoModelForCausalLM.from_pretrained(config.name).eval()
    with torch.no_grad():
        # [0] is the embedding and [layer + 1] the output of block `layer`, except after the last block.
        expected = oracle(TOKENS.long(), output_hidden_states=True).hidden_states[layer + 1]
    lm = LanguageModel.load(config.model_copy(update={"layer": layer}), whole=False)
    torch.testing.assert_close(lm.residual_stream(TOKENS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [1, 2])
def test_cut_and_whole_models_agree_exactly(family, layer):
    at_layer = family[0].model_copy(update={"layer": layer})
    cut, whole = (LanguageModel.load(at_layer, whole=whole) for whole in (False, True))
    assert torch.equal(cut.residual_stream(TOKENS), whole.residual_stream(TOKENS))
    assert cut.identity == whole.identity
    assert cut.residual_stream(TOKENS).shape == (3, 12, cut.d_in) == (3, 12, 16)


def test_a_cut_model_has_only_the_blocks_that_are_read_and_no_head(family):
    config, cut, whole = family
    stored = stored_weights(config)
    assert not any(".2." in name or "head" in name or "embed_out" in name for name, _ in cut.model.named_parameters())
    in_cut = sum(parameter.numel() for parameter in cut.model.parameters())
    in_later_blocks = sum(tensor.numel() for name, tensor in stored.items() if ".2." in name)
    assert in_later_blocks > 0
    assert in_cut <= sum(parameter.numel() for parameter in whole.model.parameters()) - in_later_blocks
    assert cut.model.config.num_hidden_layers == 2
    assert len(getattr(cut.model.config, "layer_types", None) or [0, 0]) == 2


def test_nothing_after_the_block_is_computed(family):
    _, _, whole = family

    def refuse(module, inputs, output):
        raise AssertionError("computed the head")

    handle = whole.model.get_output_embeddings().register_forward_hook(refuse)
    try:
        whole.residual_stream(TOKENS)
    finally:
        handle.remove()


def test_no_gradients_and_no_dropout(family):
    _, cut, whole = family
    assert not cut.residual_stream(TOKENS).requires_grad
    assert not whole.logits(TOKENS).requires_grad
    assert not cut.model.training and not whole.model.training


def test_activations_can_be_trained_on(family):
    _, cut, _ = family
    weight = torch.zeros(16, requires_grad=True)
    (cut.residual_stream(TOKENS) @ weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


# -- splicing


def test_splicing_the_residual_itself_changes_nothing(family):
    _, _, whole = family
    clean = whole.logits(TOKENS)
    assert clean.shape == (3, 12, VOCABULARY)
    assert torch.equal(whole.logits(TOKENS, splice=lambda residual: residual), clean)
    stored = whole.residual_stream(TOKENS)
    assert torch.equal(whole.logits(TOKENS, splice=lambda residual: stored), clean)


def test_splicing_zeros_removes_all_information_about_the_tokens(family):
    _, _, whole = family
    zero = whole.logits(TOKENS, splice=torch.zeros_like)
    assert not torch.allclose(zero, whole.logits(TOKENS))
    # With the same residual at every position no token is told from another.
    assert torch.allclose(zero[0], zero[1]) and torch.allclose(zero[0], zero[2])
    assert torch.equal(whole.logits(TOKENS), whole.logits(TOKENS)), "the splice must not outlive its call"


def test_splice_is_given_the_residual_stream_and_is_causal(family):
    _, _, whole = family
    seen = []

    def change_last(residual):
        seen.append(residual.clone())
        changed = residual.clone()
        changed[:, -1] = 0
        return changed

    spliced, clean = whole.logits(TOKENS, splice=change_last), whole.logits(TOKENS)
    assert torch.equal(seen[0], whole.residual_stream(TOKENS))
    assert torch.allclose(spliced[:, :-1], clean[:, :-1], atol=1e-5)
    assert not torch.allclose(spliced[:, -1], clean[:, -1])


def test_splice_that_changes_the_shape_is_refused(family):
    _, cut, whole = family
    with pytest.raises(ValueError, match=r"splice made \(3, 12, 8\)"):
        whole.logits(TOKENS, splice=lambda residual: residual[..., :8])
    with pytest.raises(ArtifactError, match="whole=True"):
        cut.logits(TOKENS)


def test_splice_in_float32_into_a_bfloat16_model(config):
    lm = LanguageModel.load(config.model_copy(update={"dtype": "bfloat16"}), whole=True)
    assert lm.residual_stream(TOKENS).dtype == torch.bfloat16
    assert torch.equal(lm.logits(TOKENS, splice=lambda residual: residual.float()), lm.logits(TOKENS))


# -- the later blocks alone


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_later_blocks_and_head_give_what_a_whole_pass_gives(family, layer):
    """After the last block as well, where only the final norm and the head are left."""
    config, _, _ = family
    lm = LanguageModel.load(config.model_copy(update={"layer": layer}), whole=True)
    assert lm.can_resume(TOKENS)
    changed = lm.residual_stream(TOKENS) * torch.linspace(-1, 2, 12)[:, None]
    expected = lm.logits(TOKENS, splice=lambda _: changed)
    torch.testing.assert_close(lm.head(lm.resume(changed)), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, lm.logits(TOKENS), atol=1e-2)
    # Nothing of it stays in the model.
    torch.testing.assert_close(lm.head(lm.resume(lm.residual_stream(TOKENS))), lm.logits(TOKENS))
    rows = lm.resume(changed).flatten(0, 1)[[3, 17]]
    torch.testing.assert_close(lm.head(rows), expected.flatten(0, 1)[[3, 17]], rtol=1e-5, atol=1e-5)


def test_earlier_blocks_are_not_computed(family):
    _, _, whole = family
    residual = whole.residual_stream(TOKENS)
    computed = []
    norms = [
        next(m for m in block.modules() if "Norm" in type(m).__name__)
        for block in next(m for m in whole.model.base_model.modules() if isinstance(m, torch.nn.ModuleList))
    ]
    handles = [norm.register_forward_hook(lambda *_, i=i: computed.append(i)) for i, norm in enumerate(norms)]
    try:
        whole.head(whole.resume(residual))
    finally:
        for handle in handles:
            handle.remove()
    assert computed == [2]


def test_logits_capped_by_the_family_are_capped_by_the_head(tmp_path):
    lm = LanguageModel.load(save_tiny_model(tmp_path, "gemma2"), whole=True)
    assert lm.model.config.final_logit_softcapping == 30
    hidden = 1000 * lm.resume(lm.residual_stream(TOKENS))
    assert 29 < float(lm.head(hidden).abs().max()) <= 30


def test_blocks_that_share_more_than_the_residual_stream_cannot_run_alone(config):
    lm = LanguageModel.load(config, whole=True)
    first, last = lm.model.model.layers[0], lm.model.model.layers[2]
    aside: list[torch.Tensor] = []
    first.register_forward_hook(lambda module, inputs, output: aside.append(output.clone()))
    last.register_forward_hook(lambda module, inputs, output: output + aside[-1])
    assert not lm.can_resume(TOKENS)


def test_a_family_that_refuses_embeddings_cannot_resume(config, monkeypatch):
    lm = LanguageModel.load(config, whole=True)
    original = type(lm.model.model).forward

    def forward(self, input_ids, **rest):
        return original(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(lm.model.model), "forward", forward)
    assert not lm.can_resume(TOKENS)
    assert lm.logits(TOKENS).shape == (3, 12, VOCABULARY)


def test_a_cut_model_has_nothing_to_resume(family):
    _, cut, _ = family
    with pytest.raises(ArtifactError, match="whole=True"):
        cut.resume(cut.residual_stream(TOKENS))
    with pytest.raises(ArtifactError, match="whole=True"):
        cut.head(cut.residual_stream(TOKENS))


# -- tokenizer


def test_special_tokens(config):
    lm = LanguageModel.load(config, whole=False)
    assert lm.bos_token_id == BOS
    assert lm.special_ids == {BOS, EOS, PAD, UNKNOWN}
    assert lm.vocab_size == VOCABULARY


def test_eos_stands_in_for_a_missing_bos_and_says_so(tmp_path):
    config = save_tiny_model(tmp_path, "gpt2", special={"eos_token": "<eos>"})
    with pytest.warns(UserWarning, match="has no BOS: its EOS '<eos>'"):
        lm = LanguageModel.load(config, whole=False)
    assert lm.bos_token_id == EOS and lm.special_ids == {EOS}


def test_neither_bos_nor_eos_is_refused(tmp_path):
    config = save_tiny_model(tmp_path, special={"unk_token": "<unk>"})
    assert "neither BOS nor EOS" in refusal(config)


# -- identity


def test_identity_follows_content_layer_and_dtype_and_not_the_path(config, tmp_path):
    folder = Path(config.name)
    identity = LanguageModel.load(config, whole=False).identity
    shutil.copytree(folder, tmp_path / "copy")
    copy = config.model_copy(update={"name": str(tmp_path / "copy")})
    assert LanguageModel.load(copy, whole=False).identity == identity
    for change in ({"layer": 0}, {"dtype": "bfloat16"}):
        assert LanguageModel.load(config.model_copy(update=change), whole=False).identity != identity
    (folder / "README.md").write_text("not part of the model")
    assert LanguageModel.load(config, whole=False).identity == identity
    weights = stored_weights(config)
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert LanguageModel.load(config, whole=False).identity != identity


def test_a_hub_model_is_identified_by_its_commit(config, tmp_path, monkeypatch):
    snapshots = []

    def snapshot(commit):
        folder = tmp_path / "snapshots" / commit
        shutil.copytree(config.name, folder, dirs_exist_ok=True)

        def download(name, *, revision, allow_patterns):
            snapshots.append((name, revision, "model*.safetensors" in allow_patterns))
            assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        hub = config.model_copy(update={"name": "someone/tiny", "revision": "v1"})
        return LanguageModel.load(hub, whole=False).identity

    assert snapshot("a" * 40) == snapshot("a" * 40) != snapshot("b" * 40)
    # The description comes first, alone, so that what it rules out is never downloaded.
    assert snapshots[:2] == [("someone/tiny", "v1", False), ("someone/tiny", "v1", True)]


# -- one clear line for everything a user can put right


def test_layer_beyond_the_model(config):
    message = refusal(config.model_copy(update={"layer": 3}))
    assert message.startswith("model.layer: 3 is beyond") and "3 layers: 0-2" in message


def test_missing_device(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(config.model_copy(update={"device": "cuda"})).startswith("model.device: cuda is not available")
    assert LanguageModel.load(config.model_copy(update={"device": "auto"}), whole=False).device.type == "cpu"


def test_quantised_weights_have_no_such_dtype(config):
    file = Path(config.name) / "config.json"
    described = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(described))
    message = refusal(config)
    assert message.startswith("model.dtype:") and "quantised" in message and "float32" in message


def test_too_large_for_memory_says_how_much_before_loading(config, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))
    monkeypatch.setattr(model_loading, "_load_weights", lambda *_: pytest.fail("went on to load"))
    whole, cut = refusal(config, whole=True), refusal(config, whole=False)
    parameters = {
        "whole": sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(config.name).parameters()),
        "later": sum(v.numel() for k, v in stored_weights(config).items() if ".2." in k),
    }
    assert f"needs {parameters['whole'] * 4 / 1024:.1f} KiB of CPU memory, 9.8 KiB are free" in whole
    assert f"needs {(parameters['whole'] - parameters['later']) * 4 / 1024:.1f} KiB of CPU memory" in cut
    smaller = refusal(config.model_copy(update={"dtype": "bfloat16"}), whole=True)
    assert f"needs {parameters['whole'] * 2 / 1024:.1f} KiB" in smaller


def test_missing_folder_and_missing_packaged_model(tmp_path, monkeypatch, config):
    missing = config.model_copy(update={"name": str(tmp_path / "nowhere")})
    assert refusal(missing).startswith("model.name: there is no folder")
    monkeypatch.setattr(model_loading, "POCKET_FOLDER", tmp_path / "nothing")
    assert "make pocket-lm" in refusal(config.model_copy(update={"name": "pocket"}))
    monkeypatch.setattr(model_loading, "POCKET_FOLDER", Path(config.name))
    assert LanguageModel.load(config.model_copy(update={"name": "pocket"}), whole=False).d_in == 16


def test_folder_without_configuration_safetensors_or_tokenizer(config, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(config.model_copy(update={"name": str(tmp_path / "empty")}))
    folder = Path(config.name)
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "the tokenizer of" in refusal(config)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no safetensors weights" in refusal(config)


def test_damaged_and_incomplete_weights(config):
    file = Path(config.name) / "model.safetensors"
    weights = stored_weights(config)
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[: len(whole_file) // 2])
    assert "cannot be read" in refusal(config)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert "lack 1 tensors, the first is" in refusal(config)


def test_code_shipped_with_a_model_is_never_run(config, tmp_path):
    folder = Path(config.name)
    described = json.loads((folder / "config.json").read_text())
    described |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "transformers does not know the model" in refusal(config)
    assert not (tmp_path / "ran").exists()


def test_an_encoder_is_no_causal_model(config, tmp_path):
    """It has a head, and weights for all of it."""
    small = BertConfig(
        vocab_size=40, initializer_range=0.3, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    BertLMHeadModel(small).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(config.name).save_pretrained(tmp_path / "bert")
    encoder = config.model_copy(update={"name": str(tmp_path / "bert")})
    with pytest.raises(ArtifactError, match=r"^model.name: in .*bert a token changes what was before it"):
        LanguageModel.load(encoder, whole=True)


def test_tokens_of_any_integer_type(config):
    lm = LanguageModel.load(config, whole=False)
    assert torch.equal(lm.residual_stream(TOKENS.to(torch.int32)), lm.residual_stream(TOKENS.long()))
    assert np.isfinite(lm.residual_stream(TOKENS).numpy()).all()


# --- what a model cannot be asked


def test_more_tokens_than_positions_and_tokens_that_it_does_not_know(tmp_path):
    lm = LanguageModel.load(save_tiny_model(tmp_path / "gpt2", "gpt2"), whole=True)
    with pytest.raises(ArtifactError, match="has 32 positions, and a context of 33 tokens"):
        lm.residual_stream(torch.ones(1, 33, dtype=torch.long))
    with pytest.raises(ArtifactError, match="embeddings for 40 tokens, and there are tokens 0 to 40"):
        lm.logits(torch.tensor([[0, 40]]))
    rotary = LanguageModel.load(save_tiny_model(tmp_path / "gpt_neox", "gpt_neox"), whole=True)
    assert rotary.max_positions is None


def test_a_centred_stream_leaves_the_logits_as_they_are(tmp_path):
    config = save_tiny_model(tmp_path / "gpt2", "gpt2")
    raw, lm = LanguageModel.load(config, whole=True), LanguageModel.load(config, whole=True)
    tokens = torch.from_numpy(random_tokens(3, 10)).long()
    lm.centre()
    lm.centre()
    residual = raw.residual_stream(tokens)
    torch.testing.assert_close(lm.residual_stream(tokens), residual - residual.mean(dim=-1, keepdim=True))
    torch.testing.assert_close(lm.logits(tokens), raw.logits(tokens), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lm.logits(tokens, lambda x: x), raw.logits(tokens), rtol=1e-4, atol=1e-5)
    assert lm.identity != raw.identity and lm.can_resume(tokens)
