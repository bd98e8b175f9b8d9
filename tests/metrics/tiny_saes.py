"""SAEs of a few latents, and words whose residual streams are given."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.data.config import CorpusConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.probes import LinearProbes, Rows, train_probes
from sae_lib.metrics.absorption.reference import AbsorptionReference
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.reference import ProbingPart
from sae_lib.metrics.probing.tasks import ProbingTask
from sae_lib.metrics.registry import Inputs
from sae_lib.profiles.profile import EvaluationConfig


def make_sae(*, d_in: int, seed: int = 0, **config: Any) -> Autoencoder:
    """An untrained SAE; `config` holds fields of `SAEConfig`."""
    return build_autoencoder(sae_config(config), d_in=d_in, seed=seed)


def sae_of(encoder: Tensor, decoder: Tensor) -> Autoencoder:
    """A standard SAE, f = ReLU(x W_enc), with these weights: a column and a row for each latent."""
    sae = make_sae(architecture="standard", d_sae=len(decoder), d_in=decoder.shape[1])
    with torch.no_grad():
        sae.W_enc.copy_(encoder)
        sae.W_dec.copy_(decoder)
    return sae


def probing_part(
    residual: Tensor, lengths: Tensor, tasks: list[ProbingTask], accuracies: list[float] | None = None
) -> ProbingPart:
    """These tasks on texts of these lengths."""
    texts = [each for task in tasks for each in (task.train, task.test)]
    labels = [each for task in tasks for each in (task.train_labels, task.test_labels)]
    sizes: list[list[Any]] = [[task.dataset, task.name, len(task.train), len(task.test)] for task in tasks]
    none = torch.empty(0, dtype=torch.long)
    drawn, truth = torch.cat([none, *texts]), torch.cat([none.bool(), *labels])
    return ProbingPart(residual, lengths, drawn, truth, sizes, accuracies or [])


def absorption_inputs(
    lm: LanguageModel, reference: AbsorptionReference, config: AbsorptionConfig, folder: Path = Path()
) -> Inputs:
    """What the language model is asked with about the words of this reference."""
    inputs = Inputs(lambda: lm, lambda: torch.empty(0), EvaluationConfig(absorption=config), folder)
    inputs._references["absorption"] = reference
    return inputs


def probing_inputs(
    lm: LanguageModel, config: ProbingConfig, corpus: CorpusConfig | None = None, folder: Path = Path()
) -> Inputs:
    """What the references of sparse probing are built from."""
    return Inputs(lambda: lm, lambda: torch.empty(0), EvaluationConfig(probing=config), folder, corpus)


def train_one(rows: Rows, labels: Tensor, initial: LinearProbes, **training: Any) -> LinearProbes:
    """The probes of one input alone."""
    return train_probes([rows], labels, [initial], **training)[0]


def words_with(
    words: list[str], x: Tensor, test: Tensor, probe: Tensor, f1: list[float], fresh: Tensor | None = None
) -> AbsorptionReference:
    """Words with residual streams `x`, and `fresh` ones where they are scored, which all that are tested on are."""
    train, tested = ([words[i] for i in rows.nonzero().flatten().tolist()] for rows in (~test, test))
    return AbsorptionReference(
        train, tested, x[~test], x[test], LinearProbes(probe, torch.zeros(26)), f1 + [0.0] * (26 - len(f1)),
        torch.arange(len(tested)), x[test] if fresh is None else fresh, left_out=0,
    )  # fmt: skip
