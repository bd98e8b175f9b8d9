"""Makes and loads SAEs of any variant."""

from pathlib import Path

import torch

from sae_lib.autoencoders.base import ARCHITECTURES, Autoencoder
from sae_lib.autoencoders.config import SAEConfig, sae_config
from sae_lib.util.checkpoint import load_checkpoint
from sae_lib.util.errors import ArtifactError

WEIGHTS_FILE = "sae.safetensors"


def build_autoencoder(config: SAEConfig, d_in: int, seed: int = 0) -> Autoencoder:
    """A freshly initialised SAE of `config.architecture`; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    return ARCHITECTURES[config.architecture](config, d_in, generator)


def load_autoencoder(folder: Path | str, device: torch.device | str = "cpu") -> Autoencoder:
    """The trained SAE of a run folder, in evaluation mode; it takes raw residual-stream activations. Raises
    ArtifactError when the folder holds no finished SAE."""
    file = Path(folder) / WEIGHTS_FILE
    if not file.is_file():
        raise ArtifactError(
            f"{folder}: no {WEIGHTS_FILE} here; train this SAE first (make paper does; if it was trained and is gone, "
            "remove the build's folder keys before)"
        )
    tensors, state = load_checkpoint(file, device)
    sae = build_autoencoder(sae_config(state["config"]), d_in=tensors["W_enc"].shape[0]).to(device)
    sae.load_state_dict(tensors)
    return sae.eval()
