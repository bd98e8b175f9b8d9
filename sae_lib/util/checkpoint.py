"""One checkpoint file: tensors and plain state together, of one moment."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_write

Tensors = dict[str, torch.Tensor]


def save_checkpoint(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write `tensors` and the JSON-serialisable `state` to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry, because entries of this format are in no order.
    content = json.dumps({"state": state, "sha256": _sha256(contiguous, state)})
    with atomic_write(path, "wb") as file:
        file.write(safetensors_bytes(contiguous, metadata={"content": content}))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the state of a file written by `save_checkpoint`. Raises ArtifactError when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
            content = json.loads(file.metadata()["content"])
        if _sha256(tensors, content["state"]) != content["sha256"]:
            raise ValueError("its content is not what was written")
        return {name: tensor.to(device) for name, tensor in tensors.items()}, content["state"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged and cannot be read ({error}); remove it and run again") from error


def _sha256(tensors: Tensors, state: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(state).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """An Adam-family optimiser's moments and step counts, by parameter number."""
    states = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, state in states.items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: defaultdict[int, Tensors] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            # A file's tensors are contiguous; a fused optimiser goes through moments as they lie in memory.
            like = parameters[int(index)]
            states[int(index)][key] = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
    optimizer.load_state_dict({"state": dict(states), "param_groups": optimizer.state_dict()["param_groups"]})
