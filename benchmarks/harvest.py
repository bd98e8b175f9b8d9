"""Tokens per second from a language model to activations: ours beside the peers', and the arithmetic under all.

    .venv-oracles/bin/python -m benchmarks.harvest

The models are the packaged one and a Gemma-2 with random weights (`--width` of 2304 is Gemma-2-2b's; the whole of it
where there is a GPU). All take turns on the same contexts. Ours writes its store to disk, with checksums; SAELens and
dictionary_learning keep theirs in memory; transformers alone (`output_hidden_states`) computes the whole model.

Writes `results/harvest.json` and `figures/harvest.png`.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.harvest_peers import PEERS, blocks, flop_per_token, peers_installed
from benchmarks.measure import device_in_use, interleaved, ratio, spread, use_cores
from benchmarks.output import arguments, save
from benchmarks.random_model import gemma_sizes, random_tokens, save_random_gemma
from benchmarks.summary import harvesting
from sae_lib.data.config import ModelConfig
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.tokens import pack
from sae_lib.report.figures.style import COLUMN_WIDTH, GREY, set_style

POSITIONS = 128
BATCH = 32  # contexts per forward pass, for all
LAYER = 12


def main(asked_for: Sequence[str] | None = None) -> None:
    parser = arguments("tokens per second of harvesting: ours beside the peers'")
    parser.add_argument("--contexts", type=int, default=128, help="contexts of 128 tokens in a turn")
    parser.add_argument("--width", type=int, help="of the random Gemma-2; default: 2304 on a GPU, 256 else")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=("packaged", "random"), default=["packaged", "random"])
    asked = parser.parse_args(asked_for)
    if asked.contexts < 2 * BATCH and "dictionary_learning" in peers_installed():
        parser.error(f"--contexts: dictionary_learning's buffer needs {2 * BATCH} or more")
    use_cores(asked.threads)
    device = device_in_use()
    width = asked.width or (2304 if device != "cpu" else 256)
    models = []
    for name in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            config = model_config(name, Path(folder), width, device)
            models.append(time_model(name, config, Path(folder), asked.contexts, asked.repeats))
    setting = {"device": device, "positions": POSITIONS, "batch": BATCH, "contexts": asked.contexts}
    result = {"setting": setting, "models": models}
    save(asked.output, "harvest", result, figure(result), "\n\n".join(harvesting(result)))


def model_config(name: str, folder: Path, width: int, device: str) -> ModelConfig:
    """The packaged model at its layer, or a random Gemma-2 of this width after block 12."""
    if name == "packaged":
        return ModelConfig(name="pocket", layer=2, dtype="float32", device=device)
    dtype = "bfloat16" if device != "cpu" else "float32"
    model = save_random_gemma(folder / "model", gemma_sizes(width), dtype=dtype, device=device)
    return ModelConfig(name=str(model), layer=LAYER, dtype=dtype, device=device)


def time_model(name: str, config: ModelConfig, folder: Path, contexts: int, repeats: int) -> dict[str, Any]:
    """Every harvester on one model."""
    cut = LanguageModel.load(config, whole=False)
    whole = LanguageModel.load(config, whole=True)
    tokens = random_tokens(contexts, POSITIONS, cut)
    ids = torch.from_numpy(tokens.astype(np.int64))
    texts = cut.tokenizer.batch_decode(ids[:, 1:])
    cases: dict[str, Callable[[], object]] = {
        "sae_lib": ours(cut, tokens, folder),
        "sae_lib, from text": lambda: ours(cut, pack(texts, cut.tokenizer, POSITIONS), folder)(),
    }
    skipped = {}
    for peer in PEERS:
        if peer not in peers_installed():
            skipped[peer] = "not installed"
            continue
        cases[peer] = PEERS[peer](whole, ids, BATCH)
    cases["products"] = products(cut, contexts * POSITIONS)
    seconds = interleaved(cases, repeats, str(cut.device.type), block_seconds=0.0)
    flop = flop_per_token(cut, POSITIONS)
    rows = [
        {"library": case, "tokens_per_s": spread([contexts * POSITIONS / s for s in values]),
         "times_ours": ratio(seconds["sae_lib"], values)}
        for case, values in seconds.items()
    ]  # fmt: skip
    return {
        "name": name, "width": cut.d_in, "layer": cut.layer, "dtype": config.dtype, "flop_per_token": flop,
        "skipped": skipped, "rows": rows,
    }  # fmt: skip


def ours(lm: LanguageModel, tokens: NDArray[np.int32], folder: Path) -> Callable[[], object]:
    """`harvest` into a new store on disk."""
    number = itertools.count()

    def run() -> None:
        store = folder / f"store-{next(number)}"
        harvest(lm, tokens, store, batch=BATCH)
        shutil.rmtree(store)

    return run


def products(lm: LanguageModel, tokens: int) -> Callable[[], object]:
    """The matrix products of blocks 0 .. layer over so many tokens and nothing else: the floor, attention left out."""
    weights = [p for block in blocks(lm) for p in block.parameters() if p.ndim == 2]
    rows = BATCH * POSITIONS
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], device=w.device, dtype=w.dtype) for w in weights}

    def run() -> None:
        for _ in range(-(-tokens // rows)):
            for weight in weights:
                torch.mm(inputs[weight.shape[1]], weight.T)

    return run


def figure(result: dict[str, Any]) -> Figure:
    """Tokens per second by harvester, one panel for each model; the products alone are the dashed line."""
    set_style()
    models = result["models"]
    fig, panels = plt.subplots(len(models), 1, figsize=(COLUMN_WIDTH, 0.5 + 1.3 * len(models)), squeeze=False)
    for ax, model in zip(panels[:, 0], models, strict=True):
        rows = [row for row in model["rows"] if row["library"] != "products"]
        found = [row["tokens_per_s"] for row in rows]
        median = np.array([each["median"] for each in found]) / 1e3
        ends = [median - [each["low"] / 1e3 for each in found], [each["high"] / 1e3 for each in found] - median]
        colors = ["#0173b2" if row["library"].startswith("sae_lib") else GREY for row in rows]
        ax.barh(range(len(rows)), median, xerr=ends, color=colors, height=0.7)
        ax.set_yticks(range(len(rows)), [row["library"] for row in rows])
        floor = next(row for row in model["rows"] if row["library"] == "products")["tokens_per_s"]["median"]
        ax.axvline(floor / 1e3, color=GREY, linestyle="--", linewidth=0.8)
        ax.invert_yaxis()
        ax.set_title(f"{model['name']} Gemma-2, width {model['width']}")
    panels[-1, 0].set_xlabel("thousand tokens/s (higher is better)\ndashed: matrix products alone")
    sns.despine(fig)
    return fig


if __name__ == "__main__":
    main()
