"""The numbers that the README shows, as Markdown: `results/short.md`, from the same files as `results/summary.md`."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.measure import hardware_line
from benchmarks.output import table
from benchmarks.scaling import XLABELS
from sae_lib.report.names import method_name

PEERS = {"dictionary_learning": "dictionary_learning", "sae_lens": "SAELens"}


def short(results: dict[str, dict[str, Any]]) -> str:
    """A paragraph or table for each of `results`, which are named by their benchmark."""
    parts = [write(results[name]) for name, write in PARTS.items() if name in results]
    return "\n\n".join(parts) + "\n"


def step_time(result: dict[str, Any]) -> str:
    """Milliseconds by method and shape, the peers' beside them; the floor; what the mechanisms cost."""
    shapes = result["shapes"]
    warm = [[row for row in shape["rows"] if row["phase"] == "warm" and row["precision"] == "float32"]
            for shape in shapes]  # fmt: skip
    seconds = [{(row["library"], row["method"]): row["seconds"]["median"] for row in rows} for rows in warm]
    header, lines = ["method"], []
    for shape in shapes:
        header += [f"d_in {shape['d_in']:,}, d_sae {shape['d_sae']:,}: ours", *PEERS.values()]
    for method in dict.fromkeys(row["method"] for rows in warm for row in rows):
        line = [method_name(method)]
        for shape, timed in zip(shapes, seconds, strict=True):
            line.append(f"{timed['sae_lib', method] * 1e3:.0f}")
            times = {row["peer"]: row["float32"]["median"] for row in shape["peers"]
                     if row["method"] == method and row["phase"] == "warm"}  # fmt: skip
            line += [
                f"{timed[peer, method] * 1e3:.0f} ({times[peer]:.1f}x)" if peer in times else "–" for peer in PEERS
            ]
        lines.append(line)
    floors = [median(row["seconds"]["median"] for row in shape["floor"]
                     if row["phase"] == "warm" and row["precision"] == "float32") for shape in shapes]  # fmt: skip
    costs: dict[str, list[str]] = {method_name(row["method"]): [] for shape in shapes for row in shape["mechanisms"]}
    for shape in shapes:
        for row in shape["mechanisms"]:
            if row["phase"] == "warm" and row["precision"] == "float32":
                costs[method_name(row["method"])].append(f"{row['over_standard']['median']:.2f}")
    k = " and ".join(f"{shape['k']}" for shape in shapes)
    command = f"python -m benchmarks.step_time --repeats {result['setting']['repeats']}"
    return (
        f"Milliseconds per training step (`{command}`; batch {shapes[0]['batch']:,}, fp32, each method at the same L0, "
        f"{k}; median of the rounds) on {hardware_line(result['hardware'])}. In brackets: how many times as long the "
        "peer's step takes as ours, in the same run.\n\n"
        f"{table(header, lines)}\n\n"
        f"The five matrix products of a dense step and the optimiser's traffic take "
        f"{' and '.join(f'{floor * 1e3:.0f}' for floor in floors)} ms there; latents are held by their entries, so a "
        "step can be cheaper than its dense products. Times Standard's step, in the same turns: "
        + "; ".join(f"{name} {' and '.join(times)}" for name, times in costs.items())
        + "."
    )


def harvest(result: dict[str, Any]) -> str:
    """Tokens per second, the peers' beside ours."""
    told = []
    for model in result["models"]:
        rate = {row["library"]: f"{row['tokens_per_s']['median'] / 1e3:.1f}" for row in model["rows"]}
        others = [f"{name} {value}" for name, value in rate.items() if name not in ("sae_lib", "products")]
        told.append(
            f"{model['name']} Gemma-2 of width {model['width']}: {rate['sae_lib']} ({', '.join(others)}; the model's "
            f"matrix products alone {rate['products']})"
        )
    how = "Harvest (`python -m benchmarks.harvest`), thousand tokens per second, others in brackets"
    return f"{how}: {'. '.join(told)}."


def evaluation(result: dict[str, Any]) -> str:
    """Seconds per SAE, the peer's beside ours."""
    timed = {name: sum(found["per_sae"].values()) for name, found in result["seconds"].items()}
    ours = timed.pop("ours")
    told = [f"{name.replace('_', ' ')} {value:.1f} s ({value / ours:.0f}x)" for name, value in timed.items()]
    how = "Evaluation (`python -m benchmarks.evaluation`), absorption and core metrics of one SAE"
    return f"{how}: ours {ours:.1f} s; {', '.join(told)}."


def scaling(result: dict[str, Any]) -> str:
    """Exponents of cost against size."""
    told = []
    for name, size in XLABELS.items():
        p = result["series"][name]["all"]
        told.append(f"{size} {p['exponent']:.2f} [{p['low']:.2f}, {p['high']:.2f}]")
    how = "Cost grows as size^p (`python -m benchmarks.scaling`; 1 is linear), p with its 95 % interval"
    return f"{how}: {'; '.join(told)}."


def memory(result: dict[str, Any]) -> str:
    """Peak memory of each stage at the smallest and the largest budget."""
    rows = result["peaks_in_bytes"]
    stages: dict[str, list[str]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(f"{row['own'] / 1e6:.0f}")
    budgets = " and ".join(f"{tokens / 1e6:g}" for tokens in dict.fromkeys(row["tokens"] for row in rows))
    told = "; ".join(f"{stage} {' and '.join(peaks)} MB" for stage, peaks in stages.items())
    return f"Peak host memory (`python -m benchmarks.memory`) at {budgets} M tokens: {told}."


def gemma(result: dict[str, Any]) -> str:
    """What was run of the gemma-2-2b profile on random weights."""
    setting = result["setting"]
    stages = ", ".join(f"{each['stage']} {each['seconds']:.0f} s" for each in result["stages"])
    scaled = f", widths divided by {setting['divided_by']}, tokens and steps by {setting['fewer_by']}"
    size = scaled if setting["divided_by"] != 1 else " at full size"
    return (
        f"The gemma-2-2b profile on random weights{size}, every method: {stages}. This is about time and memory: "
        "random weights have nothing to find."
    )


PARTS = {
    "step_time": step_time,
    "harvest": harvest,
    "evaluation": evaluation,
    "scaling": scaling,
    "memory": memory,
    "gemma_scaled": gemma,
    "gemma": gemma,
}
