import contextlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sae_lib.autoencoders.build import load_autoencoder
from sae_lib.autoencoders.config import OptimizerConfig
from sae_lib.data.activations import ActivationStore, WindowStream
from sae_lib.mechanisms import methods
from sae_lib.metrics.reconstruction import reconstruction_statistics
from sae_lib.training.run import CHECKPOINT_FILE, is_finished, run_key, train_sae
from sae_lib.training.trainer import Trainer, learning_rate, products_in
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json
from tests.tiny_training import DATA, tiny_config, tiny_store, tiny_training

# What the recipes do not reach in a few steps: every mechanism at work before a run of 40 steps is interrupted.
AT_WORK: dict[str, dict[str, Any]] = {
    "temporal_sae": {
        "resampling": {"threshold": 0.2, "momentum": 0.99},
        "gradient_scaling": {"placement": "post_adam"},
    },
    "atm": {"masking": {"granularity": "activation"}},
    "previous_batch": {"temporal": {"pairing": "previous_batch", "scale": "relative"}},
}
METHODS = (*methods("main", "field", "as written"), "soft_frozen")
RUNS = [(method, AT_WORK.get(method, {})) for method in METHODS] + [("temporal_sae", AT_WORK["previous_batch"])]
NAMES = [*METHODS, "previous_batch"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    store = tiny_store(tmp_path_factory.mktemp("store"))
    assert store.preload("cpu")
    return store


class Stopped(Exception):
    """What a test ends a run with."""


def train(store, folder: Path, method: str = "standard", changes: dict[str, Any] | None = None, **options: Any):
    """Train in `folder`; `stop` is the step after which the run is broken off."""
    stop, seed = options.pop("stop", None), options.pop("seed", 0)

    def watch(trainer: Trainer) -> None:
        if trainer.index == stop:
            raise Stopped

    config = tiny_config(method, changes)
    return train_sae(config, store, DATA, tiny_training(**options), seed, folder, watch=watch)


def sparser(method: str) -> dict[str, float]:
    """An L1 penalty, where the method has one."""
    return {"l1_coefficient": 0.02} if tiny_config(method).knob == "l1_coefficient" else {}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(store, tmp_path, method):
    run = train(store, tmp_path, method, sparser(method), steps=80)
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["step"].tolist() == [*range(0, 80, 5), 79]
    assert history["reconstruction"].iloc[-3:].mean() < 0.7 * history["reconstruction"].iloc[0]
    assert history["loss"].iloc[-3:].mean() < history["loss"].iloc[:2].mean()
    assert history["explained_variance"].iloc[-3:].mean() > history["explained_variance"].iloc[0] + 0.2
    assert (run["steps"], run["tokens"], run["seed"]) == (80, 80 * 64, 0)
    assert run["store_key"] == store.key and run["layer"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.parquet", "run.json", "sae.safetensors"]
    sae = load_autoencoder(tmp_path)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(16))
    # What was saved takes raw activations.
    metrics, _ = reconstruction_statistics(sae, store.rows(np.arange(store.n_rows)))
    assert metrics["explained_variance"] > history["explained_variance"].iloc[0] + 0.2


@pytest.mark.parametrize(("method", "changes"), RUNS, ids=NAMES)
def test_an_interrupted_run_ends_with_the_same_weights(store, tmp_path, method, changes):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(store, whole, method, changes)
    with pytest.raises(Stopped):
        train(store, broken, method, changes, stop=26)
    assert (broken / CHECKPOINT_FILE).is_file() and not (broken / "sae.safetensors").exists()
    seen: list[int] = []
    train_sae(
        tiny_config(method, changes), store, DATA, tiny_training(), 0, broken, watch=lambda t: seen.append(t.index)
    )
    assert seen == list(range(21, 41)), "it goes on from the checkpoint of step 20"
    assert same(weights(whole), weights(broken))
    assert not (broken / CHECKPOINT_FILE).exists()
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "history.parquet") for f in (whole, broken)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_in_bfloat16(store, tmp_path, method):
    train(store, tmp_path, method, sparser(method), autocast="bfloat16")
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history["reconstruction"].iloc[-1] < 0.9 * history["reconstruction"].iloc[0]
    assert {t.dtype for t in weights(tmp_path).values() if t.is_floating_point()} == {torch.float32}


