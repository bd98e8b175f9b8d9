"""What sparse probing needs from the language model: computed once for a model, layer and configuration, kept on disk.

The residual stream is kept at every token that is not special, in the language model's own dtype, for each distinct
text once. SAEBench's 35 tasks at Gemma-2-2b's width are 53 GB in bfloat16, so each of the eight datasets has a file,
which is mapped into memory and read a chunk at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.probing.datasets import known_datasets, load_part, text_key
from sae_lib.metrics.probing.tasks import ProbingTask, Tokens, draw_tasks, logistic_accuracy
from sae_lib.metrics.registry import Inputs
from sae_lib.metrics.stored_reference import kept_reference
from sae_lib.util.errors import ArtifactError
from sae_lib.util.keys import Stage
from sae_lib.util.memory import portions

# Tokens encoded at a time: what a core's cache holds at pocket scale, and enough to keep a GPU busy.
_ROWS = {"cpu": 1024, "cuda": 16384}

PROBING_REFERENCE = Stage("probing reference", 1)


@dataclass(frozen=True)
class ProbingPart:
    """Texts that are encoded together, all of the packaged corpus or one other dataset, and the tasks on them."""

    residual: Float[Tensor, "token d_in"]
    """At the tokens of text 0, then of text 1, ...; on the CPU, mapped from disk."""
    lengths: Int[Tensor, " text"]
    """Tokens of each text that are not special."""
    texts: Int[Tensor, " drawn"]
    """Those that a task is trained and tested on, one task after the other."""
    labels: Bool[Tensor, " drawn"]
    tasks: list[list[Any]]
    """Dataset, name, how many texts to train on, how many to test on."""
    residual_accuracy: list[float]
    """Test accuracy of each task's logistic regression on all residual dimensions."""

    @cached_property
    def drawn(self) -> list[ProbingTask]:
        """The tasks with their texts."""
        sizes = [size for *_, train, test in self.tasks for size in (train, test)]
        parts = zip(self.texts.split(sizes), self.labels.split(sizes), strict=True)
        return [ProbingTask(dataset, name, *next(parts), *next(parts)) for dataset, name, *_ in self.tasks]

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


def build_probing_reference(inputs: Inputs) -> list[ProbingPart]:
    """The parts, in the order of their datasets: computed, or read from disk where they have been before.

    Raises ArtifactError: an unknown dataset, text that cannot be read, a class with too few texts (names the task),
    another corpus than the packaged one for source `documentation`.
    """
    config = inputs.settings("probing")
    names, made_from = known_datasets(config), made_from_texts(inputs)
    parts = [names] if config.source == "documentation" else [(name,) for name in names]
    return [
        kept_reference(
            inputs.folder, PROBING_REFERENCE, made_from | {"datasets": some}, ProbingPart,
            partial(_compute, inputs, some), mapped=True,
        )
        for some in parts
    ]  # fmt: skip


def made_from_texts(inputs: Inputs) -> dict[str, Any]:
    """What every reference of sparse probing is made from."""
    config = inputs.settings("probing")
    read = config.model_dump(exclude={"lm_batch", "ks"})  # these two only the scoring of an SAE reads
    return {"lm": inputs.lm.identity, "config": read, "text": text_key(config, inputs.corpus)}


def _compute(inputs: Inputs, names: tuple[str, ...]) -> ProbingPart:
    config = inputs.settings("probing")
    texts, tasks = draw_tasks(load_part(names, inputs), config.seed)
    part = encoded(inputs, texts, tasks)
    if not part.lengths.any():
        raise ArtifactError(f"probing: {names[0]}: its texts hold no tokens; check its text column")
    means = part.means(lambda rows: rows, torch.device("cpu"))
    accuracies = [
        logistic_accuracy(means, task, config.max_iter)
        for task in tqdm(tasks, desc=f"{names[0]}: all residual dimensions", unit="task", disable=None)
    ]
    return replace(part, residual_accuracy=accuracies)


def encoded(inputs: Inputs, texts: list[Tokens], tasks: list[ProbingTask]) -> ProbingPart:
    """The tasks with the residual streams of their texts."""
    lm, none = inputs.lm, torch.empty(0, dtype=torch.long)
    rows = _residual_rows(lm, texts, inputs.settings("probing").lm_batch)
    return ProbingPart(
        torch.cat([torch.empty(0, lm.d_in, dtype=lm.dtype), *rows]),
        torch.tensor([sum(token not in lm.special_ids for token in text) for text in texts], dtype=torch.long),
        torch.cat([none, *(each for task in tasks for each in (task.train, task.test))]),
        torch.cat([none.bool(), *(each for task in tasks for each in (task.train_labels, task.test_labels))]),
        [[task.dataset, task.name, len(task.train), len(task.test)] for task in tasks],
        [],
    )


def _residual_rows(lm: LanguageModel, texts: list[Tokens], batch: int) -> Iterator[Float[Tensor, "token d_in"]]:
    """The residual stream of each batch of texts, BOS in front, at the tokens that are not special."""
    for start in tqdm(range(0, len(texts), batch), desc="texts for probing", unit="batch", disable=None):
        rows = [torch.tensor([lm.bos_token_id, *text]) for text in texts[start : start + batch]]
        # Padding follows the text, so that no token attends to it; as BOS it is special and left out below.
        tokens = pad_sequence(rows, batch_first=True, padding_value=lm.bos_token_id)
        yield lm.finite_stream(tokens)[lm.not_special(tokens).to(lm.device)].cpu()
