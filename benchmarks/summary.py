"""All results as one Markdown page, `results/summary.md`.

python -m benchmarks.summary
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import hardware_line
from benchmarks.output import FOLDER, interval, results_file, table
from sae_lib.report.names import method_name
from sae_lib.util.files import atomic_write, read_json

PEERS = {"dictionary_learning": "dictionary_learning", "sae_lens": "SAELens"}
SERIES = ("harvest_tokens", "train_tokens", "width", "saes")


def main(asked_for: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="the results as one Markdown page")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of results/")
    asked = parser.parse_args(asked_for)
    files = {name: results_file(asked.output, name) for name in SECTIONS}
    measured = {name: read_json(file) for name, file in files.items() if file.is_file()}
    text = page(measured)
    with atomic_write(asked.output / "results" / "summary.md") as file:
        file.write(text)
    print(text)


def page(measured: Mapping[str, dict[str, Any]]) -> str:
    """The page; a benchmark that was not run is named as such."""
    parts = [
        "# Benchmarks",
        "Written by `make bench` from the files beside it. Times are medians, quartiles in brackets.",
    ]
    for name, (title, command, write) in SECTIONS.items():
        result = measured.get(name)
        parts.append(f"## {title}")
        if result is None:
            parts.append(f"Not measured here: `python -m benchmarks.{command}`.")
            continue
        if "hardware" not in result:
            parts.append(f"Measured by an earlier version, see {name}.json; again: `python -m benchmarks.{command}`.")
            continue
        machine = result["hardware"]
        versions = ", ".join(f"{library} {version}" for library, version in machine["versions"].items())
        parts.append(f"`python -m benchmarks.{command}` on {hardware_line(machine)}; {versions}.")
        parts += write(result)
    return "\n\n".join(parts) + "\n"


def step_time(result: dict[str, Any]) -> list[str]:
    """One table for each shape: ours in both precisions, the floor, the peers over ours; then the mechanisms."""
    parts, precisions = [], result["setting"]["precisions"]
    for shape in result["shapes"]:
        rows = [row for row in shape["rows"] if row["phase"] == "warm"]
        timed = {(row["library"], row["method"], row["precision"]): row for row in rows}
        lines = []
        for method in dict.fromkeys(row["method"] for row in rows):
            ours = {precision: timed["sae_lib", method, precision] for precision in precisions}
            ours_ms = [interval(ours[precision]["seconds"], 1e3) for precision in ours]
            floors = (f"over_{precisions[-1]}_floor", "over_encoder")
            over = [f"{min(own[floor]['median'] for own in ours.values()):.1f}" for floor in floors]
            lines.append([method_name(method), *ours_ms, *over, f"{ours[precisions[0]]['l0']:.0f}",
                          *(_over_ours(shape, peer, method) for peer in PEERS)])  # fmt: skip
        parts.append(
            f"d_in {shape['d_in']}, d_sae {shape['d_sae']}, batch {shape['batch']}, after "
            f"{result['setting']['warm_steps']} steps. The peers' numbers are their time over ours: as released (fp32) "
            "over our fastest, and both in fp32. x W_enc is the encoder's product alone, in fp32."
        )
        times = [f"{precision}, ms" for precision in precisions]
        peers = [f"{name} / ours" for name in PEERS.values()]
        header = ["method", *times, f"fastest / {precisions[-1]} floor", "fastest / x W_enc", "L0", *peers]
        parts.append(table(header, lines))
        costs = [
            f"{method_name(row['method'])} {interval(row['over_standard'], 1, 2)} ({row['precision']})"
            for row in shape["mechanisms"]
            if row["phase"] == "warm"
        ]
        parts += [f"Times Standard: {'; '.join(costs)}."] if costs else []
    return parts


def harvesting(result: dict[str, Any]) -> list[str]:
    """Tokens per second by harvester."""
    parts = []
    for model in result["models"]:
        lines = [
            [row["library"], interval(row["tokens_per_s"], 1e-3), f"{row['times_ours']['median']:.2f}"]
            for row in model["rows"]
        ]
        parts.append(
            f"{model['name']} Gemma-2 of width {model['width']}, after layer {model['layer']}, {model['dtype']}, "
            f"{model['flop_per_token'] / 1e9:.3g} GFLOP per token."
        )
        parts.append(table(["harvester", "thousand tokens/s", "times ours"], lines))
        parts += [f"{peer}: {why}." for peer, why in model["skipped"].items()]
    return parts


def evaluation(result: dict[str, Any]) -> list[str]:
    """Seconds per SAE by library."""
    lines = [
        [name.replace("_", " "), f"{found['per_sae']['absorption']:.2f}", f"{found['per_sae']['core']:.2f}",
         f"{found.get('ratio', 1.0):.1f}", f"{sum(found['setup'].values()):.1f}"]
        for name, found in result["seconds"].items()
    ]  # fmt: skip
    return [table(["evaluation", "absorption, s per SAE", "core, s per SAE", "times ours", "set-up, s"], lines)]


def scaling(result: dict[str, Any]) -> list[str]:
    """Exponents."""
    lines = [
        [name.replace("_", " "), f"{found['points'][0]['size']:,} to {found['points'][-1]['size']:,}",
         *(f"{found[key]['exponent']:.2f} [{found[key]['low']:.2f}, {found[key]['high']:.2f}]"
           for key in ("all", "last_two"))]
        for name, found in sorted(result["series"].items(), key=lambda item: SERIES.index(item[0]))
    ]  # fmt: skip
    return ["Cost ~ size^p; intervals of 95 %.", table(["against", "sizes", "p", "p of the last two"], lines)]


def gemma(result: dict[str, Any]) -> list[str]:
    """Seconds by stage, and by method."""
    setting = result["setting"]
    stages = "; ".join(f"{each['stage']} {each['seconds']:.0f} s" for each in result["stages"])
    lines = [
        [method_name(sae["method"]), f"{sae['train_s']:.1f}", f"{sae['ms_per_step']:.1f}", f"{sae['evaluate_s']:.1f}"]
        for sae in result["saes"]
    ]
    return [
        f"d_in {setting['d_in']}, d_sae {setting['training']['d_sae']}, {setting['data']['train_tokens']:,} tokens, "
        f"{setting['training']['steps']:,} steps of {setting['data']['batch_tokens']}; widths divided by "
        f"{setting['divided_by']}, tokens and steps by {setting['fewer_by']}. {stages}.",
        table(["method", "training, s", "ms per step", "evaluation, s"], lines),
    ]


def memory(result: dict[str, Any]) -> list[str]:
    """Peak memory by stage and budget."""
    lines = [
        [row["stage"], f"{row['tokens']:,}", f"{row['own'] / 1e6:.0f}", f"{row['resident'] / 1e6:.0f}"]
        for row in result["peaks_in_bytes"]
    ]
    return [table(["stage", "tokens", "own memory, MB", "with mapped files, MB"], lines)]


def _over_ours(shape: dict[str, Any], peer: str, method: str) -> str:
    for row in shape["peers"]:
        if (row["peer"], row["method"], row["phase"]) == (peer, method, "warm"):
            return f"{row['as_released']['median']:.1f}; {row['float32']['median']:.1f}"
    return "-"


# Name of the result -> title, module (with arguments) that makes it, writer of the section.
SECTIONS: dict[str, tuple[str, str, Callable[[dict[str, Any]], list[str]]]] = {
    "step_time": ("Seconds per training step", "step_time", step_time),
    "harvest": ("Harvest", "harvest", harvesting),
    "evaluation": ("Evaluation", "evaluation", evaluation),
    "scaling": ("Is it linear?", "scaling", scaling),
    "memory": ("Peak host memory", "memory", memory),
    "gemma_scaled": ("The gemma-2-2b profile, scaled down, on random weights", "gemma --scaled", gemma),
    "gemma": ("The gemma-2-2b profile at full size, on random weights", "gemma", gemma),
}


if __name__ == "__main__":
    main()