def products_precision() -> str:
    return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_same_from_products_in_bfloat16(store, tmp_path, method):
    for products in ("float32", "bfloat16"):
        train(store, tmp_path / products, method, sparser(method), products=products)
    files = (tmp_path / products / "history.parquet" for products in ("float32", "bfloat16"))
    exact, rounded = (pd.read_parquet(file)["reconstruction"] for file in files)
    assert rounded.iloc[-1] == pytest.approx(exact.iloc[-1], rel=0.1)
    assert products_precision() == "none", "other products are as they were"


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_products_round_their_factors_only_where_that_is_asked(error):
    x, W = torch.randn(256, 512), torch.randn(512, 512)
    exact = x @ W
    with contextlib.suppress(RuntimeError), products_in("bfloat16"):
        rounded = x @ W
        if error:
            raise error
    assert torch.equal(x @ W, exact)
    with products_in("float32"):
        assert torch.equal(x @ W, exact)
    wanted = x.bfloat16().float() @ W.bfloat16().float()
    if torch.cpu._is_amx_tile_supported():
        torch.testing.assert_close(rounded, wanted, rtol=1e-4, atol=1e-3)
    else:
        torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-3)


def test_the_products_are_part_of_the_key_unless_they_are_as_ever(store):
    def key(**options):
        return run_key(tiny_config("topk"), store.key, DATA, tiny_training(**options), 0)

    assert key(products="float32") == key() != key(products="bfloat16")


def test_the_mechanisms_were_at_work(store, tmp_path):
    for method, column in (("temporal_sae", "resampled"), ("atm", "mask_rate"), ("dropout", "mask_rate")):
        train(store, tmp_path / method, method, AT_WORK.get(method, {}))
        assert (pd.read_parquet(tmp_path / method / "history.parquet")[column] > 0).any()


def test_a_checkpoint_of_another_run_is_not_used(store, tmp_path):
    with pytest.raises(Stopped):
        train(store, tmp_path, stop=26)
    seen: list[int] = []
    train_sae(tiny_config("standard"), store, DATA, tiny_training(), 1, tmp_path, watch=lambda t: seen.append(t.index))
    assert seen[0] == 1


