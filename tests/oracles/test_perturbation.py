"""TPP and SCR against SAEBench: probes, the latents that are ablated, every accuracy, and what becomes of them."""

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import torch
from sae_bench.evals.scr_and_tpp import main
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.sae_bench_utils import dataset_info
from torch import Tensor

from benchmarks.saebench import PeerSAE
from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.topk import TopKConfig
from sae_lib.metrics.absorption.probes import LinearProbes
from sae_lib.metrics.probing import perturbation as ours
from sae_lib.metrics.probing.config import ProbingConfig
from sae_lib.metrics.probing.reference import ProbingPart
from sae_lib.metrics.probing.tasks import ProbingTask
from tests.metrics.tiny_saes import probing_part

D, LENGTH, TRAIN, TEST = 24, 6, 60, 40
POSITIVE = [*dataset_info.PAIRED_CLASS_KEYS]


@pytest.fixture
def sae() -> Autoencoder:
    sae = build_autoencoder(TopKConfig(d_sae=64, k=12), D, seed=3)
    sae.requires_grad_(False)
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    return sae


def texts(attributes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Residual streams of texts, and which attributes each has: a direction of its own for each."""
    generator = torch.Generator().manual_seed(seed)
    has = torch.rand(4 * (TRAIN + TEST), attributes, generator=generator) < 0.5
    directions = torch.randn(attributes, D, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(len(has), LENGTH, D, generator=generator)
    return noise + 0.4 * (has.float() @ directions)[:, None], has


def tasks_of(positives: dict[str, Tensor], negatives: dict[str, Tensor], dataset: str) -> list[ProbingTask]:
    tasks = []
    for name, of in positives.items():
        parts = []
        for rows in (slice(0, TRAIN), slice(TRAIN, TRAIN + TEST)):
            drawn = torch.cat([of[rows], negatives[name][rows]])
            parts += [drawn, torch.arange(len(drawn)) < len(drawn) // 2]
        tasks.append(ProbingTask(dataset, name, *parts))
    return tasks


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their probes start from our weights and see rows in our order; their label of a positive is 0."""
    monkeypatch.setattr(dataset_info, "POSITIVE_CLASS_LABEL", 1)
    monkeypatch.setattr(dataset_info, "NEGATIVE_CLASS_LABEL", 0)

    class Probe(probe_training.Probe):
        def __init__(self, activation_dim: int, dtype: torch.dtype) -> None:
            super().__init__(activation_dim, dtype)
            initial = ours.initial_probes(activation_dim, 1, ours.SEED)
            with torch.no_grad():
                self.net.weight.copy_(initial.weight)
                self.net.bias.copy_(initial.bias)
            torch.manual_seed(ours.SEED)

    monkeypatch.setattr(probe_training, "Probe", Probe)


def trained(rows: Tensor, task: ProbingTask) -> probe_training.Probe:
    def of(index: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return rows[index], labels.int()

    with torch.enable_grad():
        probe, _ = probe_training.train_probe_gpu.__wrapped__(
            *of(task.train, task.train_labels), *of(task.test, task.test_labels), dim=D, batch_size=ours.BATCH,
            epochs=ours.EPOCHS, lr=ours.LEARNING_RATE, l1_penalty=ours.L1, early_stopping_patience=ours.EPOCHS,
        )  # fmt: skip
    return probe


def accuracies(
    sae: Autoencoder,
    x: Tensor,
    tasks: list[ProbingTask],
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    scr: bool,
) -> tuple[dict[str, dict[int, dict[str, float]]], dict[str, float]]:
    """Theirs with and without ablation, on our draws; `names` is what they call the tasks."""
    named = dict(zip(names, tasks, strict=True))
    means = x.mean(dim=1)
    probes = {name: trained(means, task) for name, task in named.items()}
    for name, task in named.items():
        weight, bias = (parameter.detach() for parameter in probes[name].net.parameters())
        mine = ours.train_probe(means, task)
        torch.testing.assert_close(mine.weight, weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.bias, bias, rtol=1e-4, atol=1e-5)
    # A text whose logit is 0 but for rounding may not fall to one side here and to the other there.
    exact = {task.name: LinearProbes(*probes[name].net.parameters()) for name, task in zip(probes, tasks, strict=True)}
    monkeypatch.setattr(ours, "train_probe", lambda rows, task: exact[task.name])

    def draws(activations: dict[str, Tensor], name: str, perform_scr: bool = False) -> tuple[Tensor, Tensor]:
        rows, task = activations[name], named[name]
        index, labels = (task.train, task.train_labels) if rows is x else (task.test, task.test_labels)
        return rows[index], labels.int()

    monkeypatch.setattr(probe_training, "prepare_probe_data", draws)
    peer = PeerSAE(sae, "pocket", 0)
    chosen = [*named]
    effects = main.get_all_node_effects_for_one_sae(peer, probes, chosen, scr, dict.fromkeys(chosen, x), 50)
    ns = [n for n in ours.NS if n <= sae.d_sae]
    tested = {name: x.clone() for name in chosen}
    ablated = main.perform_feature_ablations(probes, peer, 50, tested, effects, ns, chosen, 500, scr)
    clean = main.get_probe_test_accuracy(probes, chosen, dict.fromkeys(chosen, means), 500, scr)
    return ablated, clean


def part(x: Tensor, tasks: list[ProbingTask]) -> ProbingPart:
    return probing_part(x.flatten(0, 1), torch.full((len(x),), LENGTH), tasks)


CONFIG = ProbingConfig(source="files", files={"a": {"train": "a.jsonl"}})


def test_tpp(sae: Autoencoder, shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, has = texts(3, seed=0)
    positives = {str(i): has[:, i].nonzero().flatten() for i in range(3)}
    tasks = tasks_of(positives, {str(i): (~has[:, i]).nonzero().flatten() for i in range(3)}, "classes")
    theirs, _ = main.create_tpp_plotting_dict(*accuracies(sae, x, tasks, [*positives], monkeypatch, scr=False))
    mine = ours.perturbation(sae, [part(x, tasks)], part(x, []), CONFIG).set_index("n")
    for n in (2, 5, 10):  # more latents have no effect above 0 here, and theirs takes any
        assert mine["tpp"][n] == pytest.approx(theirs[f"tpp_threshold_{n}_total_metric"], abs=1e-6)
        assert mine["intended"][n] == pytest.approx(theirs[f"tpp_threshold_{n}_intended_diff_only"], abs=1e-6)
    assert mine["tpp"].max() > 0.05, "there was something to lose"


def test_scr(sae: Autoencoder, shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, has = texts(2, seed=1)
    first, second = has.T

    def balanced(one: Tensor, other: Tensor) -> Tensor:
        halves = [(one & other).nonzero().flatten(), (one & ~other).nonzero().flatten()]
        return torch.stack([half[: (TRAIN + TEST) // 2 + 20] for half in halves], dim=1).flatten()

    masks = {"first": (first, second), "second": (second, first)}
    positives = {name: balanced(*each) for name, each in masks.items()} | {"both": (first & second).nonzero().flatten()}
    negatives = {name: balanced(~one, other) for name, (one, other) in masks.items()}
    negatives["both"] = (~first & ~second).nonzero().flatten()
    tasks = tasks_of(positives, negatives, "pair")
    theirs = main.get_scr_plotting_dict(*accuracies(sae, x, tasks, POSITIVE, monkeypatch, scr=True))
    mine = ours.perturbation(sae, [], part(x, tasks), CONFIG).set_index("n")
    for n in mine.index:
        assert mine["scr"][n] == pytest.approx(theirs[f"scr_metric_threshold_{n}"], abs=1e-5)
    assert mine["scr"].abs().max() > 0.05, "there was something to remove"
