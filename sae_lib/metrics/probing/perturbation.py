"""What probes of the residual stream lose when the latents that matter to one of them are ablated: targeted probe
perturbation (TPP) and removal of spurious correlations (SCR). Higher is meant to be better.

Of N latents, those of the largest effect on a probe with weights w, where F_j is latent j's mean over a text:

    effect_j = (E[F_j | positive] - E[F_j | negative]) (w . d_j)      TPP: the difference clamped at 0; SCR: |effect_j|

    TPP(N) = mean over classes of (accuracy that its own probe loses - mean of what the other classes' probes lose)
    SCR(N) = (A_ablated - A) / (A_clean - A)

A is the accuracy, on texts labelled by one attribute, of a probe that learned from texts in which the other attribute
goes along with it; A_ablated without the latents of the other attribute's probe; A_clean that of a probe that learned
where it does not. Of the two attributes it is the one with the lower A.

The texts of SCR have two attributes that a training set confounds; each has the first or not and the second or not:
four quadrants. The probe `both` learns from texts that have both or neither, so that either attribute would do; `first`
and `second` learn theirs alone. SAEBench takes professions and gender, and product categories and ratings, from the
hub; on the packaged corpus it is two packages, and whether the text has an interactive example.

Both are to be read with care: on data with known features TPP falls while SAEs are trained, and SCR goes against the
truth for large N (2605.18229). So untrained SAEs stand in the table, and it decides nothing.

Source: 2411.18895; SAEBench 0.6.0, `scr_and_tpp`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby, product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.absorption.main_latents import unit_latents
from sae_lib.metrics.absorption.probes import LinearProbes, initial_probes
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.datasets import AMAZON, BIOS, BY_GENDER, BY_RATING, held_out_documents, hub_tables
from sae_lib.metrics.probing.documentation import MOST_CLASSES, PATTERNS, Pieces
from sae_lib.metrics.probing.reference import ProbingPart, encoded, made_from_texts
from sae_lib.metrics.probing.tasks import ProbingTask, Tokens, require, tokenise
from sae_lib.metrics.registry import Inputs
from sae_lib.metrics.stored_reference import kept_reference, require_width
from sae_lib.util.keys import Stage

SPURIOUS_REFERENCE = Stage("spurious reference", 1)
NS = (2, 5, 10, 20, 50, 100, 500)
SEED, BATCH, EPOCHS, LEARNING_RATE, L1 = 42, 16, 20, 1e-3, 1e-3
LEAST_GAP = 0.001  # A_clean - A below which nothing is there to be removed: SCR is 0
# Whose classes exclude each other; None takes every dataset of more than two tasks.
TPP_DATASETS: dict[str, tuple[str, ...] | None] = {
    "documentation": tuple(MOST_CLASSES), "hub": ("bias_in_bios_class_set1", "amazon_reviews"), "files": None
}  # fmt: skip
PROBES = ("first", "second", "both")
PACKAGE_PAIRS = 3
SECOND = "interactive example"

Row = tuple[Tokens, bool, bool]
"""A text; whether it has the first attribute, and the second."""
Pair = tuple[str, list[list[Row]]]
"""Its name, and the rows for training and for testing."""
Columns = tuple[str, str, str]
Two = tuple[str, str]
# SAEBench's: columns of texts and of both attributes, values of the first by pair, values of the second.
HUB_PAIRS: dict[str, tuple[Columns, tuple[Two, ...], Two]] = {
    BIOS: (BY_GENDER, (("21", "13"), ("1", "11"), ("25", "22"), ("2", "26")), ("0", "1")),
    AMAZON: (BY_RATING, (("24", "26"), ("30", "6"), ("18", "11"), ("3", "1")), ("1.0", "5.0")),
}


@torch.no_grad()
def perturbation(
    sae: Autoencoder, parts: Sequence[ProbingPart], spurious: ProbingPart, config: ProbingConfig
) -> pd.DataFrame:
    """One row for each N of `NS` that the SAE has latents for: n, tpp, intended and unintended (the two losses whose
    difference it is) and scr, each the mean over datasets or pairs; NaN where there is none. `parts` is the reference
    of sparse probing, `spurious` that of the confounded pairs.

    Raises ArtifactError: the SAE has another width than the residual stream, or gives NaN or infinite latents.
    """
    require_width(sae, spurious.residual.shape[1])
    ns = [n for n in NS if n <= sae.d_sae]
    wanted = TPP_DATASETS[config.source]
    losses = [targeted(*each, ns) for part in parts for each in _probed(sae, part, wanted, least=3)]
    scores = [removed(*each, ns) for each in _probed(sae, spurious)]
    none = torch.full((2, len(ns)), torch.nan)
    intended, unintended = torch.stack(losses or [none]).mean(dim=0)
    scr = torch.stack(scores or [none[0]]).mean(dim=0)
    columns = {"tpp": intended - unintended, "intended": intended, "unintended": unintended, "scr": scr}
    return pd.DataFrame({"n": ns} | {name: values.tolist() for name, values in columns.items()})


class Texts:
    """Means over each text's tokens: of the residual stream, and of the latents as with decoder rows of unit norm."""

    def __init__(self, sae: Autoencoder, part: ProbingPart) -> None:
        self.residual = part.means(lambda rows: rows, torch.device("cpu"))  # [text, d_in]
        self.latents = part.means(lambda rows: unit_latents(sae, rows), sae.device)  # [text, d_sae]
        self.directions = torch.nn.functional.normalize(sae.W_dec.float(), dim=1).cpu()  # [d_sae, d_in]

    def strongest(self, task: ProbingTask, probe: LinearProbes, most: int, *, signed: bool) -> Int[Tensor, " latent"]:
        """The latents of the largest effect on the probe, the largest first; only those whose effect is above 0, where
        SAEBench fills up with others."""
        f = self.latents[task.train]
        difference = f[task.train_labels].mean(dim=0) - f[~task.train_labels].mean(dim=0)
        reads = self.directions @ probe.weight[0]
        effect = difference.clamp(min=0) * reads if signed else (difference * reads).abs()
        return effect.topk(min(most, int((effect > 0).sum()))).indices

    def accuracies(
        self, task: ProbingTask, probe: LinearProbes, ablated: Int[Tensor, " latent"], ns: Sequence[int]
    ) -> Float[Tensor, " n_and_none"]:
        """Test accuracy of a probe as it is, and without the first n of `ablated` for each n; what the SAE does not
        reconstruct stays."""
        logits = probe.logits(self.residual[task.test])
        writes = self.latents[task.test][:, ablated] * (self.directions[ablated] @ probe.weight[0])
        lost = torch.cat([torch.zeros_like(logits), writes.cumsum(dim=1)], dim=1)
        without = logits - lost[:, [0, *(min(n, len(ablated)) for n in ns)]]
        return ((without > 0) == task.test_labels[:, None]).float().mean(dim=0)


