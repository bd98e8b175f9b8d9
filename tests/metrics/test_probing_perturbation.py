"""TPP and SCR: latents whose ablation is known, and the metric written out token by token."""

from __future__ import annotations

from itertools import product
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.probing import perturbation as module
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.perturbation import (
    HUB_PAIRS,
    NS,
    PROBES,
    Texts,
    perturbation,
    spurious_tasks,
    train_probe,
)
from sae_lib.metrics.probing.reference import ProbingPart
from sae_lib.metrics.probing.tasks import ProbingTask
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae, probing_inputs, probing_part, sae_of

CONFIG = ProbingConfig(source="files", files={"letters": {"train": "x.jsonl"}})
ROWS, LENGTH = 1600, 3


def identity(d: int) -> Autoencoder:
    """Latent i is dimension i."""
    return sae_of(torch.eye(d), torch.eye(d))


def part_of(on: Tensor, tasks: list[ProbingTask], noise: float = 0.05) -> ProbingPart:
    """Texts of `LENGTH` tokens; dimension i is on at one token of those texts that `on[:, i]` says."""
    residual = torch.rand(len(on), LENGTH, on.shape[1], generator=torch.Generator().manual_seed(0)) * noise
    residual[:, 1] += LENGTH * on.float()
    return probing_part(residual.flatten(0, 1), torch.full((len(on),), LENGTH), tasks)


def task(dataset: str, name: str, positive: Tensor, texts: Tensor | None = None) -> ProbingTask:
    """On `texts` (all by default), every second one tested on."""
    texts = torch.arange(len(positive)) if texts is None else texts
    train, test = texts[::2], texts[1::2]
    return ProbingTask(dataset, name, train, positive[train], test, positive[test])


def of_classes(classes: int = 3) -> tuple[Tensor, list[ProbingTask]]:
    """Class i, which no other excludes, is dimensions 2i and 2i + 1."""
    has = torch.rand(ROWS, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    return has.repeat_interleave(2, dim=1), [task("letters", str(i), has[:, i]) for i in range(classes)]


def of_pair() -> tuple[Tensor, list[ProbingTask]]:
    """The first attribute is dimensions 0 and 1, the second 2 and 3."""
    on, tasks = of_classes(2)
    together = (on[:, 0] == on[:, 2]).nonzero().flatten()
    return on, [*(each._replace(dataset="pair") for each in tasks), task("pair", "both", on[:, 0], together)]


def test_latents_that_are_the_attributes():
    """Without latent i, probe i finds nothing, and the others are as they were; without that of the other attribute, a
    probe that confounds them is left with the one that is asked for."""
    on, classes = of_classes()
    pair_on, pair = of_pair()
    found = perturbation(identity(8), [part_of(on, classes)], part_of(pair_on, pair), CONFIG)
    assert found["n"].tolist() == [2, 5]
    assert found["intended"][0] > 0.4 and abs(found["unintended"][0]) < 0.02 and found["scr"][0] > 0.5
    assert found["tpp"].tolist() == pytest.approx((found["intended"] - found["unintended"]).tolist(), abs=1e-6)


def test_latents_that_are_none_of_them():
    """What is ablated says nothing of the label; the attributes lie in what the SAE does not reconstruct."""
    on, classes = of_classes()
    pair_on, pair = of_pair()
    sae = identity(8)
    with torch.no_grad():
        sae.W_enc[:, :6] = 0
    found = perturbation(sae, [part_of(on, classes)], part_of(pair_on, pair), CONFIG)
    assert (found["tpp"].abs() < 0.05).all() and (found["scr"].abs() < 0.25).all()


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_ablation_is_that_of_every_token(architecture: str):
    """Accuracies are those of probes on x - sum_j f_j d_j at each token; effects are those of the equation."""
    on, classes = of_classes()
    part = part_of(on, classes, noise=2.0)
    options: dict[str, Any] = {"k": 9} if architecture == "topk" else {}
    sae = make_sae(architecture=architecture, d_sae=40, d_in=8, seed=3, **options)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 3, 40)[:, None])
        texts = Texts(sae, part)
        x = part.residual.view(ROWS, LENGTH, 8)
        f = sae.encode(x)
        of = [(each, train_probe(texts.residual, each)) for each in classes]
        for own, probe in of:
            reads = sae.W_dec @ probe.weight[0]
            means = f.mean(dim=1)[own.train]
            gap = means[own.train_labels].mean(dim=0) - means[~own.train_labels].mean(dim=0)
            best = sorted(range(40), key=lambda j: -float(gap[j].clamp(min=0) * reads[j]))[:5]
            ablated = texts.strongest(own, probe, 5, signed=True)
            assert ablated.tolist() == best
            assert set(texts.strongest(own, probe, 3, signed=False).tolist()) == set(
                (gap * reads).abs().topk(3).indices.tolist()
            )
            for other, read in of:
                expected = []
                for n in (0, 2, 5):
                    left = x - f[..., best[:n]] @ sae.W_dec[best[:n]]
                    logits = read.logits(left.mean(dim=1)[other.test])[:, 0]
                    expected.append(float(((logits > 0) == other.test_labels).float().mean()))
                assert texts.accuracies(other, read, ablated, (2, 5)).tolist() == pytest.approx(expected, abs=1e-6)


