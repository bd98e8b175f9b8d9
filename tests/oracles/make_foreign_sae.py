"""Train an SAE with SAELens, from its first step to its file, on the packaged language model.

    .venv-oracles/bin/python -m tests.oracles.make_foreign_sae

What comes out, `notebooks/foreign_sae`, is an SAE that this project has not trained, in a format that is not its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import SAE, __version__
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.activations import CONTEXT_LENGTH, MODEL, load_store, load_text
from sae_lib.data.language_model import LanguageModel
from sae_lib.util.paths import ROOT, output_root

FOLDER = ROOT / "notebooks" / "foreign_sae"
D_SAE, K, SEED = 512, 24, 0
SAMPLES, BATCH, LEARNING_RATE = 1_200_000, 1024, 1e-3
README = """# An SAE that this project did not train

A TopK SAE of {d_sae} latents (k = {k}), trained by SAELens {version} with SAELens's own trainer on the residual
stream of the packaged language model after block {layer}, and saved by SAELens: `cfg.json` and
`sae_weights.safetensors`. The notebook on evaluation reads it as anybody's SAE.

Made by `python -m tests.oracles.make_foreign_sae` in the environment of `tests/oracles/requirements.lock`
({samples:,} samples in batches of {batch:,}, Adam, learning rate {rate:g} falling to zero over the last fifth,
seed {seed}).

| on rows it was trained on | |
|---|---|
| explained variance (higher is better) | {explained_variance:.3f} |
| active latents per row (L0) | {l0:.1f} |
| latents that are never active | {dead} of {d_sae} |
"""


def batches(rows: Tensor) -> Iterator[Tensor]:
    """Shuffled batches of the rows, epoch after epoch."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        for index in torch.randperm(len(rows), generator=generator).split(BATCH):
            if len(index) == BATCH:
                yield rows[index]


def train(rows: Tensor) -> TopKTrainingSAE:
    """A TopK SAE by SAELens's trainer."""
    torch.manual_seed(SEED)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=rows.shape[1],
            d_sae=D_SAE,
            k=K,
            apply_b_dec_to_input=True,
            metadata=SAEMetadata(
                model_name=MODEL.name,
                hook_name=f"blocks.{MODEL.layer}.hook_resid_post",
                context_size=CONTEXT_LENGTH,
                prepend_bos=True,
            ),
        )
    )
    steps = SAMPLES // BATCH
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=LEARNING_RATE,
        lr_end=0.0,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=100,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg=config, sae=sae, data_provider=batches(rows)).fit()
    return sae


@torch.no_grad()
def measure(sae: Any, rows: Tensor) -> dict[str, float]:
    """Of the saved SAE, as SAELens reads it back."""
    f = sae.encode(rows)
    error = (rows - sae.decode(f)).square().sum()
    variance = (rows - rows.mean(dim=0)).square().sum()
    return {
        "explained_variance": 1 - float(error / variance),
        "l0": float((f != 0).float().sum(dim=1).mean()),
        "dead": int((f == 0).all(dim=0).sum()),
    }


def main(folder: Path = FOLDER) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    lm = LanguageModel.load(MODEL, whole=False)
    work = output_root() / "oracles"
    store = load_store(lm, load_text(lm, work, train=2400, held_out=8), work)
    rows = store.rows(np.arange(store.n_rows))
    train(rows).save_inference_model(folder)
    config = folder / "cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=2, sort_keys=True) + "\n")
    numbers = measure(SAE.load_from_disk(folder), rows[:20_000])
    text = README.format(
        d_sae=D_SAE, k=K, version=__version__, layer=MODEL.layer, samples=SAMPLES, batch=BATCH, rate=LEARNING_RATE,
        seed=SEED, **numbers,
    )  # fmt: skip
    (folder / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
