"""Seconds per training step: ours by method, dictionary_learning's and SAELens' beside it, and the floor under all.

    .venv-oracles/bin/python -m benchmarks.step_time

Methods that are compared with each other take turns in one process (`measure.interleaved`), together with the matrix
products of the floor. Everything is timed twice: at the start, when latents are dense, and after `--warm` steps, with
biases or thresholds then moved to where L0 is k, the same for all. The rows are the residual stream of a one-block
Gemma-2 with random weights.

Writes `results/step_time.json` and `figures/step_time.png`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import encoder, floor_seconds, memory_pass, product_flop, products
from benchmarks.measure import computes_in_bf16, device_in_use, interleaved, ratio, spread, use_cores
from benchmarks.output import arguments, interval, save, table
from benchmarks.random_model import random_store
from benchmarks.step_time_figure import figure
from benchmarks.steppers import (
    PEER_METHODS,
    PEERS,
    Ours,
    Rows,
    Stepper,
    bring_to_l0,
    peer_precisions,
    peers_installed,
)

# Timed together: the methods of one family, and whatever a ratio is taken of.
FAMILIES: dict[str, tuple[str, ...]] = {
    "l1": ("standard", "temporal_sae", "atm", "dropout", "paper_standard", "paper_atm"),
    "gated": ("gated",),
    "topk": ("topk",),
    "batchtopk": ("batchtopk",),
    "matryoshka": ("matryoshka_2", "matryoshka_4"),
    "jumprelu": ("jumprelu",),
}
CPU_SHAPES = ("128x2048", "256x4096", "576x4608:32")  # the last one as SmolLM2-135M's SAEs are trained
GPU_SHAPES = ("2304x16384",)
OVER_STANDARD = ("temporal_sae", "atm", "dropout")
ACTIVE_SHARE = 320 / 16384  # k of the papers' scale
PRECISIONS = ("float32", "bfloat16")
Case = tuple[str, str, str]  # library, method, precision


def main(asked_for: Sequence[str] | None = None) -> None:
    parser = arguments("seconds per training step: ours, the peers', and the floor")
    what = "with the L0 of the second timing, by default 320 / 16384 of d_sae; default: those of the device"
    parser.add_argument("--shapes", nargs="+", metavar="D_INxD_SAE[:L0]", help=what)
    parser.add_argument("--batch", type=int, default=2048, help="rows per step")
    parser.add_argument("--warm", type=int, default=40, help="steps before the second timing, on batches of 1/8")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each timing")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, help="default: bf16 where the device computes in it"
    )
    parser.add_argument("--block", type=float, default=0.25, help="seconds of a turn at least")
    asked = parser.parse_args(asked_for)
    use_cores(asked.threads)
    device = device_in_use()
    precisions = asked.precisions or PRECISIONS[: 1 + computes_in_bf16()]
    precisions = [p for p in PRECISIONS if p == "float32" or p in precisions]  # the peers' own
    shapes = []
    for shape in asked.shapes or (CPU_SHAPES if device == "cpu" else GPU_SHAPES):
        sizes, _, active = shape.partition(":")
        d_in, d_sae = (int(size) for size in sizes.split("x"))
        k = int(active or max(1, round(ACTIVE_SHARE * d_sae)))
        with tempfile.TemporaryDirectory() as folder:
            rows_needed = 16 * asked.batch
            rows = Rows(random_store(Path(folder), d_in, rows_needed, device), asked.batch, asked.batch // 8, device)
            timed = time_shape(rows, d_sae, k, asked.families, precisions, asked.warm, asked.repeats, asked.block)
            shapes.append(timed)
    setting = {
        "device": device, "warm_steps": asked.warm, "warm_batch": asked.batch // 8, "repeats": asked.repeats,
        "precisions": precisions, "peers": peers_installed(),
    }  # fmt: skip
    result = {"setting": setting, "shapes": shapes}
    save(asked.output, "step_time", result, figure(result), summary(result))


def time_shape(
    rows: Rows,
    d_sae: int,
    k: int,
    families: Sequence[str],
    precisions: Sequence[str],
    warm: int,
    repeats: int,
    block_seconds: float,
) -> dict[str, Any]:
    """Every timing at one shape."""
    d_in = rows.store.d_in
    found: dict[str, list[dict[str, Any]]] = {"floor": [], "rows": [], "peers": [], "mechanisms": []}
    for family in families:
        steppers = build(rows, FAMILIES[family], precisions, d_sae, k, warm)
        for phase in ("start", "warm"):
            if phase == "warm":
                for stepper in steppers.values():
                    stepper.warm(warm)
                    bring_to_l0(stepper, k)
            cases: dict[Any, Callable[[], object]] = {case: stepper.step for case, stepper in steppers.items()}
            cases |= _floor_cases(d_in, d_sae, rows.batch, rows.device, precisions)
            seconds = interleaved(cases, repeats, rows.device, block_seconds)
            place = {"family": family, "phase": phase}
            floors = {p: _floor(seconds, p) for p in precisions}
            found["floor"] += [{**place, "precision": p, "seconds": spread(values)} for p, values in floors.items()]
            for case, stepper in steppers.items():
                row = {**place, **_named(case), "seconds": spread(seconds[case]), "l0": stepper.l0()}
                row |= {f"over_{p}_floor": ratio(seconds[case], floors[p]) for p in precisions}
                row["over_encoder"] = ratio(seconds[case], seconds["floor", "encoder", "float32"])
                found["rows"].append(row)
            found["peers"] += [place | compared for compared in against_peers(seconds)]
            found["mechanisms"] += [place | compared for compared in over_standard(seconds)]
        del steppers
        gc.collect()
        if rows.device != "cpu":
            torch.cuda.empty_cache()
    return {"d_in": d_in, "d_sae": d_sae, "batch": rows.batch, "k": k,
            "floor_flop": product_flop(d_in, d_sae, rows.batch), **found}  # fmt: skip


def build(
    rows: Rows, methods: Sequence[str], precisions: Sequence[str], d_sae: int, k: int, warm: int
) -> dict[Case, Stepper]:
    """Our steppers in these precisions, and the peers' that have the method."""
    steppers: dict[Case, Stepper] = {}
    for method in methods:
        for precision in precisions:
            steppers["sae_lib", method, precision] = Ours(rows, method, d_sae, k, warm, precision)
        for peer in peers_installed() if method in PEER_METHODS else ():
            for precision in (p for p in peer_precisions(peer, rows.device) if p in precisions):
                steppers[peer, method, precision] = PEERS[peer](rows, method, d_sae, k, warm, precision)
    return steppers


