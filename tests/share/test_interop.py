"""Folders written by hand as each library writes them, against that library's formulas in plain PyTorch."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.topk import TopKConfig
from sae_lib.share.load import Origin, load_sae, load_with_origin
from sae_lib.share.origin import hook_layer, origin_faults
from sae_lib.util.checkpoint import save_checkpoint
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json

D_IN, D_SAE, K = 6, 15, 4
X = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))


def draw(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> dict[str, torch.Tensor]:
    """Random weights in SAELens's layout; decoder rows of norms between about 1 and 4."""
    return {
        "W_enc": draw(D_IN, D_SAE, seed=2),
        "W_dec": draw(D_SAE, D_IN, seed=3),
        "b_enc": draw(D_SAE, seed=4, scale=0.3),
        "b_dec": draw(D_IN, seed=5),
    }


def gate_weights() -> dict[str, torch.Tensor]:
    return {name: draw(D_SAE, seed=seed, scale=0.3) for seed, name in enumerate(("b_gate", "b_mag", "r_mag"), 6)}


def topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, negative ones set to zero, one row at a time."""
    f = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        for i in sorted(range(len(values)), key=lambda i: -float(values[i]))[:k]:
            f[row, i] = max(0.0, float(values[i]))
    return f


def saelens_folder(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    written = {
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"},
    } | config  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(written))
    return folder


def dictionary_folder(folder: Path, state: dict[str, torch.Tensor], dict_class: str, **trainer: object) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "ae.pt")
    written = {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 1, "lm_name": "tiny"}
    (folder / "config.json").write_text(json.dumps({"trainer": written | trainer, "buffer": {"ctx_len": 128}}))
    return folder


def assert_same(folder: Path, f: torch.Tensor, x_hat: torch.Tensor) -> None:
    """The loaded SAE has these latents and this reconstruction on X, and fires on some of it and not on all."""
    assert 0 < (f != 0).float().mean() < 1
    sae = load_sae(folder)
    torch.testing.assert_close(sae.encode(X), f, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(X), x_hat, rtol=1e-4, atol=1e-5)
    assert (sae.d_in, sae.d_sae, sae.training) == (D_IN, D_SAE, False)


# --- SAELens


W = weights() | gate_weights() | {"threshold": draw(D_SAE, seed=9)}  # a threshold of both signs
U = (X - W["b_dec"]) @ W["W_enc"]
PRE, RAW, NORMS = U + W["b_enc"], X @ W["W_enc"] + W["b_enc"], W["W_dec"].norm(dim=1)
RESCALED = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
GATED = (U + W["b_gate"] > 0) * torch.relu(U * W["r_mag"].exp() + W["b_mag"])


@pytest.mark.parametrize(
    ("settings", "names", "f", "norms"),
    [
        ({"architecture": "standard"}, ["b_enc"], torch.relu(PRE), 1),
        ({"architecture": "standard", "apply_b_dec_to_input": False}, ["b_enc"], torch.relu(RAW), 1),
        ({"architecture": "topk", "k": K}, ["b_enc"], topk(PRE, K), 1),
        (RESCALED, ["b_enc"], topk(PRE * NORMS, K), NORMS),
        ({"architecture": "jumprelu"}, ["b_enc", "threshold"], torch.relu(PRE) * (W["threshold"] < PRE), 1),
        ({"architecture": "gated"}, ["b_gate", "b_mag", "r_mag"], GATED, 1),
    ],
)
def test_saelens(tmp_path, settings, names, f, norms):
    folder = saelens_folder(tmp_path, {name: W[name] for name in ("W_enc", "W_dec", "b_dec", *names)}, **settings)
    assert_same(folder, f, (f / norms) @ W["W_dec"] + W["b_dec"])
    assert norms is NORMS or torch.equal(load_sae(folder).W_dec, W["W_dec"]), "decoder rows keep their norms"


def test_saelens_batchtopk_checkpoint(tmp_path):
    """A training checkpoint has one threshold, in units of the rescaled pre-activations."""
    w, norms = weights(), weights()["W_dec"].norm(dim=1)
    pre = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    f = torch.relu(pre) * (pre > 1.7)
    stored = w | {"topk_threshold": torch.tensor(1.7, dtype=torch.float64)}
    for architecture in ("batchtopk", "matryoshka_batchtopk"):
        folder = saelens_folder(tmp_path, stored, architecture=architecture, rescale_acts_by_decoder_norm=True)
        assert_same(folder, f, (f / norms) @ w["W_dec"] + w["b_dec"])


def test_saelens_scaled_inputs_are_folded(tmp_path):
    """The SAE takes s x and gives s x_hat; s lies beside the weights of a checkpoint."""
    w, s = weights(), 3.5
    f = torch.relu((s * X - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    folder = saelens_folder(tmp_path, w, architecture="standard", normalize_activations="expected_average_only_in")
    with pytest.raises(ArtifactError, match="the factor is not stored"):
        load_sae(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s, "has_whitening": False}))
    assert_same(folder, f, (f @ w["W_dec"] + w["b_dec"]) / s)


def test_saelens_folder_before_version_6(tmp_path):
    """No metadata, other key names, TopK as an activation function, a finetuning scale of ones."""
    w = weights()
    save_file(w | {"scaling_factor": torch.ones(D_SAE)}, tmp_path / "sae_weights.safetensors")
    old = {
        "d_in": D_IN, "d_sae": D_SAE, "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
        "finetuning_scaling_factor": False, "prepend_bos": False,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    f = topk((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    assert_same(tmp_path, f, f @ w["W_dec"] + w["b_dec"])
    origin = load_with_origin(tmp_path).origin
    assert (origin.model, origin.layer) == ("gpt2-small", 7)
    assert any("without BOS" in remark for remark in origin.remarks)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_saelens_topk_of_versions_3_to_5(tmp_path, architecture):
    """k is an argument of the activation function, whatever the architecture is called; before 4.4 it is standard."""
    w = weights()
    f = topk((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    named: dict[str, object] = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "metadata": {}}
    folder = saelens_folder(tmp_path, w, architecture=architecture, sae_lens_training_version="5.10.0", **named)
    assert_same(folder, f, f @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("config", "centred"),
    [
        ({}, "no"),
        ({"sae_lens_version": "6.30.0"}, "no"),
        ({"sae_lens_training_version": "5.10.0", "model_from_pretrained_kwargs": {}}, "no"),
        ({"sae_lens_training_version": "3.12.1"}, "perhaps"),
        ({"hook_point": "blocks.2.hook_resid_pre"}, "perhaps"),  # versions 1 and 2 do not name themselves
        ({"hook_point": "x", "model_from_pretrained_kwargs": {"center_writing_weights": True}}, "yes"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": False}}, "no"),
    ],
)
def test_saelens_says_whether_the_model_was_centred(tmp_path, config, centred):
    folder = saelens_folder(tmp_path, weights(), architecture="standard", metadata=config)
    assert load_with_origin(folder).origin.centred == centred


def test_saelens_tensors_that_do_not_fit_together(tmp_path):
    w = weights()
    for changed, message in (
        ({"W_dec": w["W_dec"].T.contiguous()}, r"W_dec of shape \[6, 15\], .* asks for \[15, 6\]"),
        ({"W_enc": torch.zeros(())}, "two dimensions"),
        ({"extra": torch.zeros(1)}, "also holds extra; a topk SAE has W_dec, W_enc, b_dec, b_enc"),
    ):
        folder = saelens_folder(tmp_path, w | changed, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
        with pytest.raises(ArtifactError, match=message):
            load_sae(folder)


@pytest.mark.parametrize(
    "content", ["[1]", '{"scaling_factor": true}', '{"scaling_factor": "2"}', '{"scaling_factor": -1}']
)
def test_a_factor_of_saelens_that_is_none(tmp_path, content):
    """A list ended in a traceback, and `true` counted as 1."""
    saelens_folder(tmp_path, weights(), architecture="standard", normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"activation_scaler.json"):
        load_sae(tmp_path)


def test_saelens_without_latents_or_with_many_places(tmp_path):
    w = weights()
    none = {"W_enc": w["W_enc"][:, :0], "b_enc": w["b_enc"][:0], "W_dec": w["W_dec"][:0], "b_dec": w["b_dec"]}
    saelens_folder(tmp_path, {name: tensor.contiguous() for name, tensor in none.items()}, architecture="standard")
    with pytest.raises(
        ArtifactError, match=r"an encoder of shape \[6, 0\]; it must have two dimensions, none of them 0"
    ):
        load_sae(tmp_path)
    saelens_folder(tmp_path, w, architecture="standard", hook_name=["blocks.1.hook_resid_post"])
    with pytest.raises(ArtifactError, match=r"hook_name .* it must be the name of one place"):
        load_sae(tmp_path)


def test_saelens_bfloat16_weights_are_read_as_float32(tmp_path):
    w = {name: tensor.bfloat16() for name, tensor in weights().items()}
    sae = load_sae(saelens_folder(tmp_path, w, architecture="standard", dtype="bfloat16"))
    assert sae.dtype == torch.float32 and torch.equal(sae.W_enc, w["W_enc"].float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "transcoder"}, "architecture 'transcoder'"),
        ({"architecture": ["standard"]}, "gives no architecture"),
        ({"apply_b_dec_to_input": None}, "gives no apply_b_dec_to_input"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"architecture": "topk"}, "gives no k"),
        ({"architecture": "topk", "k": D_SAE + 1}, "k = 16"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"d_sae": 99}, "says d_sae = 99, W_enc of sae_weights.safetensors has 15"),
    ],
)
def test_saelens_settings_that_are_refused(tmp_path, changes, message):
    folder = saelens_folder(tmp_path, weights(), **({"architecture": "standard"} | changes))
    with pytest.raises(ArtifactError, match=message) as raised:
        load_sae(folder)
    assert "\n" not in str(raised.value)


# --- dictionary_learning


def linear_state(w: dict[str, torch.Tensor], **renamed: str) -> dict[str, torch.Tensor]:
    """The state_dict of a class built on nn.Linear, whose weights are [out, in]."""
    state = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    return state | {theirs: w[own] for own, theirs in renamed.items()}


LINEAR = linear_state(W, b_enc="encoder.bias")
TOPK = LINEAR | {"b_dec": W["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(0.9)}
NEVER = TOPK | {"threshold": torch.tensor(-1.0)}  # training never reached it: every positive latent fires
GATE = linear_state(W, b_dec="decoder_bias", b_gate="gate_bias", b_mag="mag_bias", r_mag="r_mag")
ABOVE = torch.relu(PRE) * (PRE > 0.9)
NESTED = weights() | {"k": torch.tensor(K), "threshold": torch.tensor(0.9), "group_sizes": torch.tensor([5, 10])}


@pytest.mark.parametrize(
    ("name", "state", "f"),
    [
        ("AutoEncoder", LINEAR | {"bias": W["b_dec"]}, torch.relu(PRE)),
        ("AutoEncoderNew", LINEAR | {"decoder.bias": W["b_dec"]}, torch.relu(RAW)),  # its input is not centred
        ("GatedAutoEncoder", GATE, GATED),
        ("AutoEncoderTopK", TOPK, topk(PRE, K)),  # whatever its threshold
        ("AutoEncoderTopK", {name: value for name, value in TOPK.items() if name != "threshold"}, topk(PRE, K)),
        ("AutoEncoderTopK", LINEAR | {"b_dec": W["b_dec"]}, topk(PRE, K)),
        ("BatchTopKSAE", TOPK, ABOVE),
        ("BatchTopKSAE", NEVER, torch.relu(PRE)),
        ("MatryoshkaBatchTopKSAE", NESTED, ABOVE),
        ("JumpReluAutoEncoder", weights() | {"threshold": W["threshold"].abs()}, RAW * (W["threshold"].abs() < RAW)),
    ],
)
def test_dictionary_learning(tmp_path, name, state, f):
    assert_same(dictionary_folder(tmp_path, state, name, k=K), f, f @ W["W_dec"] + W["b_dec"])


def autoencoder_state() -> dict[str, torch.Tensor]:
    w = weights()
    return linear_state(w, b_dec="bias") | {"encoder.bias": w["b_enc"]}


def test_dictionary_learning_faults_in_one_line(tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ArtifactError, match=message) as raised:
            load_sae(tmp_path)
        assert "\n" not in str(raised.value)

    state = autoencoder_state()
    dictionary_folder(tmp_path, state, "IdentityDict")
    refused("dict_class 'IdentityDict', which is none of AutoEncoder")
    dictionary_folder(tmp_path, state, "GatedAutoEncoder")
    refused("lacks decoder_bias, gate_bias, mag_bias, r_mag and also holds bias, encoder.bias")
    dictionary_folder(tmp_path, state | {"bias": torch.zeros(D_IN + 1)}, "AutoEncoder")
    refused(r"b_dec of shape \[7\], .* asks for \[6\]")
    dictionary_folder(tmp_path, state | {"bias": torch.full((D_IN,), torch.nan)}, "AutoEncoder")
    refused("b_dec of .* holds NaN")
    topk_state = {k: v for k, v in state.items() if k != "bias"} | {"b_dec": torch.zeros(D_IN), "k": torch.tensor(3)}
    dictionary_folder(tmp_path, topk_state, "AutoEncoderTopK", k=K)
    refused("says k = 4, ae.pt says 3")
    (tmp_path / "ae.pt").write_bytes((tmp_path / "ae.pt").read_bytes()[:300])
    refused("ae.pt is damaged")
    (tmp_path / "config.json").unlink()
    refused("config.json is missing")


class Command:
    """Unpickling this runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def test_a_pickle_that_is_no_tensors_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    dictionary_folder(tmp_path, autoencoder_state(), "AutoEncoder")
    for content in (Command(marker), {"bias": Command(marker)}):
        torch.save(content, tmp_path / "ae.pt")
        with pytest.raises(ArtifactError, match="more than tensors"):
            load_sae(tmp_path)
        (tmp_path / "ae.pt").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ArtifactError, match="more than tensors"):
            load_sae(tmp_path)
    assert not marker.exists()
    torch.save([torch.zeros(1)], tmp_path / "ae.pt")
    with pytest.raises(ArtifactError, match="no state_dict"):
        load_sae(tmp_path)


