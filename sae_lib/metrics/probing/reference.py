"""What sparse probing needs from the language model: computed once for a model, layer and configuration, kept on disk.

The residual stream is kept at every token that is not special, in the language model's own dtype, for each distinct
text once. SAEBench's 35 tasks at Gemma-2-2b's width are 53 GB in bfloat16, so each of the eight datasets has a file,
which is mapped into memory and read a chunk at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from sae_lib.data.config import CorpusConfig
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import known_datasets, load_part, text_key
from sae_lib.metrics.probing.spurious import spurious_tasks
from sae_lib.metrics.probing.tasks import ProbingTask, Tokens, draw_tasks, logistic_accuracy
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.errors import ArtifactError
from sae_lib.util.keys import Stage
from sae_lib.util.memory import portions

# Tokens encoded at a time: what a core's cache holds at pocket scale, and enough to keep a GPU busy.
_ROWS = {"cpu": 1024, "cuda": 16384}

PROBING_REFERENCE = Stage("probing reference", 1)
SPURIOUS_REFERENCE = Stage("spurious reference", 1)


@dataclass(frozen=True)
class ProbingPart:
    """Texts that are encoded together, and the tasks on them: all of the packaged corpus, or one other dataset."""

    residual: Float[Tensor, "token d_in"]
    """At the tokens of text 0, then of text 1, ...; on the CPU, mapped from disk."""
    lengths: Int[Tensor, " text"]
    """Tokens of each text that are not special."""
    tasks: list[ProbingTask]
    residual_accuracy: list[float]
    """Test accuracy of each task's logistic regression on all residual dimensions."""

    def means(self, encode: Callable[[Tensor], Tensor], device: torch.device) -> Float[Tensor, "text dim"]:
        """The mean of `encode(residual)` over each text's tokens, on the CPU; zeros for a text without tokens."""
        ends = self.lengths.cumsum(0).tolist()
        means = []
        for texts in portions(self.lengths.tolist(), _ROWS[device.type]):
            lengths = self.lengths[texts]
            rows = self.residual[ends[texts.start] - int(lengths[0]) : ends[texts.stop - 1]].to(device)
            # A product with a small matrix of 1 / length averages several times faster than a sum by index.
            of_text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
            weights = torch.zeros(len(lengths), len(rows))
            weights[of_text, torch.arange(len(rows))] = 1 / lengths[of_text]
            means.append((weights.to(device) @ encode(rows).float()).cpu())
        return torch.cat(means)


@dataclass(frozen=True)
class _Stored:
    """A `ProbingPart` as it is kept: the texts and labels of its tasks' training and test, end to end."""

    residual: Float[Tensor, "token d_in"]
    lengths: Int[Tensor, " text"]
    texts: Int[Tensor, " drawn"]
    labels: Bool[Tensor, " drawn"]
    tasks: list[list[Any]]
    """Dataset, name, how many texts to train on, how many to test on."""
    residual_accuracy: list[float]

    def part(self) -> ProbingPart:
        sizes = [size for *_, train, test in self.tasks for size in (train, test)]
        drawn = zip(self.texts.split(sizes), self.labels.split(sizes), strict=True)
        tasks = [ProbingTask(dataset, name, *next(drawn), *next(drawn)) for dataset, name, *_ in self.tasks]
        return ProbingPart(self.residual, self.lengths, tasks, self.residual_accuracy)


def build_probing_reference(
    lm: LanguageModel,
    config: ProbingConfig,
    corpus: CorpusConfig | None,
    folder: Path | str,
    cache: Path | None = None,
) -> list[ProbingPart]:
    """The parts, in the order of their datasets: computed, or read from `folder` where they have been before.

    For source `documentation`, `corpus` is the packaged corpus, whose held-out documents are probed, and `cache` where
    it is kept between calls.

    Raises ArtifactError: an unknown dataset, text that cannot be read, a class with too few texts (names the task),
    another corpus than the packaged one for source `documentation`.
    """
    names, parts = known_datasets(config), []
    made_from = {"lm": lm.identity, "config": config.reference_fields(), "text": text_key(config, corpus)}
    for some in [names] if config.source == "documentation" else [(name,) for name in names]:
        compute = partial(_compute, lm, config, some, corpus, cache)
        of_part = made_from | {"datasets": some}
        parts.append(kept_reference(folder, PROBING_REFERENCE, of_part, _Stored, compute, mapped=True).part())
    return parts


def build_spurious_reference(
    lm: LanguageModel,
    config: ProbingConfig,
    corpus: CorpusConfig | None,
    folder: Path | str,
    cache: Path | None = None,
) -> ProbingPart:
    """The same for pairs of attributes that a training set confounds (`spurious`); raises as `spurious_tasks`."""

    def compute() -> _Stored:
        return _encoded(lm, *spurious_tasks(lm.tokenizer, config, corpus, cache), config)

    made_from = {"lm": lm.identity, "config": config.reference_fields(), "text": text_key(config, corpus)}
    return kept_reference(folder, SPURIOUS_REFERENCE, made_from, _Stored, compute, mapped=True).part()


def _compute(
    lm: LanguageModel, config: ProbingConfig, names: tuple[str, ...], corpus: CorpusConfig | None, cache: Path | None
) -> _Stored:
    texts, tasks = draw_tasks(load_part(names, config, lm.tokenizer, corpus, cache), config.seed)
    stored = _encoded(lm, texts, tasks, config)
    if not stored.lengths.any():
        raise ArtifactError(f"probing: {names[0]}: its texts hold no tokens; check its text column")
    means = stored.part().means(lambda rows: rows, torch.device("cpu"))
    accuracies = [
        logistic_accuracy(means, task, config.max_iter)
        for task in tqdm(tasks, desc=f"{names[0]}: all residual dimensions", unit="task", disable=None)
    ]
    return replace(stored, residual_accuracy=accuracies)


def _encoded(lm: LanguageModel, texts: list[Tokens], tasks: list[ProbingTask], config: ProbingConfig) -> _Stored:
    lengths = torch.tensor([sum(token not in lm.special_ids for token in text) for text in texts], dtype=torch.long)
    residual = torch.cat([torch.empty(0, lm.d_in, dtype=lm.dtype), *_residual_rows(lm, texts, config.lm_batch)])
    none = torch.empty(0, dtype=torch.long)
    return _Stored(
        residual, lengths,
        torch.cat([none, *(each for task in tasks for each in (task.train, task.test))]),
        torch.cat([none.bool(), *(each for task in tasks for each in (task.train_labels, task.test_labels))]),
        [[task.dataset, task.name, len(task.train), len(task.test)] for task in tasks], [],
    )  # fmt: skip


def _residual_rows(lm: LanguageModel, texts: list[Tokens], batch: int) -> Iterator[Float[Tensor, "token d_in"]]:
    """The residual stream of each batch of texts, BOS in front, at the tokens that are not special."""
    for start in tqdm(range(0, len(texts), batch), desc="texts for probing", unit="batch", disable=None):
        rows = [torch.tensor([lm.bos_token_id, *text]) for text in texts[start : start + batch]]
        # Padding follows the text, so that no token attends to it; as BOS it is special and left out below.
        tokens = pad_sequence(rows, batch_first=True, padding_value=lm.bos_token_id)
        yield lm.finite_stream(tokens)[lm.not_special(tokens).to(lm.device)].cpu()