Probed = tuple[ProbingTask, LinearProbes]


def targeted(texts: Texts, classes: Sequence[Probed], ns: Sequence[int]) -> Float[Tensor, "2 n"]:
    """Of the classes of one dataset: the accuracy that a class's own probe loses for each N, and that the others'
    lose, means over classes."""
    losses = []
    for i, own in enumerate(classes):
        ablated = texts.strongest(*own, max(ns), signed=True)
        accuracies = torch.stack([texts.accuracies(*each, ablated, ns) for each in classes])
        falls = accuracies[:, :1] - accuracies[:, 1:]
        others = torch.arange(len(classes)) != i
        losses.append(torch.stack([falls[i], falls[others].mean(dim=0)]))
    return torch.stack(losses).mean(dim=0)


def removed(texts: Texts, pair: Sequence[Probed], ns: Sequence[int]) -> Float[Tensor, " n"]:
    """SCR for each N of one pair of attributes, the tasks and probes of `PROBES`."""
    first, second, (_, both) = pair
    scores = []
    for (task, clean), other in ((first, second), (second, first)):
        ablated = texts.strongest(*other, max(ns), signed=False)
        biased = texts.accuracies(task, both, ablated, ns)
        gap = texts.accuracies(task, clean, ablated[:0], ())[0] - biased[0]
        scores.append((biased[0], (biased[1:] - biased[0]) / gap if gap >= LEAST_GAP else torch.zeros(len(ns))))
    return min(scores, key=lambda score: float(score[0]))[1]


def train_probe(rows: Float[Tensor, "text d_in"], task: ProbingTask) -> LinearProbes:
    """SAEBench's probe of a task: logistic, AdamW, an L1 term; of its epochs the one with the highest *test* accuracy.

    Source: SAEBench 0.6.0, `train_probe_gpu`.
    """
    probe, generator = initial_probes(rows.shape[1], 1, SEED), torch.Generator().manual_seed(SEED)
    x, y, x_test, y_test = rows[task.train], task.train_labels.float(), rows[task.test], task.test_labels
    optimizer = torch.optim.AdamW(probe, lr=LEARNING_RATE)
    best, highest = probe, -1.0
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            error = (probe.logits(x[index])[:, 0].sigmoid() - y[index]) / len(index)
            probe.weight.grad = (error @ x[index])[None] + L1 * probe.weight.sign()
            probe.bias.grad = error.sum()[None]
            optimizer.step()
        accuracy = ((probe.logits(x_test)[:, 0] > 0) == y_test).float().mean().item()
        if accuracy > highest:
            best, highest = LinearProbes(probe.weight.clone(), probe.bias.clone()), accuracy
    return best


