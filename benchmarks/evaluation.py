"""How long one SAE's evaluation takes, ours against SAEBench's: same language model, same SAEs, same run, same threads.

    .venv-oracles/bin/python -m benchmarks.evaluation

Absorption and core metrics of a few SAEs of 1,024 latents, trained here by `sae_lib` on the packaged language model.
What either side computes once for the language model is timed apart, as set-up. SAEBench is timed twice:

- `as_it_comes`: its default settings, its own draws of words, split and prompts;
- `as_fast_as_it_goes`: latents encoded once (`precalc_k_sparse_probe_sae_acts`), on our words, split and ground-truth
  probe, its k-sparse probes with our initial weights, order and number of steps, so that its scores can be laid beside
  ours. What is left to chance are the examples in its prompts.

Writes `results/evaluation.json` and `figures/evaluation.png`.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.activations import MODEL, Text, load_store, load_text
from benchmarks.measure import timed, use_cores
from benchmarks.output import arguments, save
from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.data.config import DataConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import steps_batch
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.absorption.score import evaluate_absorption_many
from sae_lib.metrics.core_reference import build_core_reference
from sae_lib.metrics.reconstruction import evaluate_reconstruction
from sae_lib.report.figures.style import COLUMN_WIDTH, set_style
from sae_lib.training.recipes import TrainingConfig, method_recipe
from sae_lib.training.run import train_sae
from sae_lib.util.paths import output_root

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

D_SAE = 1024
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "TopK, k = 16": ("topk", {"k": 16, "dead_after_tokens": 100_000}),
    "TopK, k = 40": ("topk", {"k": 40, "dead_after_tokens": 100_000}),
    "ReLU, l1 = 0.2": ("standard", {"l1_coefficient": 0.2}),
}
# A score's name: ours, and SAEBench's.
ABSORPTION = {
    "absorption_fraction": "mean_absorption_fraction",
    "absorption_full": "full_absorption_rate",
    "num_split_features": "num_split_feats",
}
CORE = {"l0": "l0", "cosine": "cossim", "ce_score": "ce_loss_score", "kl_score": "kl_div_score"}
LABELS = {
    "ours": "ours",
    "saebench_as_fast_as_it_goes": "SAEBench, fastest",
    "saebench_as_it_comes": "SAEBench, as it comes",
}


def train(lm: LanguageModel, text: Text, folder: Path, steps: int, names: list[str]) -> list[Autoencoder]:
    """The SAEs, each trained for so many steps of 512 tokens; finished ones are read back."""
    store = load_store(lm, text, folder)
    data = DataConfig(
        train_tokens=store.n_rows, held_out_contexts=1, calibration_contexts=1, window=16, batch_tokens=512,
        shard_rows=2**17,
    )  # fmt: skip
    training = TrainingConfig(
        d_sae=D_SAE, steps=steps, seeds=(0,), ablation_seeds=(0,), log_every=50, checkpoint_every=steps
    )
    saes = []
    for name in names:
        method, overrides = METHODS[name]
        config = sae_config(method_recipe(method, D_SAE, overrides, schedule_scale=steps / 5000))
        run = folder / f"{method}-{'-'.join(str(value) for value in overrides.values())}-{steps}"
        train_sae(config, store, data, training, 0, run)
        saes.append(load_autoencoder(run))
    return saes


def ours(
    saes: list[Autoencoder], lm: LanguageModel, tokens: Tensor, folder: Path, config: AbsorptionConfig
) -> tuple[dict[str, Any], list[dict[str, float]], AbsorptionReference]:
    """Our seconds, our scores of each SAE, and the reference they were made with."""
    reference, absorption_setup = timed(build_absorption_reference, lm, config, folder)
    core_reference, core_setup = timed(build_core_reference, lm, tokens)
    found, absorption = timed(evaluate_absorption_many, saes, reference, config)
    core = [timed(evaluate_reconstruction, sae, lm, core_reference) for sae in saes]
    scores = [result.summary | metrics for result, ((metrics, _), _) in zip(found, core, strict=True)]
    seconds = {
        "setup": {"absorption": absorption_setup, "core": core_setup},
        "per_sae": {"absorption": absorption / len(saes), "core": mean([spent for _, spent in core])},
    }
    return seconds, scores, reference


def theirs(
    saes: list[Autoencoder], lm: LanguageModel, hooked: HookedTransformer, tokens: Tensor, probes: Path, **options: Any
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """SAEBench's seconds and scores; the ground-truth probe is trained where `probes` does not hold one."""
    from benchmarks.saebench import run_absorption, run_core, train_probe

    random.seed(0)
    torch.manual_seed(0)
    _, setup = timed(train_probe, hooked, lm.layer, probes)
    absorption = [timed(run_absorption, sae, hooked, lm.layer, probes, **options) for sae in saes]
    core = [timed(run_core, sae, lm, hooked, tokens) for sae in saes]
    scores = [first | second for (first, _), (second, _) in zip(absorption, core, strict=True)]
    seconds = {
        "setup": {"absorption": setup},
        "per_sae": {"absorption": mean([s for _, s in absorption]), "core": mean([s for _, s in core])},
    }
    return seconds, scores


