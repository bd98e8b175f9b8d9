"""Is the cost linear? Seconds against tokens, width and number of SAEs, with the exponent that fits.

    .venv-oracles/bin/python -m benchmarks.scaling

- `harvest_tokens`: `harvest` of so many tokens;
- `train_tokens`: a whole `train_sae`, from an empty folder to the finished one, on so many tokens;
- `width`: a training step at so many latents;
- `saes`: `Experiment.train` of so many SAEs, one after the other, as the notebooks train them.

Each is fitted with seconds ~ size^p (`measure.exponent`): p = 1 is linear, a fixed cost lowers it. The slope of the
last two sizes stands beside it, where a fixed cost counts least. Writes `results/scaling.json` and
`figures/scaling.png`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks import summary
from benchmarks.gemma_profile import write_profile
from benchmarks.measure import device_in_use, exponent, interleaved, spread, use_cores
from benchmarks.output import arguments, quiet, save
from benchmarks.random_model import packaged_vocabulary, random_store, random_tokens, save_random_gemma
from benchmarks.steppers import Ours, Rows, our_config
from sae_lib.data.config import ModelConfig
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.profiles.runs import RunSpec
from sae_lib.report.figures.style import DARK, FULL_WIDTH, set_style
from sae_lib.study.experiment import Experiment
from sae_lib.training.recipes import TrainingConfig
from sae_lib.training.run import train_sae
from sae_lib.util.paths import OUTPUT_VARIABLE

D_IN = 128
SMALL = {"num_hidden_layers": 2, "hidden_size": D_IN, "intermediate_size": 512, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
XLABELS = {
    "harvest_tokens": "tokens harvested",
    "train_tokens": "tokens trained on",
    "width": "latents",
    "saes": "SAEs",
}


def main(asked_for: Sequence[str] | None = None) -> None:
    parser = arguments("cost against tokens, width and number of SAEs")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--saes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--d-sae", type=int, default=1024, help="width where it is not what varies")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--block", type=float, default=0.1, help="seconds of a turn at least")
    asked = parser.parse_args(asked_for)
    use_cores(asked.threads)
    device = device_in_use()
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        rows = Rows(random_store(folder, D_IN, max(asked.tokens), device), asked.batch, asked.batch // 8, device)
        turns: dict[str, dict[int, Callable[[], object]]] = {
            "harvest_tokens": harvest_turns(folder, asked.tokens, device),
            "train_tokens": training_turns(rows, folder, asked.tokens, asked.d_sae),
            "width": {width: _step(rows, width) for width in asked.widths},
            "saes": sae_turns(folder / "saes", asked.saes, asked.d_sae, asked.batch, device),
        }
        series = {name: fitted(interleaved(cases, asked.repeats, device, asked.block)) for name, cases in turns.items()}
    setting = {"device": device, "d_in": D_IN, "d_sae": asked.d_sae, "batch": asked.batch, "method": "topk"}
    result = {"setting": setting, "series": series}
    save(asked.output, "scaling", result, figure(result), "\n\n".join(summary.scaling(result)))


def harvest_turns(folder: Path, sizes: Sequence[int], device: str) -> dict[int, Callable[[], object]]:
    """Harvest of so many tokens from a two-block Gemma-2 with random weights."""
    sizes_of_model = SMALL | {"vocab_size": packaged_vocabulary()}
    model = save_random_gemma(folder / "harvested", sizes_of_model, dtype="float32", device=device)
    lm = LanguageModel.load(ModelConfig(name=str(model), layer=1, dtype="float32", device=device), whole=False)
    tokens = random_tokens(-(-max(sizes) // 127), 128, lm)

    def turn(rows: int) -> Callable[[], object]:
        return lambda: shutil.rmtree(harvest(lm, tokens, folder / "harvest", max_rows=rows).folder)

    return {size: turn(size) for size in sizes}


def training_turns(rows: Rows, folder: Path, sizes: Sequence[int], d_sae: int) -> dict[int, Callable[[], object]]:
    """A TopK SAE trained on so many tokens, from nothing to the finished run folder."""
    data = rows.data(rows.batch)

    def turn(tokens: int) -> Callable[[], object]:
        steps = max(1, tokens // rows.batch)
        config = our_config("topk", d_sae, max(1, d_sae // 51), steps, rows.scale)
        training = TrainingConfig(
            d_sae=d_sae, steps=steps, seeds=(0,), ablation_seeds=(0,), log_every=50, checkpoint_every=1000
        )

        def run() -> None:
            place = folder / "trained"
            train_sae(config, rows.store, data, training, 0, place, device=rows.device)
            shutil.rmtree(place)

        return run

    return {size: turn(size) for size in sizes}


def sae_turns(
    folder: Path, counts: Sequence[int], d_sae: int, batch: int, device: str
) -> dict[int, Callable[[], object]]:
    """So many TopK SAEs through `Experiment.train`; every turn has seeds of its own."""
    tokens = 16 * batch
    sizes = SMALL | {"vocab_size": packaged_vocabulary()}
    os.environ[OUTPUT_VARIABLE] = str(folder / "build")
    profile = write_profile(
        folder, sizes, name="bench-scaling", layer=1, d_sae=d_sae, train_tokens=tokens, steps=16, batch=batch,
        dtype="float32", device=device,
    )  # fmt: skip
    experiment = Experiment.open(str(profile))
    experiment.prepare()
    seed = itertools.count()

    def turn(count: int) -> Callable[[], object]:
        def run() -> None:
            config = experiment.profile.sae_config("topk")
            experiment.train([RunSpec("main", "topk", "", next(seed), config) for _ in range(count)])

        return run

    return {count: turn(count) for count in counts}


def fitted(seconds: dict[int, list[float]]) -> dict[str, Any]:
    """The measurements at each size and the exponents over all sizes and over the last two."""
    sizes = sorted(seconds)
    return {
        "points": [{"size": size, "seconds": spread(seconds[size])} for size in sizes],
        "all": exponent(sizes, [seconds[size] for size in sizes]),
        "last_two": exponent(sizes[-2:], [seconds[size] for size in sizes[-2:]]),
    }


def figure(result: dict[str, Any]) -> Figure:
    """Seconds against size, both logarithmic; the grey line is linear through the last point."""
    set_style()
    series = result["series"]
    fig, panels = plt.subplots(1, len(series), figsize=(FULL_WIDTH, 1.9), squeeze=False)
    for ax, (name, found) in zip(panels[0], series.items(), strict=True):
        size = np.array([point["size"] for point in found["points"]], dtype=float)
        median, low, high = (
            np.array([p["seconds"][key] for p in found["points"]]) for key in ("median", "low", "high")
        )
        ax.plot(size, median[-1] * size / size[-1], color="#b0b0b0", linewidth=0.8)
        ax.errorbar(size, median, yerr=[median - low, high - median], color=DARK, marker="o", ms=3, linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel=XLABELS[name])
        ax.set_xticks(size[::2], [f"{each / 1000:.3g}k" if each >= 1000 else f"{each:.0f}" for each in size[::2]])
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:.3g}")
        ax.set_title(f"p = {found['all']['exponent']:.2f}")
    panels[0, 0].set_ylabel("seconds\n(grey: linear)")
    sns.despine(fig)
    return fig


def _step(rows: Rows, width: int) -> Callable[[], None]:
    return Ours(rows, "topk", width, max(1, width // 51), 1, "float32").step


if __name__ == "__main__":
    main()