def test_what_has_no_rows():
    """Datasets of fewer than three tasks, and no pairs: nothing is known. N stops at the SAE's width."""
    on, classes = of_classes()
    found = perturbation(identity(8), [part_of(on, classes[:2])], part_of(on, []), CONFIG)
    assert found[["tpp", "intended", "unintended", "scr"]].isna().all(axis=None)
    wide = perturbation(
        make_sae(architecture="topk", k=4, d_sae=500, d_in=8), [part_of(on, classes)], part_of(on, []), CONFIG
    )
    assert wide["n"].tolist() == [*NS] and wide["tpp"].notna().all() and wide["scr"].isna().all()
    with pytest.raises(ArtifactError, match="d_in is 4, the reference's residual stream has 8"):
        perturbation(identity(4), [part_of(on, classes)], part_of(on, []), CONFIG)


def test_nothing_is_removed_where_nothing_is_confounded():
    """Where the confounded probe is as good as the clean one, SCR is 0."""
    on, _ = of_pair()
    same = [task("pair", name, on[:, 0]) for name in PROBES]
    found = perturbation(identity(8), [], part_of(on, same), CONFIG)
    assert found["scr"].tolist() == [0.0, 0.0]


QUADRANTS = {"first": (0, 0, 1, 1), "second": (0, 1, 0, 1)}


def test_pairs_on_the_packaged_corpus(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    """Two packages each, by whether the text has an interactive example."""
    words = ["banana", "cedar", "dog", "egg"]
    filler = [" ".join(words[(i * 7 + j * j) % 4] + str((i * 31 + j) % 97) for j in range(40)) for i in range(240)]
    rows: list[dict[str, Any]] = [
        {"text": ">>> f(1) " * (i % 2) + text, "package": f"package{i % 3}", "kind": None}
        for i, text in enumerate(filler)
    ]
    monkeypatch.setattr(module, "held_out_documents", lambda inputs: iter(rows))
    config = ProbingConfig(source="documentation", context=33, train_per_task=16, test_per_task=8, min_per_class=2)
    texts, tasks = spurious_tasks(probing_inputs(lm, config))
    assert [each.name for each in tasks] == [*PROBES]
    assert len({each.dataset for each in tasks}) == 1 and tasks[0].dataset.endswith("by interactive example")
    first, second, both = tasks

    def has(task: ProbingTask) -> Tensor:
        return torch.tensor([">>>" in lm.tokenizer.decode(list(texts[i])) for i in task.train.tolist()])

    for each in tasks:
        assert len(each.train) == 16 and len(each.test) == 8 and each.train_labels.sum() == 8
    assert torch.equal(has(second), second.train_labels) and torch.equal(has(both), both.train_labels)
    assert has(first)[first.train_labels].sum() == 4, "the other attribute is half and half"
    rows[:] = [row | {"text": row["text"].replace(" ", " >>> ")} for row in rows]
    with pytest.raises(ArtifactError, match=r"training texts of the smallest quadrant, .*: 0 texts, needed: 2"):
        spurious_tasks(probing_inputs(lm, config))


def test_pairs_of_the_hub(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    """Eight pairs; labels are the columns' values; without a table's surplus."""
    tables = {}
    for repository, ((text, *attributes), pairs, values) in HUB_PAIRS.items():
        tables[repository] = pd.DataFrame(
            {text: f"{one} {two} {i}", attributes[0]: one, attributes[1]: two}
            for i, one, two in product(range(9), [value for pair in pairs for value in pair], values)
        )

    class Split:
        def __init__(self, table: pd.DataFrame) -> None:
            self.table = table

        def select_columns(self, names: list[str]) -> Split:
            return Split(self.table[names])

        def to_pandas(self) -> pd.DataFrame:
            return self.table

    def load(name: str, revision: str | None) -> dict[str, Split]:
        return {"train": Split(tables[name]), "test": Split(tables[name])}

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = ProbingConfig(train_per_task=16, test_per_task=8)
    with pytest.raises(ArtifactError, match=r"training texts of the smallest quadrant, .*: 8 texts, needed: 10"):
        spurious_tasks(probing_inputs(lm, config))
    texts, tasks = spurious_tasks(probing_inputs(lm, config.model_copy(update={"min_per_class": 4})))
    assert len(tasks) == 3 * 8
    assert tasks[0].dataset == "LabHC/bias_in_bios, profession 21 or 13 by gender"
    first = [lm.tokenizer.decode(list(texts[i])) for i in tasks[0].train[tasks[0].train_labels].tolist()]
    assert len(first) == 8 and len({*first}) == 8


def test_files_have_no_second_attribute(lm: LanguageModel):
    assert spurious_tasks(probing_inputs(lm, CONFIG)) == ([], [])