# --- sparsify


def sparsify_folder(folder: Path, **changes: object) -> Path:
    w = weights()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
    save_file(tensors | {"W_dec": w["W_dec"], "b_dec": w["b_dec"]}, folder / "sae.safetensors")
    written = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D_IN,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(written | changes))
    return folder


def test_sparsify(tmp_path):
    w = weights()
    f = topk((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    folder = sparsify_folder(tmp_path / "run" / "layers.5")
    assert_same(folder, f, f @ w["W_dec"] + w["b_dec"])
    assert load_with_origin(folder).origin[:4] == ("its folder", None, "layers.5", 5)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"sae": {"k": K}, "model": "EleutherAI/pythia-70m"}))
    assert load_with_origin(folder).origin.model == "EleutherAI/pythia-70m"
    place = load_with_origin(sparsify_folder(tmp_path / "run" / "layers.5.mlp")).origin
    assert (place.hook, place.layer) == ("layers.5.mlp", None)
    assert load_with_origin(sparsify_folder(tmp_path / "mine")).origin.hook is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "transcode True; only False can be read"),
        ({"skip_connection": True}, "skip_connection True"),
        ({"activation": "groupmax"}, "activation 'groupmax'; only 'topk'"),
        ({"k": None}, "gives no k"),
    ],
)
def test_sparsify_coders_that_are_refused(tmp_path, changes, message):
    with pytest.raises(ArtifactError, match=message):
        load_sae(sparsify_folder(tmp_path, **changes))


