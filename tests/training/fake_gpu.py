"""A GPU that computes nothing: tensors of any size with shapes, types and a device, on a machine without one.

PyTorch's fake tensors on a device of the kind `privateuseone`, which a Python program may define. FakeTensorMode
refuses to read a value (`.item()`, `bool`, `nonzero`), since there is none, and to mix devices in an operation. `Watch`
refuses what it lets pass, counts what is computed, and lets a test open a door for what is meant. Plain meta tensors
see less: they may be multiplied by CPU tensors, and fused Adam, generators and autocast refuse them.

Defining the device changes a process for good, so this runs in one of its own (`python -m tests.training.dry_run`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, DispatchKeySet, _ExcludeDispatchKeyGuard
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torch.utils.flop_counter import flop_registry

DEVICE = "gpu:0"
AUTOCAST = DispatchKeySet(DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]
IN_BF16 = ("mm", "matmul", "linear", "addmm", "bmm")  # what autocast on a GPU casts, of what steps use
aten = torch.ops.aten


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def define_device() -> list[torch.library.Library]:
    """Makes `DEVICE` known to this process; autocast lasts as long as what is returned."""
    _setup_privateuseone_for_python_backend("gpu", backend_module=_Backend())
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    rules = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in IN_BF16:
        rules.impl(name, _in_bf16(getattr(aten, name).default))
    return [others, rules]


def _in_bf16(operation: Any) -> Any:
    def cast(*given: Any) -> Any:
        with _ExcludeDispatchKeyGuard(AUTOCAST):
            return operation(*(_bf16(each) for each in given))

    return cast


def _bf16(value: Any) -> Any:
    single = isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type == "gpu"
    return value.to(torch.bfloat16) if single else value


class Synchronises(AssertionError):
    """The host would wait for the device, or a tensor is not where it should be."""


class Watch(TorchDispatchMode):
    """Counts floating-point operations by type, and bytes read and written by each operation on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.flop: Counter[str] = Counter()
        self.bytes = 0
        self.door = 0

    def forget(self) -> None:
        """Count from nothing."""
        self.flop.clear()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        before = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        after = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        on_device = [each for each in (*before, *after) if each.device.type == "gpu"]
        if not on_device:
            return result
        off = [each for each in (*before, *after) if each.device.type == "cpu" and each.ndim]
        if off and not self.door:
            raise Synchronises(f"{func} has {off[0].shape} on the CPU")
        if func.overloadpacket in flop_registry:
            kind = str(before[0].dtype).removeprefix("torch.")
            self.flop[kind] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        if not func.is_view:
            self.bytes += sum(each.numel() * each.itemsize for each in on_device)
        return result

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within, tensors may pass from the host to the device and back."""
        self.door += 1
        try:
            yield
        finally:
            self.door -= 1


class _Generator(torch._C.Generator):
    """The CPU's, for every device: nothing is drawn."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


def _moved(module: nn.Module, device: Any) -> nn.Module:
    """`Module.to`, with new parameters: fake ones cannot be changed in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(weight.detach().to(device), weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = (
                None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            )
    return module


@contextmanager
def fake() -> Iterator[Watch]:
    """Every tensor made within is fake."""
    with (
        patch.object(torch, "Generator", _Generator),
        patch.object(nn.Module, "to", _moved),
        FakeTensorMode(allow_non_fake_inputs=True),
        Watch() as watch,
    ):
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) is made on the CPU, then moved
        try:
            yield watch
        finally:
            torch._C._set_only_lift_cpu_tensors(before)
