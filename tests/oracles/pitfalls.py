"""What SAEBench's numbers depend on beside the SAE, measured on the packaged model and `notebooks/foreign_sae`.

    .venv-oracles/bin/python -m tests.oracles.pitfalls

writes the tables of `tests/oracles/README.md`.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_bench.evals.absorption.common import load_probe, load_probe_data_split
from sae_bench.evals.absorption.probing import create_dataset_probe_training
from sae_bench.evals.absorption.prompting import first_letter_formatter
from torch import Tensor
from transformer_lens import HookedTransformer

from benchmarks.activations import MODEL, load_text
from benchmarks.saebench import TEMPLATE, hooked_transformer, quiet, run_absorption, run_core, save_probe_inputs
from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import steps_batch
from sae_lib.metrics.absorption.probes import f1_score
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.metrics.core_reference import build_core_reference
from sae_lib.metrics.reconstruction import evaluate_reconstruction
from sae_lib.share.load import load_sae
from sae_lib.util.paths import ROOT, output_root
from tests.oracles.make_foreign_sae import FOLDER

README = ROOT / "tests" / "oracles" / "README.md"
BEGIN, END = "<!-- measured by python -m tests.oracles.pitfalls -->", "<!-- end -->"
WORDS = 2000
SEEDS = (1, 2, 3)
ABSORPTION = (("absorption_fraction", "mean_absorption_fraction"), ("absorption_full", "full_absorption_rate"),
              ("num_split_features", "num_split_feats"))  # fmt: skip
Row = list[str]


def table(header: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def few_steps(sae: Autoencoder, hooked: HookedTransformer, reference: AbsorptionReference, probes: Path) -> str:
    """SAEBench and ours with more and more steps of the k-sparse probe: lowest to highest score over seeds."""
    words, rows = len(reference.train_words), []
    for steps in (1, 8, 32):
        batch = steps_batch(words, 4096, steps)
        theirs = [_seeded(seed, run_absorption, sae, hooked, MODEL.layer, probes, **_k_sparse(batch)) for seed in SEEDS]
        ours = [
            evaluate_absorption(sae, reference, AbsorptionConfig(seed=seed, sparse_min_steps=steps)).summary
            for seed in SEEDS
        ]
        for library, runs, name in (("SAEBench", theirs, 1), ("ours", ours, 0)):
            ranges = [_range([run[score[name]] for run in runs]) for score in ABSORPTION]
            rows.append([str(steps), f"{batch:,}", library, *ranges])
    return table(["steps an epoch", "batch", f"{words:,} training words", *(name for name, _ in ABSORPTION)], rows)


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def unseeded(
    sae: Autoencoder, hooked: HookedTransformer, reference: AbsorptionReference, probes: Path, words: list[str]
) -> str:
    """SAEBench run twice, with eight steps an epoch: on the same words and probe, and in the words that it tests on."""
    config = AbsorptionConfig(sparse_min_steps=8)
    batch = steps_batch(len(reference.train_words), config.sparse_batch, config.sparse_min_steps)
    runs = [_seeded(seed, run_absorption, sae, hooked, MODEL.layer, probes, **_k_sparse(batch)) for seed in SEEDS]
    again = [evaluate_absorption(sae, reference, config).summary for _ in range(2)]
    rows = [
        [name, *(f"{run[peer]:.3f}" for run in runs), *(f"{run[name]:.3f}" for run in again)]
        for name, peer in ABSORPTION
    ]
    first, second = (_seeded(seed, asked_words, words) for seed in (1, 2))
    shared = len(first & second) / len(first)
    header = ["", *(f"SAEBench, run {i}" for i in SEEDS), "ours, run 1", "ours, run 2"]
    return table(header, rows) + f"\n\nOf the test words of one run, {shared:.0%} are test words of another."


def bfloat16(reference: AbsorptionReference, probes: Path, hooked: HookedTransformer) -> str:
    """The ground-truth probe and its test words as SAEBench reads them on a CPU and on a GPU."""
    rows = []
    exact = logits(hooked, probes, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        found = logits(hooked, probes, dtype)
        f1 = [f1_score(found[:, letter] > 0, reference.test_labels == letter) for letter in range(26)]
        changed = int(((found > 0) != (exact > 0)).sum())
        moved = float((found - exact).abs().max())
        name = str(dtype).removeprefix("torch.")
        rows.append([name, f"{sum(f1) / 26:.4f}", f"{moved:.3f}", f"{changed} of {exact.numel():,}"])
    return table(["dtype", "mean F1", "largest change of a logit", "decisions that change"], rows)


def core(sae: Autoencoder, lm: LanguageModel, hooked: HookedTransformer, tokens: Tensor) -> str:
    """Explained variance, mean squared error and the scores against ablation."""
    ours, _ = evaluate_reconstruction(sae, lm, build_core_reference(lm, tokens))
    theirs = {batch: run_core(sae, lm, hooked, tokens, batch) for batch in (16, 8)}
    peers = (("explained_variance", "explained_variance"), ("mse", "mse"), ("ce_score", "ce_loss_score"),
             ("kl_score", "kl_div_score"), ("cosine", "cossim"), ("l0", "l0"))  # fmt: skip
    rows = [[own, f"{ours[own]:.4g}", *(f"{theirs[batch][peer]:.4g}" for batch in (16, 8))] for own, peer in peers]
    return table(["", "ours", "SAEBench, batches of 16 contexts", "SAEBench, batches of 8"], rows)


def logits(hooked: Any, probes: Path, dtype: torch.dtype) -> Tensor:
    """The probe's logits on the test words, `[word, letter]`, read as `dtype`; a word is of a letter above 0."""
    probe = load_probe(hooked.cfg.model_name, MODEL.layer, probes, dtype=dtype, device="cpu")
    rows, _ = load_probe_data_split(hooked, MODEL.layer, "test", probes, dtype=dtype, device="cpu")
    with torch.no_grad():
        found: Tensor = probe(rows).float()
    return found