# --- Gemma Scope


def gemma_scope_folder(folder: Path) -> dict[str, torch.Tensor]:
    w = weights() | {"threshold": draw(D_SAE, seed=9).abs()}
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", allow_pickle=False, **{name: tensor.numpy() for name, tensor in w.items()})
    return w


def test_gemma_scope(tmp_path):
    folder = tmp_path / "models--google--gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    w = gemma_scope_folder(folder)
    pre = X @ w["W_enc"] + w["b_enc"]
    f = torch.relu(pre) * (pre > w["threshold"])
    assert_same(folder, f, f @ w["W_dec"] + w["b_dec"])
    assert load_with_origin(folder).origin[1:4] == ("gemma-2-2b", "blocks.20.hook_resid_post", 20)


@pytest.mark.parametrize(
    ("path", "model", "hook"),
    [
        ("gemma-scope-9b-it-res/layer_9/width_16k", "gemma-2-9b-it", "blocks.9.hook_resid_post"),
        ("gemma-scope-2b-pt-mlp/layer_5/width_16k", "gemma-2-2b", "blocks.5.hook_mlp_out"),
        ("gemma-scope-2b-pt-res/embedding/width_4k", "gemma-2-2b", "hook_embed"),
        ("layer_3/width_16k", None, "blocks.3.hook_resid_post"),
        ("renamed", None, None),
    ],
)
def test_places_of_gemma_scope_are_in_its_folders(tmp_path, path, model, hook):
    gemma_scope_folder(tmp_path / path)
    origin = load_with_origin(tmp_path / path).origin
    assert (origin.model, origin.hook) == (model, hook)
    assert (origin.layer is None) == (hook is None or "resid" not in hook)