@pytest.mark.parametrize("method", ["standard", "temporal_sae", "atm", "jumprelu"])
def test_seeds(store, tmp_path, method):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        train(store, tmp_path / name, method, AT_WORK.get(method, {}), seed=seed, steps=15)
        torch.manual_seed(seed + 77)  # the global generator has no part in it
    assert same(weights(tmp_path / "one"), weights(tmp_path / "again"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


def test_a_finished_run_is_returned_at_once(store, tmp_path):
    first = train(store, tmp_path, steps=10)
    file = (tmp_path / "sae.safetensors").stat()
    assert train(store, tmp_path, steps=10, stop=1) == first == read_json(tmp_path / "run.json")
    assert (tmp_path / "sae.safetensors").stat().st_mtime_ns == file.st_mtime_ns
    with pytest.raises(Stopped):
        train(store, tmp_path, steps=11, stop=1)
    (tmp_path / "sae.safetensors").unlink()
    assert not is_finished(tmp_path, first["key"])


def test_run_key_holds_what_the_weights_depend_on():
    config, training = tiny_config("standard"), tiny_training()
    key = run_key(config, "store", DATA, training, 0)
    others = [
        run_key(tiny_config("standard", {"l1_coefficient": 0.1}), "store", DATA, training, 0),
        run_key(config, "another", DATA, training, 0),
        run_key(config, "store", DATA.model_copy(update={"window": 8}), training, 0),
        run_key(config, "store", DATA.model_copy(update={"stream_seed": 1}), training, 0),
        run_key(config, "store", DATA, tiny_training(steps=41), 0),
        run_key(config, "store", DATA, training, 1),
    ]
    assert len({key, *others}) == 7
    assert key == run_key(config, "store", DATA, tiny_training(seeds=(0, 1), workers=2, checkpoint_every=3), 0)


def test_nan_activations_name_step_and_row(tmp_path):
    store = tiny_store(tmp_path / "store")
    row = 777
    bits = np.load(store.folder / "activations-00001.npy", mmap_mode="r+")
    bits[row - DATA.shard_rows, 3] = 0x7FC0  # NaN in bf16
    bits.flush()
    store = ActivationStore.open(tmp_path / "store")
    assert store.rows(np.array([row])).isnan().sum() == 1
    stream = WindowStream(store, DATA.window, DATA.batch_tokens, DATA.stream_seed)
    step = next(i for i in range(100) if row // DATA.window in stream.windows(i))
    assert step > 3
    changes = {"normalize_inputs": False}
    with pytest.raises(
        ArtifactError, match=rf"the loss is NaN or infinite at step {step}; the last checkpoint is kept"
    ) as caught:
        train(store, tmp_path / "run", "standard", changes, checkpoint_every=2)
    assert "\n" not in str(caught.value) and "learning_rate" in str(caught.value)
    assert (tmp_path / "run" / CHECKPOINT_FILE).is_file()


def test_inputs_that_cannot_be_scaled_are_named(tmp_path):
    """A NaN anywhere makes E||x||^2 a NaN, before the first step."""
    store = tiny_store(tmp_path / "store")
    bits = np.load(store.folder / "activations-00001.npy", mmap_mode="r+")
    bits[5, 0] = 0x7FC0
    bits.flush()
    with pytest.raises(ArtifactError, match="mean squared norm is zero, NaN or infinite"):
        train(ActivationStore.open(tmp_path / "store"), tmp_path / "run", "standard")


@pytest.mark.parametrize("method", ["standard", "topk", "jumprelu", "paper_standard"])
def test_training_and_evaluation_agree(store, method):
    """The reconstruction term of the loss is evaluation's mean squared error x d_in, on the same rows."""
    training = tiny_training(log_every=1)
    trainer = Trainer(tiny_config(method), store, DATA, training, 0, "cpu")
    for _ in range(30):
        trainer.step()
    sae = deepcopy(trainer.sae).eval()
    sae.fold_input_scale(trainer.input_scale)
    numbers = WindowStream(store, DATA.window, DATA.batch_tokens, DATA.stream_seed).windows(30)[:, None] * 4
    metrics, _ = reconstruction_statistics(sae, store.rows((numbers + np.arange(4)).ravel()))
    trainer.step()
    logged = trainer.history[-1]
    assert logged["step"] == 30
    assert logged["reconstruction"] == pytest.approx(metrics["mse"] * 8 * trainer.input_scale**2, rel=1e-4)
    assert logged["explained_variance"] == pytest.approx(metrics["explained_variance"], abs=1e-4)
    assert logged["l0"] == pytest.approx(metrics["l0"])
    assert (trainer.input_scale == 1.0) == (method == "paper_standard")


def test_inputs_are_scaled_to_unit_mean_square(store):
    trainer = Trainer(tiny_config("standard"), store, DATA, tiny_training(), 0, "cpu")
    everything = store.rows(np.arange(store.n_rows)) * trainer.input_scale
    assert float(everything.square().sum(dim=1).mean()) == pytest.approx(1.0, rel=1e-3)


def test_an_unconstrained_decoder(store, tmp_path):
    train(store, tmp_path, "standard", {"unit_norm_decoder": False}, steps=20)
    assert (weights(tmp_path)["W_dec"].norm(dim=1) - 1).abs().max() > 1e-3


def test_gradients_are_clipped(store):
    config = tiny_config("paper_standard", {"optimizer": {"clip_norm": 0.1}})
    trainer = Trainer(config, store, DATA, tiny_training(), 0, "cpu")
    trainer.step()
    norms = torch.stack([p.grad.norm() for p in trainer.sae.parameters() if p.grad is not None])
    assert float(norms.norm()) == pytest.approx(0.1, rel=1e-3)


def test_updates_are_those_of_adam(store):
    """Of the plain implementation on tensors that are contiguous."""
    config = tiny_config("standard", {"unit_norm_decoder": False, "optimizer": {"clip_norm": None, "name": "adam"}})
    trainer = Trainer(config, store, DATA, tiny_training(), 0, "cpu")
    assert not trainer.sae.W_enc.is_contiguous()
    expected = [
        torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in parameters(trainer)
    ]
    betas = (config.optimizer.beta1, config.optimizer.beta2)
    adam = torch.optim.Adam(expected, betas=betas, foreach=False, fused=False)
    for _ in range(3):
        trainer.step()
        for mine, theirs in zip(parameters(trainer), expected, strict=True):
            assert mine.grad is not None and mine.grad.any()
            theirs.grad = mine.grad.contiguous()
        adam.param_groups[0]["lr"] = trainer.optimizer.param_groups[0]["lr"]
        adam.step()
        for mine, theirs in zip(parameters(trainer), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def parameters(trainer: Trainer) -> list[torch.nn.Parameter]:
    return [*trainer.sae.parameters()]


def test_learning_rate_schedule():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay_fraction=0.2)
    rates = [learning_rate(index, 20, config) for index in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0] and rates[5:17] == [2.0] * 12
    assert rates[17:] == pytest.approx([1.5, 1.0, 0.5])
    flat = OptimizerConfig(learning_rate=2.0, warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate(index, 20, flat) for index in range(20)} == {2.0}


@pytest.mark.parametrize("method", ["standard", "temporal_sae", "atm"])
def test_a_snapshot_is_the_finished_sae_and_disturbs_nothing(store, method):
    looked, undisturbed = (Trainer(tiny_config(method), store, DATA, tiny_training(), 0, "cpu") for _ in range(2))
    for step in range(12):
        looked.step()
        undisturbed.step()
        if step == 5:
            half = looked.snapshot()
    last = looked.snapshot().state_dict()
    ends = [trainer.finish().state_dict() for trainer in (looked, undisturbed)]
    assert all(torch.equal(end[name], value) for end in ends for name, value in last.items())
    assert not torch.equal(half.state_dict()["W_enc"], last["W_enc"])
