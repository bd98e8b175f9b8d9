"""What a checkpoint holds of a training run, as the tensors of one process: pieces of a dictionary are put together
when it is written and taken apart when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.mechanisms import Mechanism
from sae_lib.util.checkpoint import Tensors, load_optimizer_tensors, optimizer_tensors
from sae_lib.util.latent_group import LatentGroup


def modules(sae: Autoencoder, mechanisms: list[Mechanism]) -> dict[str, nn.Module]:
    """Everything with weights or buffers, by a name that stays the same for one configuration."""
    return {"sae": sae} | {f"mechanism{i}": m for i, m in enumerate(mechanisms)}


def whole_tensors(
    sae: Autoencoder, mechanisms: list[Mechanism], optimizer: torch.optim.Optimizer, others: Tensors, group: LatentGroup
) -> Tensors:
    """Weights, buffers, moments and `others` (`since_fired`, `generator`) of the whole dictionary, on the first process
    of `group`, which all make this call; nothing on the others."""
    tensors = {
        f"{prefix}.{name}": t
        for prefix, module in modules(sae, mechanisms).items()
        for name, t in module.state_dict().items()
    }
    collected = {
        name: t if (dim := latent_dim(name, t, sae)) is None else group.collected(t, dim)
        for name, t in (tensors | others | optimizer_tensors(optimizer)).items()
    }
    return collected if group.rank == 0 else {}


def load_modules(into: Mapping[str, nn.Module], tensors: Tensors) -> None:
    """Put weights and buffers back into `modules`."""
    for prefix, module in into.items():
        mine = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
        for name, buffer in module.named_buffers():
            if buffer.shape != mine[name].shape:  # a buffer that takes the batch's shape when first used
                setattr(module, name, torch.empty_like(mine[name]))
        module.load_state_dict(mine)


def load_tensors(
    sae: Autoencoder,
    mechanisms: list[Mechanism],
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    group: LatentGroup,
) -> Tensors:
    """Put back what `whole_tensors` returned, or this process's piece of it; returns the piece."""
    pieces = {
        name: t if (dim := latent_dim(name, t, sae)) is None else group.piece(t, dim) for name, t in tensors.items()
    }
    load_modules(modules(sae, mechanisms), pieces)
    load_optimizer_tensors(optimizer, pieces)
    return pieces


def latent_dim(name: str, tensor: Tensor, sae: Autoencoder) -> int | None:
    """The dimension of a checkpoint's tensor that counts the latents; None where none does."""
    if tensor.ndim == 0:
        return None
    owner, _, rest = name.partition(".")
    if owner == "sae":
        return sae.latent_dims().get(rest)
    if owner == "optimizer":
        parameter = [name for name, _ in sae.named_parameters()][int(rest.partition(".")[0])]
        return sae.latent_dims().get(parameter)
    if owner.startswith("mechanism"):
        return tensor.ndim - 1
    return 0 if owner == "since_fired" else None