def test_gemma_scope_2(tmp_path):
    w = weights() | {"threshold": draw(D_SAE, seed=9).abs()}
    save_file({name.replace("W_", "w_"): tensor for name, tensor in w.items()}, tmp_path / "params.safetensors")
    written = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.9.output"}
    (tmp_path / "config.json").write_text(json.dumps(written))
    pre = X @ w["W_enc"] + w["b_enc"]
    f = torch.relu(pre) * (pre > w["threshold"])
    assert_same(tmp_path, f, f @ w["W_dec"] + w["b_dec"])
    assert load_with_origin(tmp_path).origin[1:4] == ("gemma-3-1b-pt", "model.layers.9.output", 9)


def test_gemma_scope_files_that_are_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((D_IN, D_SAE)), W_dec=np.zeros((D_SAE, D_IN)))
    with pytest.raises(ArtifactError, match="lacks b_dec, b_enc, threshold"):
        load_sae(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([{}], dtype=object))
    with pytest.raises(ArtifactError, match="holds more than numbers"):
        load_sae(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"params.npz is damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize("kind", [torch.complex64, torch.int8, torch.bool])
@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
def test_weights_that_are_no_floating_point_numbers(tmp_path, kind, name):
    """The imaginary part of complex ones was dropped; whole ones are quantised, and their scale is not there."""
    w = weights() | {"threshold": draw(D_SAE, seed=9).abs()}
    altered = w | {name: w[name].to(kind)}
    np.savez(tmp_path / "params.npz", allow_pickle=False, **{key: value.numpy() for key, value in altered.items()})
    (tmp_path / "2").mkdir()
    save_file(altered, tmp_path / "2" / "params.safetensors")
    (tmp_path / "2" / "config.json").write_text("{}")
    altered.pop("threshold")
    folders = [tmp_path, tmp_path / "2", saelens_folder(tmp_path / "3", altered, architecture="standard")]
    folders.append(sparsify_folder(tmp_path / "4"))
    theirs = {"W_enc": "encoder.weight", "b_dec": "b_dec"}[name]
    stored = load_file(folders[-1] / "sae.safetensors")
    save_file(stored | {theirs: stored[theirs].to(kind)}, folders[-1] / "sae.safetensors")
    state = autoencoder_state()
    theirs = {"W_enc": "encoder.weight", "b_dec": "bias"}[name]
    folders.append(dictionary_folder(tmp_path / "5", state | {theirs: state[theirs].to(kind)}, "AutoEncoder"))
    for folder in folders:
        with pytest.raises(ArtifactError, match=rf"is {str(kind)[6:]}; save it as dense floating-point") as raised:
            load_sae(folder)
        assert "\n" not in str(raised.value)


def test_sparse_weights_are_refused(tmp_path):
    state = autoencoder_state()
    dictionary_folder(tmp_path, state | {"bias": state["bias"].to_sparse()}, "AutoEncoder")
    with pytest.raises(ArtifactError, match=r"bias of .* is sparse; save it as dense"):
        load_sae(tmp_path)


def test_gemma_scope_of_another_byte_order(tmp_path):
    w = weights() | {"threshold": draw(D_SAE, seed=9).abs()}
    np.savez(
        tmp_path / "params.npz", allow_pickle=False, **{key: value.numpy().astype(">f4") for key, value in w.items()}
    )
    assert torch.equal(load_sae(tmp_path).W_enc, w["W_enc"])


# --- recognising a folder


def test_own_run_folder(tmp_path):
    config = TopKConfig(d_sae=D_SAE, k=K)
    sae = build_autoencoder(config, D_IN, seed=3)
    save_checkpoint(tmp_path / "sae.safetensors", sae.state_dict(), {"config": config.model_dump(mode="json")})
    write_json(tmp_path / "run.json", {"model": "pocket", "layer": 2})
    loaded, origin = load_with_origin(tmp_path)
    assert torch.equal(loaded(X), sae(X))
    assert (origin.model, origin.layer) == ("pocket", 2)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"run.json is no sae_lib configuration"):
        load_sae(tmp_path)


