"""Sparse probing of an SAE."""

from collections.abc import Sequence

import pandas as pd
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import text_key
from sae_lib.metrics.probing.reference import ProbingPart, build_probing_reference
from sae_lib.metrics.probing.tasks import sparse_accuracies
from sae_lib.metrics.registry import Column, Measured, Score, register
from sae_lib.metrics.stored_reference import require_finite, require_width

CHANCE = 0.5  # every task has as many positives as negatives


@torch.no_grad()
def evaluate_probing(sae: Autoencoder, reference: Sequence[ProbingPart], config: ProbingConfig) -> Measured:
    """k-sparse probing of an SAE (higher is better), encoded on the device that holds it.

    Latents, scaled as for decoder rows of unit norm, are averaged over the tokens of a text that are not special, and
    those of a task's k best (`top_dimensions`) read by a logistic regression. All numbers are test accuracies. Summary:
    probing_k<k> for each k of the configuration, probing_all (the whole residual stream), each the mean over a
    dataset's tasks and then over datasets, and probing_chance. Table `tasks`: dataset, task, k<k> ..., all, and how
    many texts a task is trained and tested on.

    Raises ArtifactError: the SAE has another width than the residual stream, or gives NaN or infinite latents.

    Source: SAEBench 0.6.0, `sparse_probing`.
    """
    require_width(sae, reference[0].residual.shape[1])
    norms = sae.W_dec.float().norm(dim=1).cpu()
    rows = []
    for part in reference:
        means = part.means(lambda residual: sae.encode(residual.to(sae.dtype)), sae.device) * norms
        require_finite(means)
        for task, of_residual in zip(part.drawn, part.residual_accuracy, strict=True):
            accuracies = [*sparse_accuracies(means, task, config.ks, config.max_iter), of_residual]
            rows.append([task.dataset, task.name, *accuracies, len(task.train), len(task.test)])
    columns = [*(f"k{k}" for k in config.ks), "all"]
    tasks = pd.DataFrame(rows, columns=["dataset", "task", *columns, "train", "test"])
    means_of = tasks.groupby("dataset")[columns].mean().mean()
    summary = {f"probing_{column}": float(means_of[column]) for column in columns}
    return Measured({**summary, "probing_chance": CHANCE}, {"tasks": tasks})


register(
    Score(
        name="probing",
        version=1,
        settings=ProbingConfig,
        reference=build_probing_reference,
        evaluate=lambda saes, inputs, earlier: [
            evaluate_probing(sae, inputs.reference("probing"), inputs.settings("probing")) for sae in saes
        ],
        text_key=text_key,
        columns={
            "probing_k1": Column("probing, k = 1", "higher", 3),
            "probing_k2": Column("probing, k = 2", "higher", 3),
            "probing_k5": Column("probing, k = 5", "higher", 3),
            "probing_all": Column("probing, residual stream", "higher", 3),
            "probing_chance": Column("chance", "none", 2),
        },
    )
)
