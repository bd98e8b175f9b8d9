"""From named tensors to an `Autoencoder`, checked on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.util.errors import ArtifactError

Tensors = dict[str, Tensor]
SHAPES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_in"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_in",),
    "threshold": ("d_sae",),
    "b_gate": ("d_sae",),
    "b_mag": ("d_sae",),
    "r_mag": ("d_sae",),
}


def check_keys(tensors: Mapping[str, Any], wanted: Collection[str], file: Path, what: str) -> None:
    """Raises ArtifactError when a file's tensors are not exactly those that `what` has."""
    missing, unknown = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"also holds {', '.join(unknown)}"] * bool(unknown)
        raise ArtifactError(f"sae: {file} {' and '.join(faults)}; a {what} SAE has {', '.join(sorted(wanted))}")


def setting(values: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    """`values[key]`. Raises ArtifactError when it is not there or not of `kind`."""
    value = values.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArtifactError(f"sae: {file} gives no {key} ({kind.__name__}); add it as its library writes it")
    return value


def check_shapes(tensors: Tensors, file: Path) -> None:
    """Raises ArtifactError when tensors of this package's names do not fit W_enc `[d_in, d_sae]`, or hold NaN."""
    shape = list(tensors["W_enc"].shape)
    if len(shape) != 2:
        raise ArtifactError(f"sae: {file} has an encoder of shape {shape}; it must have two dimensions")
    sizes = dict(zip(("d_in", "d_sae"), shape, strict=True))
    for name, tensor in tensors.items():
        expected = [sizes[axis] for axis in SHAPES[name]]
        # One threshold may stand for all latents.
        if list(tensor.shape) != expected and not (name == "threshold" and tensor.dim() == 0):
            raise ArtifactError(
                f"sae: {file} has {name} of shape {list(tensor.shape)}, W_enc {shape} asks for {expected}; "
                "the file was written by something else or is damaged"
            )
        if not tensor.isfinite().all():
            raise ArtifactError(f"sae: {name} of {file} holds NaN or infinite values; take an earlier checkpoint")


def assemble(
    architecture: str, tensors: Tensors, file: Path, *, subtract_b_dec: bool, k: int | None = None
) -> Autoencoder:
    """An SAE with these weights, as float32. Training settings, which no file holds, have no meaning here.

    Args:
        architecture: one of this package's.
        tensors: in this package's layout and names; a threshold may be one number for all latents.
        file: where they come from, for messages.
        k: active latents (topk).

    Raises:
        ArtifactError: shapes that do not fit together, NaN or infinite weights, k out of range.
    """
    check_shapes(tensors, file)
    d_in, d_sae = tensors["W_enc"].shape
    if k is not None and not 0 < k <= d_sae:
        raise ArtifactError(f"sae: {file} gives k = {k}, which must lie in 1 .. d_sae = {d_sae}")
    config = SAEConfig.model_validate(
        {
            "architecture": architecture,
            "d_sae": d_sae,
            "k": k,
            # Only training aims at it; every JumpReLU configuration must have one.
            "target_l0": d_sae if architecture == "jumprelu" else None,
            "subtract_b_dec": subtract_b_dec,
            "normalize_inputs": False,
            "unit_norm_decoder": False,
        }
    )
    sae = build_autoencoder(config, d_in)
    shapes = {name: parameter.shape for name, parameter in sae.state_dict().items()}
    sae.load_state_dict({name: tensor.to(torch.float32).expand(shapes[name]) for name, tensor in tensors.items()})
    return sae