def test_folders_that_hold_no_sae(tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder"):
        load_sae(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"no SAE of a known format: sae.safetensors .* \(SAELens\)"):
        load_sae(tmp_path)
    saelens_folder(tmp_path, weights(), architecture="standard")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ArtifactError, match=r"sae_weights.safetensors is damaged"):
        load_sae(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"sae_weights.safetensors is missing"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cfg.json is not valid JSON"):
        load_sae(tmp_path)


# --- where it was trained


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.8.hook_resid_pre", 7),
        ("blocks.8.hook_resid_post", 8),
        ("blocks.1.hook_out", 1),  # TransformerLens's bridge
        ("blocks.1.hook_in", 0),
        ("model.layers.12", 12),
        ("transformer.h.3", 3),
        ("blocks.0.hook_resid_pre", None),  # the embedding
        ("blocks.8.hook_mlp_out", None),
        ("blocks.8.mlp.hook_out", None),
        ("blocks.8.attn.hook_z", None),
        ("blocks.8.hook_resid_mid", None),
    ],
)
def test_hook_names(hook, layer):
    assert hook_layer(hook) == layer


def test_origin_is_compared_with_what_is_asked(tmp_path):
    folder = saelens_folder(tmp_path / "sae", weights(), architecture="standard")
    origin = load_with_origin(folder).origin
    assert origin_faults(origin, "someone/tiny", 1) == []
    ((fault, fix),) = origin_faults(origin, "someone/tiny", 2)
    assert "2 is asked for" in fault and "at blocks.1.hook_resid_post (layer 1)" in fault and fix == "ask for layer 1"
    layer, model = origin_faults(origin, "pocket", 2)
    assert layer == (fault, fix) and "model: pocket is asked for" in model[0] and "trained on tiny" in model[0]
    ((fault, _),) = origin_faults(origin._replace(hook="blocks.1.hook_mlp_out", layer=None), "tiny", 1)
    assert "reads blocks.1.hook_mlp_out" in fault
    assert origin_faults(origin._replace(model=None, hook=None, layer=None), "anything", 5) == []


