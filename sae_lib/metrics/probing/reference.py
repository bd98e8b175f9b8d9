"""What sparse probing needs from the language model: computed once for a model, layer and configuration, kept on disk.

The residual stream is kept at every token that is not special, in the language model's own dtype, for each
distinct text once. At pocket scale that is 40 MB; SAEBench's 35 tasks at Gemma-2-2b's width are 11.5 M tokens and
53 GB in bfloat16, so the files are written a batch at a time, mapped into memory, and read a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.probes import logistic_accuracy
from sae_lib.metrics.probing.sources import known_datasets, load_parts, text_key
from sae_lib.metrics.probing.tasks import LabelledTexts, ProbingTask, Tokens, draw_tasks
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import atomic_folder, file_state, is_unaltered, read_json, write_json
from sae_lib.util.keys import Stage, result_key

if TYPE_CHECKING:
    from sae_lib.data.config import CorpusConfig

# Tokens encoded at a time: what a core's cache holds at pocket scale, and enough to keep a GPU busy.
_ROWS = {"cpu": 1024, "cuda": 16384}

PROBING_REFERENCE = Stage("probing reference", 1)


@dataclass(frozen=True)
class ProbingPart:
    """Texts that are encoded together, and the tasks on them: all of the packaged corpus, or one other dataset."""

    residual: Float[Tensor, "token d_in"]
    """The residual stream at the tokens of text 0, then of text 1, ...; on the CPU, mapped from disk."""
    lengths: Int[Tensor, " text"]
    """Tokens of each text that are not special."""
    tasks: list[ProbingTask]
    residual_accuracy: list[float]
    """Test accuracy of each task's logistic regression on all residual dimensions."""

    def means(self, encode: Callable[[Tensor], Tensor], device: torch.device) -> Float[Tensor, "text dim"]:
        """The mean of `encode(residual)` over the tokens of each text, float32, on the CPU; zeros for a text without
        tokens."""
        ends = self.lengths.cumsum(0).tolist()
        means = []
        for first, last in _chunks(self.lengths.tolist(), _ROWS[device.type]):
            lengths = self.lengths[first:last]
            rows = self.residual[ends[first] - int(lengths[0]) : ends[last - 1]].to(device)
            # A product with a small matrix of 1 / length averages several times faster than a sum by index.
            of_text = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
            weights = torch.zeros(len(lengths), len(rows))
            weights[of_text, torch.arange(len(rows))] = 1 / lengths[of_text]
            means.append((weights.to(device) @ encode(rows).float()).cpu())
        return torch.cat(means)


@dataclass(frozen=True)
class ProbingReference:
    """Everything that is the same for every SAE: the parts, in the order of their datasets."""

    d_in: int
    parts: list[ProbingPart]


def build_probing_reference(
    lm: LanguageModel,
    config: ProbingConfig,
    corpus: CorpusConfig | None,
    folder: Path | str,
    cache: Path | None = None,
) -> ProbingReference:
    """Compute the reference of a language model, or read it from `folder` where it has been computed before.

    Args:
        corpus: for source `documentation`: the packaged corpus, whose held-out documents are probed.
        cache: for source `documentation`: where the packaged corpus is kept between calls.

    Raises ArtifactError: an unknown dataset, text that cannot be read, a class with too few texts (names the task),
    another corpus than the packaged one for source `documentation`.
    """
    known_datasets(config)
    made_from = {
        "lm": lm.identity,
        "config": config.reference_fields(),
        "text": text_key(config, corpus),
    }
    target = Path(folder) / f"probing-{result_key(PROBING_REFERENCE, made_from)[:16]}"
    stored = _load(target)
    if stored is not None:
        return stored
    with atomic_folder(target) as building:
        parts = [
            _write_part(lm, config, building, number, datasets)
            for number, datasets in enumerate(load_parts(config, lm.tokenizer, corpus, cache))
        ]
        write_json(building / "reference.json", {"made_from": made_from, "d_in": lm.d_in, "parts": parts})
    built = _load(target)
    assert built is not None
    return built


