"""The papers' scale from end to end, on Gemma-2-2b's architecture with random weights: what does each stage take?

    python -m benchmarks.gemma                # on a GPU: full size, 10 M tokens, 4,882 steps, d_sae 16,384
    python -m benchmarks.gemma --scaled       # on a CPU: the same code, every size divided (`--divide`, `--fewer`)

Text to tokens, harvest, one SAE of each method, and its evaluation go through `sae_lib.study.experiment.Experiment` and
`sae_lib.study.scoring.evaluate`, as the notebooks call them, with the `gemma-2-2b` profile on a local folder. Random
weights cost what trained ones cost, except in the metrics: absorption looks at the letters that a model knows, and this
one knows few; its tokenizer is the packaged one, whose words are 7,437 instead of some 130,000. Texts are random words;
sparse probing, whose datasets are on the hub, is left out.

The full size keeps its work (60 GB) under the output folder and goes on there when it was interrupted; the times are
then those of the rest, and `went_on` is true. Writes `results/gemma.json` (or `gemma_scaled.json`) and the figure of
that name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure

from benchmarks import summary
from benchmarks.floor import product_flop
from benchmarks.gemma_profile import BASE, write_profile
from benchmarks.measure import device_in_use, timed, use_cores
from benchmarks.output import arguments, quiet, save
from benchmarks.random_model import GEMMA_2_2B, gemma_sizes
from sae_lib.mechanisms import methods
from sae_lib.profiles.profile import load_profile
from sae_lib.profiles.runs import RunSpec, calibrated, expected_calibration
from sae_lib.report.figures.style import COLUMN_WIDTH, set_style
from sae_lib.report.names import method_name
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import evaluate, score_inputs
from sae_lib.util.files import read_json
from sae_lib.util.paths import OUTPUT_VARIABLE, output_root

SCORES = ("reconstruction", "absorption", "stability")
FEWER_WORDS = 1000  # of the vocabulary's 7,437, with --scaled


def main(asked_for: Sequence[str] | None = None) -> None:
    parser = arguments("the gemma-2-2b profile from end to end, on random weights")
    parser.add_argument("--scaled", action="store_true", help="every size divided, for a CPU")
    parser.add_argument("--divide", type=int, choices=(1, 2, 4, 8, 16, 32), help="widths by this; default 1, scaled 16")
    parser.add_argument("--fewer", type=int, help="tokens and steps by this; default 1, scaled 64")
    parser.add_argument("--methods", nargs="+", choices=methods("main"), default=[*methods("main")])
    parser.add_argument(
        "--work", type=Path, help="folder of model, text and runs; kept, and the next run goes on there"
    )
    asked = parser.parse_args(asked_for)
    use_cores(asked.threads)
    device = device_in_use()
    if device == "cpu" and not asked.scaled:
        parser.error("Gemma-2-2b's size needs a GPU and torch sees none; take --scaled")
    divide, fewer = asked.divide or (16 if asked.scaled else 1), asked.fewer or (64 if asked.scaled else 1)
    name = "gemma_scaled" if asked.scaled else "gemma"
    work = asked.work or (None if asked.scaled else output_root() / "benchmark" / name)
    with TemporaryDirectory() if work is None else nullcontext(work) as place, quiet():
        folder = Path(place).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[OUTPUT_VARIABLE] = str(folder / "build")
        result = run(folder, divide, fewer, asked.methods, device)
    save(asked.output, name, result, figure(result), "\n\n".join(summary.gemma(result)))


def run(folder: Path, divide: int, fewer: int, methods: Sequence[str], device: str) -> dict[str, Any]:
    """Every stage once, timed."""
    base = load_profile(BASE)
    sizes = gemma_sizes(GEMMA_2_2B["hidden_size"] // divide)
    went_on = (folder / "build").exists()
    data, training = base.data, base.training
    spent: dict[str, float] = {}

    def measure(stage: str, work: Callable[[], Any]) -> Any:
        found, spent[stage] = timed(work)
        return found

    profile = measure("random weights and text", lambda: write_profile(
        folder, sizes, name="bench-gemma", layer=base.model.layer, d_sae=training.d_sae // divide,
        train_tokens=data.train_tokens // fewer, steps=training.steps // fewer, batch=data.batch_tokens,
        dtype=base.model.dtype if device != "cpu" else "float32", device=device,
        max_words=None if divide == 1 else FEWER_WORDS,
    ))  # fmt: skip
    experiment = Experiment.open(str(profile))
    lm = measure("load the model", lambda: experiment.language_model(whole=False))
    measure("text to tokens", lambda: experiment.build_tokens(lm.tokenizer))
    store = measure("harvest", lambda: experiment.harvest(lm))
    del lm
    chosen = experiment.profile
    known = expected_calibration(chosen)
    specs = [RunSpec("main", method, "", chosen.training.seeds[0], calibrated(chosen, known, method))
             for method in methods]  # fmt: skip
    saes = []
    for spec in specs:
        _, seconds = timed(experiment.train, [spec])
        ran = read_json(experiment.run_folder(spec, store.key) / "run.json")
        saes.append({"method": spec.method, "train_s": seconds, "train_peak_bytes": _peak(device),
                     "ms_per_step": ran["seconds"] / ran["steps"] * 1e3, "l0": ran["final"]["l0"],
                     "explained_variance": ran["final"]["explained_variance"]})  # fmt: skip
    # What the metrics need of the language model is computed once, for all SAEs.
    measure("references", lambda: [score_inputs(experiment).reference(name) for name in SCORES])
    for sae, spec in zip(saes, specs, strict=True):
        _, sae["evaluate_s"] = timed(evaluate, experiment, [spec], SCORES)
    spent["training"] = sum(sae["train_s"] for sae in saes)
    spent["evaluation"] = sum(sae["evaluate_s"] for sae in saes)
    return {
        "setting": {
            "device": device, "model": sizes, "layer": chosen.model.layer, "dtype": chosen.model.dtype,
            "divided_by": divide, "fewer_by": fewer, "data": chosen.data.model_dump(mode="json"),
            "training": chosen.training.model_dump(mode="json"), "scores": list(SCORES), "d_in": store.d_in,
            "step_flop": product_flop(store.d_in, chosen.training.d_sae, chosen.data.batch_tokens),
        },
        "stages": [{"stage": stage, "seconds": seconds} for stage, seconds in spent.items()],
        "went_on": went_on,
        "harvest_tokens_per_s": chosen.data.train_tokens / spent["harvest"],
        "store_bytes": store.n_rows * store.d_in * 2,
        "saes": saes,
    }  # fmt: skip


def figure(result: dict[str, Any]) -> Figure:
    """Seconds of training and of evaluation by method."""
    set_style()
    saes = result["saes"]
    fig, ax = plt.subplots(figsize=(COLUMN_WIDTH, 0.9 + 0.22 * len(saes)))
    places = range(len(saes))
    ax.barh(places, [sae["train_s"] for sae in saes], color="#0173b2", height=0.7, label="training")
    ax.barh(places, [sae["evaluate_s"] for sae in saes], left=[sae["train_s"] for sae in saes], color="#de8f05",
            height=0.7, label="evaluation")  # fmt: skip
    ax.set_yticks(places, [method_name(sae["method"]) for sae in saes])
    ax.invert_yaxis()
    ax.set_xlabel("seconds per SAE")
    fig.legend(loc="outside upper right", ncols=2)
    sns.despine(fig)
    return fig


def _peak(device: str) -> int | None:
    """The most GPU memory in use since the last call, in bytes; None on a CPU."""
    if device == "cpu":
        return None
    peak = int(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    return peak


if __name__ == "__main__":
    main()