def test_a_local_model_goes_by_its_folder_or_its_own_name(tmp_path):
    origin = load_with_origin(saelens_folder(tmp_path / "sae", weights(), architecture="standard")).origin
    model = tmp_path / "copy"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"_name_or_path": "someone/tiny"}))
    assert origin_faults(origin, str(model), 1) == []
    (model / "config.json").write_text("{}")
    assert "trained on tiny" in origin_faults(origin, str(model), 1)[0][0]


@pytest.mark.parametrize(
    ("named", "asked", "same"),
    [
        ("gpt2-small", "openai-community/gpt2", True),
        ("tiny-stories-1L-21M", "roneneldan/TinyStories-1Layer-21M", True),
        ("tiny-stories-2L-33M", "roneneldan/TinyStories-2Layers-33M", True),
        ("Llama-2-7b", "meta-llama/Llama-2-7b-hf", True),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1", True),
        ("gemma-2b", "google/gemma-2-2b", False),
        ("tiny-stories-1L-21M", "roneneldan/TinyStories-1M", False),
        ("pythia-70m", "EleutherAI/pythia-70m-deduped", False),
    ],
)
def test_names_of_transformer_lens(named, asked, same):
    assert (origin_faults(Origin("cfg.json", named), asked, 1) == []) == same


def test_dictionary_learning_places(tmp_path):
    state = autoencoder_state()
    for submodule, layer in ((None, 1), ("resid_post_layer_1", 1), ("mlp_out_layer_1", None)):
        origin = load_with_origin(dictionary_folder(tmp_path, state, "AutoEncoder", submodule_name=submodule)).origin
        assert (origin.model, origin.layer) == ("tiny", layer)