def _write_part(
    lm: LanguageModel, config: ProbingConfig, folder: Path, number: int, datasets: list[LabelledTexts]
) -> dict[str, Any]:
    """Write `part-<number>.residual` and `part-<number>.safetensors`; returns the part's record."""
    texts, tasks = draw_tasks(datasets, config.seed)
    lengths = torch.tensor([sum(token not in lm.special_ids for token in text) for text in texts])
    if not lengths.any():
        raise ArtifactError(f"probing: {datasets[0].dataset}: its texts hold no tokens; check its text column")
    file = folder / f"part-{number}.residual"
    with open(file, "wb") as stream:
        for rows in _residual_rows(lm, texts, config.lm_batch):
            stream.write(rows.contiguous().view(torch.uint8).numpy().data)
    part = ProbingPart(_mapped(file, int(lengths.sum()), lm.d_in, lm.dtype), lengths, tasks, [])
    means = part.means(lambda rows: rows, torch.device("cpu"))
    accuracies = [
        logistic_accuracy(
            means[task.train].numpy(),
            task.train_labels.numpy(),
            means[task.test].numpy(),
            task.test_labels.numpy(),
            config.max_iter,
        )
        for task in tqdm(tasks, desc=f"{datasets[0].dataset}: all residual dimensions", unit="task", disable=None)
    ]
    tensors = {"lengths": lengths}
    for i, task in enumerate(tasks):
        tensors |= {f"{i}.{field}": getattr(task, field) for field in _TASK_TENSORS}
    safetensors.torch.save_file(tensors, folder / f"part-{number}.safetensors")
    return {
        "dtype": str(lm.dtype).removeprefix("torch."),
        "tokens": int(lengths.sum()),
        "tasks": [[task.dataset, task.name] for task in tasks],
        "residual_accuracy": accuracies,
        "files": {path.name: file_state(path) for path in sorted(folder.glob(f"part-{number}.*"))},
    }


_TASK_TENSORS = ("train", "train_labels", "test", "test_labels")


def _residual_rows(lm: LanguageModel, texts: list[Tokens], batch: int) -> Iterator[Float[Tensor, "token d_in"]]:
    """The residual stream of each batch of texts, BOS in front, at the tokens that are not special."""
    for start in tqdm(range(0, len(texts), batch), desc="texts for probing", unit="batch", disable=None):
        some = texts[start : start + batch]
        longest = max(len(text) for text in some)
        # Padding follows the text, so that no token attends to it; as BOS it is special and left out below.
        tokens = torch.tensor(
            [[lm.bos_token_id, *text, *[lm.bos_token_id] * (longest - len(text))] for text in some], dtype=torch.long
        )
        kept = lm.not_special(tokens)
        yield lm.finite_stream(tokens)[kept.to(lm.device)].cpu()


def _mapped(file: Path, rows: int, width: int, dtype: torch.dtype) -> Float[Tensor, "row width"]:
    """A tensor that lies in a file."""
    return torch.from_file(str(file), shared=False, size=rows * width, dtype=dtype).view(rows, width)


def _load(folder: Path) -> ProbingReference | None:
    """The stored reference, or None where there is none that is whole."""
    try:
        record = read_json(folder / "reference.json")
        files = [item for part in record["parts"] for item in part["files"].items()]
        if not all(is_unaltered(folder / name, state) for name, state in files):
            return None
    except (FileNotFoundError, ArtifactError):
        return None
    parts = []
    for number, part in enumerate(record["parts"]):
        tensors = safetensors.torch.load_file(folder / f"part-{number}.safetensors")
        tasks = [
            ProbingTask(dataset, name, *(tensors[f"{i}.{field}"] for field in _TASK_TENSORS))
            for i, (dataset, name) in enumerate(part["tasks"])
        ]
        dtype: torch.dtype = getattr(torch, part["dtype"])
        residual = _mapped(folder / f"part-{number}.residual", part["tokens"], record["d_in"], dtype)
        parts.append(ProbingPart(residual, tensors["lengths"], tasks, part["residual_accuracy"]))
    return ProbingReference(record["d_in"], parts)


def _chunks(lengths: Iterable[int], most: int) -> Iterator[tuple[int, int]]:
    """Stretches of texts of at most `most` tokens together, and of at least one text."""
    first = total = 0
    index = -1
    for index, length in enumerate(lengths):
        if index > first and total + length > most:
            yield first, index
            first, total = index, 0
        total += length
    if index >= 0:
        yield first, index + 1