def compare(names: list[str], our: list[dict[str, float]], their: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Both libraries' scores of each SAE, and how far they are apart."""
    return [
        {"sae": name, "score": score, "ours": a[score], "saebench": b[peer], "difference": abs(a[score] - b[peer])}
        for name, a, b in zip(names, our, their, strict=True)
        for score, peer in (ABSORPTION | CORE).items()
    ]


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def total(seconds: dict[str, Any]) -> float:
    return float(sum(seconds["per_sae"].values()))


def main() -> None:
    parser = arguments("seconds per SAE: our absorption and core metrics against SAEBench's")
    parser.add_argument("--saes", type=int, default=len(METHODS), help="how many of the SAEs")
    parser.add_argument("--steps", type=int, default=600, help="training steps of each")
    parser.add_argument("--contexts", type=int, default=64, help="held-out contexts of 128 tokens for the core metrics")
    parser.add_argument("--words", type=int, default=None, help="our evaluation's words, at most; all by default")
    parser.add_argument("--fast-only", action="store_true", help="leave out SAEBench's default settings")
    asked = parser.parse_args()
    use_cores(asked.threads)
    # Of the peers' environment; `--help` is read in any.
    from benchmarks.saebench import hooked_transformer, quiet, save_probe_inputs
    from tests.oracles.same_draws import share_draws

    names = list(METHODS)[: asked.saes]
    work = output_root() / "benchmark"
    lm = LanguageModel.load(MODEL, whole=True)
    text = load_text(lm, work, train=2400, held_out=asked.contexts)
    saes = train(lm, text, work, asked.steps, names)
    hooked = hooked_transformer(lm)
    tokens = torch.from_numpy(text.held_out).long()
    config = AbsorptionConfig(max_words=asked.words)
    with tempfile.TemporaryDirectory() as folder, quiet():
        place = Path(folder)
        our_seconds, our_scores, reference = ours(saes, lm, tokens, place / "ours", config)
        save_probe_inputs(reference, place / "same", lm.name, lm.layer)
        batch = steps_batch(len(reference.train_words), config.sparse_batch, config.sparse_min_steps)
        options = {"precalc_k_sparse_probe_sae_acts": True, "k_sparse_probe_batch_size": batch}
        with pytest.MonkeyPatch.context() as patch:
            share_draws(patch, config.seed)
            peers = {"as_fast_as_it_goes": theirs(saes, lm, hooked, tokens, place / "same", **options)}
        if not asked.fast_only:
            peers["as_it_comes"] = theirs(saes, lm, hooked, tokens, place / "own")
    for seconds, _ in peers.values():
        seconds["ratio"] = total(seconds) / total(our_seconds)
    result = {
        "setting": {
            "model": lm.name, "parameters": sum(p.numel() for p in lm.model.parameters()), "layer": lm.layer,
            "d_sae": D_SAE, "training_steps": asked.steps, "threads": torch.get_num_threads(),
            "words": len(reference.train_words) + len(reference.test_words), "contexts": len(tokens),
        },
        "seconds": {"ours": our_seconds} | {f"saebench_{name}": seconds for name, (seconds, _) in peers.items()},
        "agreement": compare(names, our_scores, peers["as_fast_as_it_goes"][1]),
    }  # fmt: skip
    save(asked.output, "evaluation", result, figure(result), summary(result))


def summary(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'seconds per SAE':32} {'absorption':>10} {'core':>8} {'ratio':>8} {'set-up':>8}"]
    for name, seconds in result["seconds"].items():
        spent = seconds["per_sae"]
        setup = sum(seconds["setup"].values())
        lines.append(
            f"{name:32} {spent['absorption']:10.2f} {spent['core']:8.2f} {seconds.get('ratio', 1.0):8.1f} {setup:8.1f}"
        )
    lines.append(f"\n{'SAE':16} {'score':20} {'ours':>8} {'SAEBench':>9}")
    for row in result["agreement"]:
        lines.append(f"{row['sae']:16} {row['score']:20} {row['ours']:8.4f} {row['saebench']:9.4f}")
    return "\n".join(lines)


def figure(result: dict[str, Any]) -> Figure:
    """Seconds per SAE by library, absorption and core metrics on top of each other."""
    set_style()
    seconds = result["seconds"]
    fig, ax = plt.subplots(figsize=(COLUMN_WIDTH, 1.6))
    start = np.zeros(len(seconds))
    for part, color in (("absorption", "#0173b2"), ("core", "#de8f05")):
        spent = np.array([each["per_sae"][part] for each in seconds.values()])
        ax.barh(range(len(seconds)), spent, left=start, color=color, height=0.7, label=part)
        start += spent
    for place, end in enumerate(start):
        ax.annotate(f"{end:.1f} s", (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set_yticks(range(len(seconds)), [LABELS[name] for name in seconds])
    ax.set_xlim(right=1.2 * start.max())
    ax.invert_yaxis()
    ax.set_xlabel("seconds per SAE (lower is better)")
    fig.legend(loc="outside upper right", ncols=2)
    sns.despine(fig)
    return fig


if __name__ == "__main__":
    main()
