"""SAELens folders, both ways: `cfg.json` + `sae_weights.safetensors`, as `SAE.save_model` of versions 1 to 6 writes
them and `SAE.load_from_disk` of version 6 reads them.

SAELens's own layout is this package's: W_enc `[d_in, d_sae]`, W_dec `[d_sae, d_in]`.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from sae_lib import __version__
from sae_lib.autoencoders.base import Autoencoder
from sae_lib.share.facts import Facts
from sae_lib.share.origin import Origin, hook_layer, read_config, setting, texts
from sae_lib.share.weights import InferenceForm, assemble, check_keys, check_shapes, read_safetensors
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import write_json

LIBRARY = "SAELens"
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"  # beside the weights of a training checkpoint
# Of the files written here: those that name a version before 6 are read by other rules.
FORMAT_VERSION = "6.0.0"

SHARED = ("W_enc", "W_dec", "b_dec")
# BatchTopK and its Matryoshka form are saved as jumprelu; their training checkpoints keep their names.
TENSORS = {
    "standard": (*SHARED, "b_enc"),
    "topk": (*SHARED, "b_enc"),
    "jumprelu": (*SHARED, "b_enc", "threshold"),
    "batchtopk": (*SHARED, "b_enc", "topk_threshold"),
    "matryoshka_batchtopk": (*SHARED, "b_enc", "topk_threshold"),
    "gated": (*SHARED, "b_gate", "b_mag", "r_mag"),
}
# Keys that version 6 renamed.
RENAMED = {"hook_point": "hook_name", "hook_point_layer": "hook_layer", "activation_fn_str": "activation_fn"}


def load(folder: Path) -> tuple[Autoencoder, Origin]:
    """The SAE of a SAELens folder and where it was trained."""
    file = folder / WEIGHTS
    config = _config(folder / CONFIG)
    architecture = config["architecture"]
    if architecture not in TENSORS:
        known = ", ".join(TENSORS)
        raise ArtifactError(f"sae: {folder / CONFIG} has architecture {architecture!r}, which is none of {known}")
    tensors = read_safetensors(file, LIBRARY)
    finetuned = tensors.pop("scaling_factor", torch.ones(()))  # of finetuning, which versions before 6 wrote
    if not torch.equal(finetuned, torch.ones_like(finetuned)):
        raise ArtifactError(f"sae: {file} holds a finetuning scaling_factor, which SAELens 6 no longer applies either")
    if "log_threshold" in tensors:  # training checkpoints before 6.0
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    check_keys(tensors, TENSORS[architecture], file, architecture)
    rescaled = config.get("rescale_acts_by_decoder_norm", False) and "topk" in architecture
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold")
        architecture = "jumprelu"
    check_shapes(tensors, file)
    for key, size in zip(("d_in", "d_sae"), tensors["W_enc"].shape, strict=True):
        if config.get(key) not in (None, size):
            raise ArtifactError(f"sae: {folder / CONFIG} says {key} = {config[key]!r}, W_enc of {WEIGHTS} has {size}")
    k = setting(config, "k", int, folder / CONFIG) if architecture == "topk" else None
    if rescaled:
        # f = activation(pre ||d_i||), x_hat = sum f_i d_i / ||d_i|| + b_dec: an SAE with unit decoder rows.
        norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
        tensors |= {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms}
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    # An SAE of s x as one of x, with the same latents (SAELens's `fold_activation_norm_scaling_factor`).
    scale = _input_scale(config, folder)
    for name, factor in (("W_enc", scale), ("W_dec", 1 / scale), ("b_dec", 1 / scale)):
        tensors[name] = tensors[name] * factor
    sae = assemble(architecture, tensors, file, subtract_b_dec=config["apply_b_dec_to_input"], k=k)
    model, hook = texts(config, "model_name", "hook_name")
    remark = "it was trained on contexts without BOS; here every context opens with BOS"
    remarks = (remark,) if config.get("prepend_bos") is False else ()
    return sae, Origin(CONFIG, model, hook, hook_layer(hook), config["centred"], remarks)


def _config(file: Path) -> dict[str, Any]:
    """cfg.json with the names of version 6, whichever version wrote it, and with `metadata` laid open."""
    values = read_config(file, LIBRARY)
    flat = (values.get("metadata") or {}) | values if isinstance(values.get("metadata") or {}, dict) else values
    for key in ("metadata", "activation_fn_kwargs", "model_from_pretrained_kwargs"):
        if not isinstance(flat.get(key) or {}, dict):
            raise ArtifactError(f"sae: {file} is no SAELens configuration: '{key}' must be a mapping")
    config = {RENAMED.get(key, key): value for key, value in flat.items()}
    config = {"architecture": "standard", "apply_b_dec_to_input": True} | config
    config["centred"] = _centred(flat)
    for key, kind in (("architecture", str), ("apply_b_dec_to_input", bool)):
        setting(config, key, kind, file)
    if not isinstance(config.get("hook_name"), str | None):
        raise ArtifactError(f"sae: {file} has hook_name {config['hook_name']!r}; it must be the name of one place")
    activation = config.get("activation_fn") or "relu"
    if activation == "topk" and config["architecture"] in ("standard", "topk"):
        # Before 6, k is an argument of the activation function: of architecture standard, from 4.4 of topk.
        k = (config.get("activation_fn_kwargs") or {}).get("k")
        config = {"k": k} | config | {"architecture": "topk"}
    elif activation not in ("relu", "topk"):
        raise ArtifactError(f"sae: {file} has activation_fn {activation!r}; relu and topk are known")
    if config.get("reshape_activations", "none") != "none":
        what = f"reshape_activations {config['reshape_activations']!r}"
        raise ArtifactError(f"sae: {file} has {what}: it reads attention heads, not a residual stream")
    return config


def _centred(config: dict[str, Any]) -> Literal["no", "perhaps", "yes"]:
    """Whether the model's writing weights were centred: from version 4 on only where the file says so; most were
    before, and older files do not say."""
    kwargs = config.get("model_from_pretrained_kwargs") or {}
    if "center_writing_weights" in kwargs:
        return "yes" if kwargs["center_writing_weights"] else "no"
    version = str(config.get("sae_lens_version") or config.get("sae_lens_training_version") or "")
    major = version.split(".")[0]
    return "perhaps" if "hook_point" in config or (major.isdigit() and int(major) < 4) else "no"


def _input_scale(config: dict[str, Any], folder: Path) -> float:
    """The factor s of an SAE that takes s x in place of x."""
    normalisation = config.get("normalize_activations") or "none"
    if normalisation is True:  # before it had names
        normalisation = "expected_average_only_in"
    if normalisation == "none":
        return 1.0
    has = f"{folder / CONFIG} has normalize_activations {normalisation!r}"
    if normalisation != "expected_average_only_in":
        fault = "which cannot be written as the weights of an SAE of raw activations"
        raise ArtifactError(f"sae: {has}, {fault}; 'none' and 'expected_average_only_in' can")
    factor = read_config(folder / SCALER, LIBRARY).get("scaling_factor") if (folder / SCALER).is_file() else None
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor > 0:
        fix = "fold it with SAELens's fold_activation_norm_scaling_factor and save again"
        raise ArtifactError(f"sae: {has}, and the factor is not stored ({SCALER}); {fix}")
    return float(factor)


def save_saelens(form: InferenceForm, folder: Path, facts: Facts | None = None) -> None:
    """Write an SAE as SAELens does. Its layout is ours, so no weight is changed."""
    d_in, d_sae = form.tensors["W_enc"].shape
    metadata: dict[str, Any] = {"sae_lens_version": FORMAT_VERSION, "sae_lens_training_version": None}
    if facts:
        model_class, hook = facts.place.saelens_hook
        metadata |= {
            "model_name": facts.place.model, "model_class_name": model_class, "model_from_pretrained_kwargs": {},
            "hook_name": hook, "hf_hook_name": facts.place.block, "hook_head_index": None,
            "context_size": facts.context_length, "dataset_path": facts.dataset,
            "prepend_bos": True, "exclude_special_tokens": True,  # activations of special tokens are left out
            "training_tokens": facts.tokens, "seed": facts.seed, "method": facts.method,
            "trained_by": f"sae_lib {__version__}",
        }  # fmt: skip
    config: dict[str, Any] = {
        "architecture": form.architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": form.subtract_b_dec, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": metadata,
    }  # fmt: skip
    if form.architecture == "topk":
        config |= {"k": form.k, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(form.tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