def against_peers(seconds: dict[Any, list[float]]) -> list[dict[str, Any]]:
    """Each peer's time over ours: in float32 on both sides, and the peer at its fastest over us at our fastest."""
    compared = []
    pairs = {(case[0], case[1]) for case in seconds if case[0] in PEERS}
    for peer, method in sorted(pairs):
        timed = {p: seconds[peer, method, p] for p in PRECISIONS if (peer, method, p) in seconds}
        ours = {p: seconds["sae_lib", method, p] for p in PRECISIONS if ("sae_lib", method, p) in seconds}
        theirs, best = _fastest(timed), _fastest(ours)
        compared.append(
            {
                "peer": peer, "method": method, "float32": ratio(timed["float32"], ours["float32"]),
                "fastest": ratio(timed[theirs], ours[best]), "as_released": ratio(timed["float32"], ours[best]),
                "fastest_peer_precision": theirs, "fastest_our_precision": best,
            }
        )  # fmt: skip
    return compared


def over_standard(seconds: dict[Any, list[float]]) -> list[dict[str, Any]]:
    """What the papers' mechanisms, and the control, cost over Standard in the same precision."""
    return [
        {"method": method, "precision": p,
         "over_standard": ratio(seconds["sae_lib", method, p], seconds["sae_lib", "standard", p])}
        for method in OVER_STANDARD
        for p in PRECISIONS
        if ("sae_lib", method, p) in seconds
    ]  # fmt: skip


def summary(result: dict[str, Any]) -> str:
    """The warm timings as tables: milliseconds per step, and how peers, mechanisms and floor compare."""
    parts, precisions = [], result["setting"]["precisions"]
    for shape in result["shapes"]:
        rows = [row for row in shape["rows"] if row["phase"] == "warm"]
        lines = [
            [r["library"], r["method"], r["precision"], interval(r["seconds"], 1e3), f"{r['l0']:.0f}",
             *(f"{r[f'over_{p}_floor']['median']:.2f}" for p in precisions), f"{r['over_encoder']['median']:.2f}"]
            for r in rows
        ]  # fmt: skip
        over = [*(f"× {p} floor" for p in precisions), "× x W_enc"]
        header = ["library", "method", "precision", "ms per step", "L0", *over]
        parts += [f"d_in {shape['d_in']}, d_sae {shape['d_sae']}, batch {shape['batch']}", table(header, lines)]
        peers = [
            [r["peer"], r["method"], *(interval(r[key]) for key in ("as_released", "float32", "fastest"))]
            for r in shape["peers"]
            if r["phase"] == "warm"
        ]
        header = ["peer", "method", "× ours, as released", "× ours, both fp32", "× ours, each at its fastest"]
        parts += [table(header, peers)] if peers else []
        costs = [
            [r["method"], r["precision"], interval(r["over_standard"], 1, 2)]
            for r in shape["mechanisms"]
            if r["phase"] == "warm"
        ]
        parts += [table(["method", "precision", "× Standard"], costs)] if costs else []
    return "\n\n".join(parts)


def _floor_cases(
    d_in: int, d_sae: int, batch: int, device: str, precisions: Sequence[str]
) -> dict[Any, Callable[[], object]]:
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    cases: dict[Any, Callable[[], object]] = {
        ("floor", "products", p): products(d_in, d_sae, batch, kinds[p], device) for p in precisions
    }
    cases["floor", "encoder", "float32"] = encoder(d_in, d_sae, batch, device)
    return cases | {("floor", "memory", "float32"): memory_pass(d_in, d_sae, device)}


def _floor(seconds: dict[Any, list[float]], precision: str) -> list[float]:
    pairs = zip(seconds["floor", "products", precision], seconds["floor", "memory", "float32"], strict=True)
    return [floor_seconds(product, memory) for product, memory in pairs]


def _named(case: Case) -> dict[str, str]:
    return dict(zip(("library", "method", "precision"), case, strict=True))


def _fastest(timed: dict[str, list[float]]) -> str:
    return min(timed, key=lambda precision: spread(timed[precision])["median"])


if __name__ == "__main__":
    main()
