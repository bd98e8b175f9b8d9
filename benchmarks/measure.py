"""Timing that neighbours and drift cannot favour: the cases take turns, and a ratio is that of one turn."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from scipy import stats

Case = TypeVar("Case")
BF16_UNITS = {"amx_bf16", "avx512_bf16"}
BLOCK_SECONDS = 0.1  # a call shorter than this is repeated within its turn
LIBRARIES = (
    "torch", "numpy", "transformers", "scikit-learn", "dictionary-learning", "sae-lens", "sae-bench",
    "transformer-lens", "nnsight",
)  # fmt: skip


def use_cores(threads: int | None) -> None:
    """Compute on so many threads: those asked for, or `OMP_NUM_THREADS`, or all cores that this process may use."""
    named = os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(threads or (int(named) if named else cores()))


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_in_use() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_in_bf16() -> bool:
    """Whether the device has units for products in bf16: without them bf16 is several times slower than fp32."""
    return torch.cuda.is_available() or bool(BF16_UNITS & set(_cpuinfo("flags").split()))


def hardware() -> dict[str, Any]:
    """What the numbers were measured on: processor, cores, threads, memory in bytes, GPU (None: none), versions."""
    installed = {found.metadata["Name"].lower() for found in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if name in installed}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "bf16_units": sorted(BF16_UNITS & set(_cpuinfo("flags").split())),
        "cores": cores(), "threads": torch.get_num_threads(), "memory_bytes": psutil.virtual_memory().total, "gpu": gpu,
        "load": round(os.getloadavg()[0], 2), "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


def hardware_line(found: Mapping[str, Any]) -> str:
    """`hardware()` in one line.

    >>> hardware_line({"processor": "Xeon", "cores": 2, "threads": 2, "memory_bytes": 2**33, "gpu": None,
    ...                "bf16_units": []})
    'Xeon (no bf16 units), 2 cores (2 threads used), 8 GiB, no GPU'
    """
    plural = "" if found["cores"] == 1 else "s"
    units = " ".join(found["bf16_units"]) or "no bf16 units"
    return (
        f"{found['processor']} ({units}), {found['cores']} core{plural} ({found['threads']} threads used), "
        f"{found['memory_bytes'] / 2**30:.0f} GiB, {found['gpu'] or 'no GPU'}"
    )


def timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """The result and the seconds it took."""
    start = time.perf_counter()
    result = work(*arguments, **options)
    _wait(device_in_use())
    return result, time.perf_counter() - start


def interleaved(
    cases: Mapping[Case, Callable[[], object]], repeats: int, device: str = "cpu", block_seconds: float = BLOCK_SECONDS
) -> dict[Case, list[float]]:
    """Seconds per call of each case, one value for each of `repeats` rounds; every case has one turn in a round.

    The rounds go forwards and backwards in turn (A B C, C B A, ...), so a machine that slows down slows all alike.
    Each case is called once before, untimed; that call also says how often a short one is repeated within its turn.
    """
    calls = {}
    for name, case in cases.items():
        case()
        calls[name] = max(1, round(block_seconds / max(_seconds(case, 1, device), 1e-9)))
    found: dict[Case, list[float]] = {name: [] for name in cases}
    for i in range(repeats):
        for name in list(cases)[:: 1 if i % 2 == 0 else -1]:
            found[name].append(_seconds(cases[name], calls[name], device))
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of the values.

    >>> spread([1.0, 2.0, 3.0])["median"]
    2.0
    """
    low, median, high = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "low": low, "high": high, "repeats": len(values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """`spread` of `above / below`, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def exponent(sizes: Sequence[float], seconds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The slope p of log seconds over log size by least squares, seconds ~ size^p, with its 95 % interval (Student t).

    `seconds[i]` are the measurements at `sizes[i]`. A cost that is linear has p = 1; a fixed cost lowers p.
    """
    x = np.log([size for size, measured in zip(sizes, seconds, strict=True) for _ in measured])
    y = np.log([value for measured in seconds for value in measured])
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * float(fit.stderr)
    return {"exponent": float(fit.slope), "low": float(fit.slope) - half, "high": float(fit.slope) + half}


def _seconds(case: Callable[[], object], calls: int, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        case()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _cpuinfo(field: str) -> str:
    """A field of the first processor, from where Linux keeps it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(field)), "")
    except OSError:
        return ""