def _probed(
    sae: Autoencoder, part: ProbingPart, wanted: Sequence[str] | None = None, least: int = 1
) -> Iterator[tuple[Texts, list[Probed]]]:
    """The tasks of each dataset with their probes: of those that are wanted (None: all) and have so many tasks."""
    names = groupby(part.drawn, key=lambda task: task.dataset)
    sets = [[*tasks] for name, tasks in names if wanted is None or name in wanted]
    if chosen := [tasks for tasks in sets if len(tasks) >= least]:
        texts = Texts(sae, part)
        for tasks in chosen:
            yield texts, [(task, train_probe(texts.residual, task)) for task in tasks]


def build_spurious_reference(inputs: Inputs) -> ProbingPart:
    """What `build_probing_reference` gives, of the pairs; raises as `spurious_tasks`."""
    return kept_reference(
        inputs.folder, SPURIOUS_REFERENCE, made_from_texts(inputs), ProbingPart,
        lambda: encoded(inputs, *spurious_tasks(inputs)), mapped=True,
    )  # fmt: skip


def spurious_tasks(inputs: Inputs) -> tuple[list[Tokens], list[ProbingTask]]:
    """The distinct texts, and three tasks for each pair, named as `PROBES`; none for source `files`, whose texts have
    one attribute. Source: SAEBench 0.6.0, `get_spurious_corr_data`.

    Raises ArtifactError: a dataset cannot be read, a quadrant has too few texts.
    """
    config = inputs.settings("probing")
    number: dict[Tokens, int] = defaultdict(count().__next__)
    pairs = {"hub": _on_hub, "documentation": _on_documentation}.get(config.source)
    tasks: list[ProbingTask] = []
    for name, splits in pairs(inputs, config) if pairs else ():
        sizes = (("training", config.train_per_task), ("test", config.test_per_task))
        classes = [
            _of_split(rows, size // 4, f"{name}, {what} texts", config.min_per_class)
            for rows, (what, size) in zip(splits, sizes, strict=True)
        ]
        for probe in PROBES:
            drawn: list[Tensor] = []
            for positive, negative in (each[probe] for each in classes):
                texts = torch.tensor([number[text] for text in positive + negative])
                drawn += texts, torch.arange(len(texts)) < len(positive)
            tasks.append(ProbingTask(name, probe, *drawn))
    return list(number), tasks


Classes = tuple[list[Tokens], list[Tokens]]


def _of_split(rows: Iterable[Row], quarter: int, where: str, least: int) -> dict[str, Classes]:
    """Positives and negatives of each probe: half of the one's and half of the other's with each value of the second
    attribute, for `first`; the same turned round for `second`."""
    quadrants: dict[Any, list[Tokens]] = {each: [] for each in product((True, False), repeat=2)}
    for tokens, first, second in rows:
        quadrants[first, second].append(tokens)
    both, only_first, only_second, neither = quadrants.values()
    quarter = min(quarter, len(only_first), len(only_second), len(both) // 2, len(neither) // 2)
    require(2 * quarter, least, f"{where} of the smallest quadrant, with as many again of both and neither")
    return {
        "first": (both[:quarter] + only_first[:quarter], only_second[:quarter] + neither[:quarter]),
        "second": (both[:quarter] + only_second[:quarter], only_first[:quarter] + neither[:quarter]),
        "both": (both[: 2 * quarter], neither[: 2 * quarter]),
    }


def _on_hub(inputs: Inputs, config: ProbingConfig) -> Iterator[Pair]:
    """The first texts of each quadrant, as many as any task can use."""
    for repository, (columns, pairs, values) in HUB_PAIRS.items():
        (text, *both), tables = columns, hub_tables(repository, columns, config)
        for pair in pairs:
            splits = []
            for table in tables:
                first, second = (table[column].astype(str) for column in both)
                here = table[first.isin(pair) & second.isin(values)]
                few = here.groupby(both, sort=False).head(config.train_per_task // 2)
                tokens = tokenise(few[text].tolist(), inputs.lm.tokenizer, config.context)
                has = (first[few.index] == pair[0]).tolist(), (second[few.index] == values[0]).tolist()
                splits.append([*zip(tokens, *has, strict=True)])
            yield f"{repository}, {both[0]} {pair[0]} or {pair[1]} by {both[1]}", splits


def _on_documentation(inputs: Inputs, config: ProbingConfig) -> Iterator[Pair]:
    pieces = Pieces(held_out_documents(inputs), inputs.lm.tokenizer, config)
    found = re.compile(PATTERNS["layout"][SECOND]).search
    packages = pieces.largest("package", 2 * PACKAGE_PAIRS)
    for pair in zip(packages[::2], packages[1::2], strict=False):
        splits = [
            [(each.tokens, each.package == pair[0], bool(found(each.text))) for each in split if each.package in pair]
            for split in pieces.splits
        ]
        yield f"{pair[0]} or {pair[1]} by {SECOND}", splits