def asked_words(words: list[str]) -> set[str]:
    """The words that SAEBench would test on."""
    _, test = create_dataset_probe_training(
        words, first_letter_formatter(), num_prompts_per_token=1, base_template=TEMPLATE
    )
    return {prompt.word for prompt, _ in test}


def _k_sparse(batch: int) -> dict[str, Any]:
    return {"precalc_k_sparse_probe_sae_acts": True, "k_sparse_probe_batch_size": batch}


def _seeded(seed: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """SAEBench draws from the global generators."""
    random.seed(seed)
    torch.manual_seed(seed)
    return work(*arguments, **options)


def measure() -> dict[str, str]:
    """Each pitfall's table, by the word that stands for it in the README."""
    lm = LanguageModel.load(MODEL, whole=True)
    hooked, sae = hooked_transformer(lm), load_sae(FOLDER)
    tokens = torch.from_numpy(load_text(lm, output_root() / "oracles", train=1, held_out=32).held_out).long()
    with tempfile.TemporaryDirectory() as folder, quiet():
        probes = Path(folder) / "probes"
        reference = build_absorption_reference(lm, AbsorptionConfig(max_words=WORDS), Path(folder))
        save_probe_inputs(reference, probes, lm.name, lm.layer)
        return {
            "steps": few_steps(sae, hooked, reference, probes),
            "seeds": unseeded(sae, hooked, reference, probes, reference.train_words + reference.test_words),
            "bfloat16": bfloat16(reference, probes, hooked),
            "core": core(sae, lm, hooked, tokens),
        }


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    text = README.read_text()
    for name, lines in measure().items():
        before, _, rest = text.partition(BEGIN.replace("measured", f"{name}: measured"))
        _, _, after = rest.partition(END)
        text = f"{before}{BEGIN.replace('measured', f'{name}: measured')}\n{lines}\n{END}{after}"
    README.write_text(text)


if __name__ == "__main__":
    main()
