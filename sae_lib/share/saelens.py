"""SAELens folders: `cfg.json` + `sae_weights.safetensors`, as `SAE.save_model` of SAELens 6 and older versions write.

SAELens's own layout is this package's: W_enc `[d_in, d_sae]`, W_dec `[d_sae, d_in]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.share.origin import Origin, hook_layer
from sae_lib.share.weights import Tensors, assemble, check_keys, check_shapes, setting
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
SCALER = "activation_scaler.json"  # beside the weights of a training checkpoint

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
    """The SAE of a SAELens folder and where it was trained.

    Raises:
        ArtifactError: a file is missing or damaged; an architecture other than standard, topk, jumprelu, gated,
            batchtopk, matryoshka_batchtopk; inputs that are normalised row by row or whose scale is not stored;
            reshaped inputs.
    """
    file = folder / WEIGHTS
    config = _config(folder / CONFIG)
    architecture = config["architecture"]
    if architecture not in TENSORS:
        raise ArtifactError(
            f"sae: {folder / CONFIG} has architecture {architecture!r}, which is none of {', '.join(TENSORS)}"
        )
    tensors = _tensors(file)
    _drop_finetuning(tensors, file)
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
            raise ArtifactError(f"sae: {folder / CONFIG} says {key} = {config[key]}, W_enc of {WEIGHTS} has {size}")
    k = setting(config, "k", int, folder / CONFIG) if architecture == "topk" else None
    if rescaled:
        _take_norms_into_encoder(tensors)
    _fold_input_scale(tensors, _input_scale(config, folder))
    sae = assemble(architecture, tensors, file, subtract_b_dec=config["apply_b_dec_to_input"], k=k)
    return sae, _origin(config)


def _config(file: Path) -> dict[str, Any]:
    """cfg.json with the names of version 6, whichever version wrote it, and with `metadata` laid open."""
    if not file.is_file():
        raise ArtifactError(f"sae: {file} is missing; SAELens saves it beside {WEIGHTS}")
    values = read_json(file)
    if not isinstance(values, dict) or not isinstance(values.get("metadata", {}), dict):
        raise ArtifactError(f"sae: {file} is no SAELens configuration (a mapping with an optional mapping 'metadata')")
    config = {RENAMED.get(key, key): value for key, value in (values.get("metadata", {}) | values).items()}
    config = {"architecture": "standard", "apply_b_dec_to_input": True} | config
    for key, kind in (("architecture", str), ("apply_b_dec_to_input", bool)):
        setting(config, key, kind, file)
    activation = config.get("activation_fn") or "relu"
    if activation == "topk" and config["architecture"] == "standard":
        config |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    elif activation not in ("relu", "topk"):
        raise ArtifactError(f"sae: {file} has activation_fn {activation!r}; relu and topk are known")
    if config.get("reshape_activations", "none") != "none":
        raise ArtifactError(
            f"sae: {file} has reshape_activations {config['reshape_activations']!r}: it reads attention heads, "
            "not a residual stream"
        )
    return config


def _tensors(file: Path) -> Tensors:
    if not file.is_file():
        raise ArtifactError(f"sae: {file} is missing; SAELens saves it beside {CONFIG}")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"sae: {file} is damaged and cannot be read ({error}); fetch it again") from error


def _drop_finetuning(tensors: Tensors, file: Path) -> None:
    """Versions before 6 wrote a finetuning scale of ones that nothing uses."""
    scale = tensors.pop("scaling_factor", torch.ones(()))
    if not torch.equal(scale, torch.ones_like(scale)):
        raise ArtifactError(f"sae: {file} holds a finetuning scaling_factor, which SAELens 6 no longer applies either")


def _take_norms_into_encoder(tensors: Tensors) -> None:
    """`rescale_acts_by_decoder_norm`: f = activation(pre ||d_i||), x_hat = sum f_i d_i / ||d_i|| + b_dec.

    The same SAE with unit decoder rows, whose pre-activations have the norms already.
    """
    norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    tensors["W_enc"] = tensors["W_enc"] * norms
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]


def _input_scale(config: dict[str, Any], folder: Path) -> float:
    """The factor s of an SAE that takes s x in place of x."""
    normalisation = config.get("normalize_activations") or "none"
    if normalisation is True:  # before it had names
        normalisation = "expected_average_only_in"
    if normalisation == "none":
        return 1.0
    if normalisation != "expected_average_only_in":
        raise ArtifactError(
            f"sae: {folder / CONFIG} has normalize_activations {normalisation!r}, which cannot be written as the "
            "weights of an SAE of raw activations; 'none' and 'expected_average_only_in' can"
        )
    factor = read_json(folder / SCALER).get("scaling_factor") if (folder / SCALER).is_file() else None
    if not isinstance(factor, int | float) or not factor > 0:
        raise ArtifactError(
            f"sae: {folder / CONFIG} has normalize_activations 'expected_average_only_in', and the factor is not "
            f"stored ({SCALER}); fold it with SAELens's fold_activation_norm_scaling_factor and save again"
        )
    return float(factor)


def _fold_input_scale(tensors: Tensors, scale: float) -> None:
    """The SAE of s x as an SAE of x, with the same latents (SAELens's `fold_activation_norm_scaling_factor`)."""
    for name, factor in (("W_enc", scale), ("W_dec", 1 / scale), ("b_dec", 1 / scale)):
        tensors[name] = tensors[name] * factor


def _origin(config: dict[str, Any]) -> Origin:
    names = (config.get("model_name"), config.get("hook_name"))
    model, hook = (name if isinstance(name, str) else None for name in names)
    remarks = []
    kwargs = config.get("model_from_pretrained_kwargs") or {}
    processed = sorted(key for key in ("fold_ln", "center_writing_weights") if kwargs.get(key))
    if processed:
        remarks.append(
            f"it was trained on a model processed by TransformerLens ({', '.join(processed)}); this one is not"
        )
    if config.get("prepend_bos") is False:
        remarks.append("it was trained on contexts without BOS; here every context opens with BOS")
    return Origin(CONFIG, model, hook, hook_layer(hook) if hook else None, tuple(remarks))
