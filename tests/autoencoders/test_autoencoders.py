from copy import deepcopy
from typing import Any

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import ARCHITECTURES, build_autoencoder, load_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.topk import geometric_median, strongest
from sae_lib.mechanisms import methods
from sae_lib.util.errors import ArtifactError
from tests.tiny_training import make_step, tiny_config

X = torch.tensor([[2.0, 1.0]])
NEEDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "onset_priced": {},
    "gated": {},
    "topk": {"k": 1},
    "batchtopk": {"k": 1},
    "matryoshka": {"k": 1, "prefixes": (1 / 3, 1)},
    "balanced_matryoshka": {"k": 1, "prefixes": (1 / 3, 1)},
    "lista_matryoshka": {"k": 1, "prefixes": (1 / 3, 1)},
    "sampled_matryoshka": {"k": 1},
    "jumprelu": {"target_l0": 1},
    "tree": {"k": 2, "prefixes": (1 / 3, 1), "shares": (1, 1)},
    "switch": {"k": 1, "experts": 3},
    "matching_pursuit": {"k": 1},
}


def by_hand(architecture: str, **config: Any) -> Autoencoder:
    """Two inputs, three latents. Of X, the pre-activations are 2, 1, -0.5, or with x - b_dec 1, 3, 1.5."""
    settings = {"architecture": architecture, "d_sae": 3} | NEEDS[architecture] | config
    sae = build_autoencoder(sae_config(settings), d_in=2)
    weights = {
        "W_enc": torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]]),
        "b_enc": torch.tensor([0.0, -1.0, 0.5]),
        "W_dec": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
        "b_dec": torch.tensor([1.0, -1.0]),
    }
    sae.load_state_dict(weights, strict=False)
    return sae


def random_sae(architecture: str, **config: Any) -> Autoencoder:
    """Six inputs, twelve latents, every parameter away from its start."""
    needs = {name: value * 4 for name, value in NEEDS[architecture].items() if name in ("k", "target_l0")}
    settings = {"architecture": architecture, "d_sae": 12} | NEEDS[architecture] | needs | config
    sae = build_autoencoder(sae_config(settings), d_in=6, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name == "threshold":
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.1)
            elif not name.startswith("W_"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return sae


def rows(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(5)) * 2.0


@pytest.mark.parametrize(
    ("architecture", "config", "latents", "reconstruction"),
    [
        ("standard", {}, [2, 1, 0], [3, 0]),
        ("standard", {"subtract_b_dec": True}, [1, 3, 1.5], [2.9, 3.2]),
        ("topk", {}, [2, 0, 0], [3, -1]),
        ("topk", {"subtract_b_dec": True}, [0, 3, 0], [1, 2]),
        ("topk", {"k": 2, "subtract_b_dec": True}, [0, 3, 1.5], [1.9, 3.2]),
    ],
)
def test_encode_and_decode_by_hand(architecture, config, latents, reconstruction):
    sae = by_hand(architecture, **config)
    torch.testing.assert_close(sae.encode(X), torch.tensor([latents], dtype=torch.float32))
    torch.testing.assert_close(sae(X), torch.tensor([reconstruction], dtype=torch.float32))
    # Any number of leading dimensions, also none.
    torch.testing.assert_close(sae(X[0]), sae(X)[0])
    torch.testing.assert_close(sae(X.expand(2, 3, 2)), sae(X).expand(2, 3, 2))


def test_jumprelu_by_hand():
    sae = by_hand("jumprelu")
    sae.load_state_dict(sae.state_dict() | {"threshold": torch.tensor([2.5, 0.5, 0.1])})
    assert sae.encode(X).tolist() == [[0, 1, 0]] and sae(X).tolist() == [[1, 0]]
    step = make_step(torch.zeros(1, 3), pre=sae.pre_activations(X))
    assert sae.activate_training(step).tolist() == [[0, 1, 0]]


def test_batchtopk_by_hand():
    sae = by_hand("batchtopk")
    sae.get_buffer("threshold").fill_(1.5)
    assert sae.encode(X).tolist() == [[2, 0, 0]] and sae(X).tolist() == [[3, -1]]
    # In training k x batch = 2 are kept of the whole batch, here both in the first row.
    pre = torch.tensor([[5.0, 4.0, 1.0], [3.0, -2.0, 0.5]])
    assert sae.activate_training(make_step(pre, pre=pre)).tolist() == [[5, 4, 0], [0, 0, 0]]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_gradients_through_the_encoder(architecture):
    """Those of (x - b_dec) W_enc + b_enc written out, though b_dec's is taken from one row."""
    sae = random_sae(architecture, subtract_b_dec=True)
    weight = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    found = sae.pre_activations(rows())
    unbiased = architecture in ("gated", "matching_pursuit")
    expected = (rows() - sae.b_dec) @ sae.W_enc + (0.0 if unbiased else sae.b_enc)
    torch.testing.assert_close(found, expected)
    parameters = [sae.W_enc, sae.b_dec, *(() if unbiased else (sae.b_enc,))]
    for pre in (found, expected):
        pre.mul(weight).sum().backward()
        for parameter in parameters:
            assert parameter.grad is not None and parameter.grad.any()
        gradients = [parameter.grad for parameter in parameters]
        sae.zero_grad()
        if pre is found:
            first = gradients
    torch.testing.assert_close(first, gradients)


def test_equal_values_are_not_kept_beyond_k():
    pre = torch.tensor([[3.0, 1.0, 1.0, 1.0, -2.0], [2.0, 4.0, 1.0, 0.5, 0.0]])
    assert strongest(pre, 2).count_nonzero(dim=1).tolist() == [2, 2]
    assert strongest(pre[1], 2).tolist() == [2.0, 4.0, 0.0, 0.0, 0.0]
    assert strongest(pre[:, 3:], 2).tolist() == [[1.0, 0.0], [0.5, 0.0]], "zero and less do not count"


@pytest.mark.parametrize("k", [1, 4, 12])
def test_topk_keeps_exactly_the_k_largest(k):
    sae = random_sae("topk", k=k)
    pre = torch.rand(30, 12, generator=torch.Generator().manual_seed(6)) + 0.01
    f = sae.activate(pre)
    assert (f > 0).sum(dim=1).tolist() == [k] * 30
    for row, kept in zip(pre, f, strict=True):
        assert sorted(kept[kept > 0].tolist()) == sorted(row.tolist())[-k:]
    assert sae.activate(-pre).count_nonzero() == 0, "what is under zero is never kept"


def test_batchtopk_keeps_k_times_batch():
    sae = random_sae("batchtopk", k=3)
    pre = torch.randn(50, 12, generator=torch.Generator().manual_seed(7)) + 1.0
    f = sae.activate_training(make_step(pre, pre=pre))
    assert (f > 0).sum() == 150
    assert len(set((f > 0).sum(dim=1).tolist())) > 1, "rows use more or fewer than k"
    assert f[f > 0].min() == pre.flatten().sort().values[-150]


def test_batchtopk_threshold_is_an_average_of_the_smallest_kept_activation():
    sae = random_sae("batchtopk", k=1, threshold_start_step=20, threshold_momentum=0.9)
    threshold = sae.get_buffer("threshold")
    threshold.zero_()

    def train(index: int, smallest: float) -> float:
        pre = torch.full((2, 12), -1.0)
        pre[0, 0], pre[1, 1] = 9.0, smallest
        sae.activate_training(make_step(pre, pre=pre, index=index, total=100))
        return float(threshold)

    assert train(19, 4.0) == 0.0, "it has not begun"
    assert train(20, 4.0) == 4.0, "with the first value, not with an average of 0"
    assert train(21, 2.0) == pytest.approx(0.9 * 4.0 + 0.1 * 2.0)
    before = float(threshold)
    sae.activate_training(make_step(torch.zeros(2, 12), pre=torch.full((2, 12), -1.0), index=22))
    assert float(threshold) == pytest.approx(0.9 * before), "where nothing fires, all that fires is kept"


def jump_gradients(z: list[float], upstream: list[float]) -> tuple[list[float], float]:
    """Gradients of f w.r.t. pre-activations and threshold; theta = 1, bandwidth 0.5."""
    config = {"architecture": "jumprelu", "d_sae": 1, "target_l0": 1, "bandwidth": 0.5, "initial_threshold": 1.0}
    sae = build_autoencoder(sae_config(config), d_in=1)
    pre = torch.tensor(z)[:, None].requires_grad_()
    f = sae.activate_training(make_step(torch.zeros(len(z), 1), pre=pre))
    f.backward(torch.tensor(upstream)[:, None])
    gradient = sae.get_parameter("threshold").grad
    assert pre.grad is not None and gradient is not None
    return pre.grad.squeeze(1).tolist(), float(gradient)


def test_jumprelu_gradient_by_hand():
    # Inside the kernel, |z - 1| < 0.25: 1.2 and 0.8. d f / d theta = -(theta / bandwidth) = -2 each.
    to_z, to_theta = jump_gradients([1.2, 0.8, 2.0, 0.2], [1.0, 2.0, 3.0, 4.0])
    assert to_z == [1.0, 0.0, 3.0, 0.0]
    assert to_theta == pytest.approx(-2.0 * (1.0 + 2.0))


@pytest.mark.parametrize("z", [1.2, 0.8])
def test_both_halves_of_the_jumprelu_kernel(z):
    """A kernel taken on z H(z - theta) misses what lies just under the threshold."""
    assert jump_gradients([z], [1.0])[1] == pytest.approx(-2.0)
    config = {"architecture": "jumprelu", "d_sae": 1, "target_l0": 0.8, "bandwidth": 0.5, "initial_threshold": 1.0}
    sae = build_autoencoder(sae_config(config | {"l0_coefficient": 3.0}), d_in=1)
    step = make_step(torch.zeros(2, 1), pre=torch.tensor([[z], [5.0]]), index=10)
    sae.activate_training(step)
    loss = sae.sparsity_loss(step)
    assert loss is not None
    l0 = 1.0 if z > 1 else 0.5
    assert float(loss.detach()) == pytest.approx(3.0 * (l0 / 0.8 - 1) ** 2)
    loss.backward()
    # d L0 / d theta = -(1 / bandwidth) / 2 rows for the one row inside the kernel.
    gradient = sae.get_parameter("threshold").grad
    assert gradient is not None and float(gradient) == pytest.approx(3.0 * 2 * (l0 / 0.8 - 1) / 0.8 * -1.0)


def test_jumprelu_thresholds_get_a_gradient_under_bf16():
    """Between 0.5 and 1 bf16 is spaced by 0.004: a kernel of width 0.001 would miss nearly every pre-activation."""
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    counts = []
    for autocast in (False, True):
        config = {"architecture": "jumprelu", "d_sae": 2, "target_l0": 0.1, "initial_threshold": 0.7, "bandwidth": 0.01}
        sae = build_autoencoder(sae_config(config), d_in=2, seed=1)
        with torch.no_grad():
            sae.W_enc.copy_(torch.eye(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            pre = sae.pre_activations(x)
        counts.append(int(((pre - 0.7).abs() < 0.0005).sum()))
        assert pre.dtype == torch.float32
    assert counts[0] == counts[1] > 0


def test_a_jumprelu_threshold_pushed_under_zero_comes_back():
    """Clamping must not cut off the gradient: a latent at threshold 0 could never be made sparser again."""
    config = {"architecture": "jumprelu", "d_sae": 1, "target_l0": 0.5, "bandwidth": 0.5}
    sae = build_autoencoder(sae_config(config), d_in=1)
    threshold = sae.get_parameter("threshold")
    threshold.data.fill_(-0.01)
    step = make_step(torch.zeros(3, 1), pre=torch.tensor([[0.1], [0.2], [0.05]]), index=10)
    assert sae.encode(torch.tensor([[-0.005]])).item() == 0.0, "it acts as a threshold of 0"
    sae.activate_training(step)
    loss = sae.sparsity_loss(step)
    assert loss is not None
    loss.backward()
    assert threshold.grad is not None and float(threshold.grad) < 0, "L0 is above its target: raise the threshold"


def test_l1_and_its_warm_up():
    sae = by_hand("standard", l1_coefficient=0.5, sparsity_warmup_steps=10)
    f = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    values = [sae.sparsity_loss(make_step(f, index=index)) for index in (0, 5, 10, 50)]
    assert [float(v) for v in values if v is not None] == [0.0, 1.0, 2.0, 2.0]  # 0.5 x (3 + 5) / 2


def test_auxk_by_hand():
    sae = by_hand("topk", auxk_coefficient=1 / 32)
    x_hat = torch.zeros(2, 2, requires_grad=True)
    sae.W_enc.data[0], sae.b_enc.data = torch.tensor([1.0, 0.5, 1.5]), torch.tensor([3.0, 0.0, -1.0])
    # Pre-activations (5, 1, 2) and (3, 0, -1).
    step = make_step(torch.zeros(2, 3), x=torch.tensor([[2.0, 0.0], [0.0, 0.0]]), x_hat=x_hat)
    assert sae.auxiliary_loss(step) is None, "nothing is dead"
    step.dead, step.any_dead = torch.tensor([False, True, True]), True
    loss = sae.auxiliary_loss(step)
    assert loss is not None
    # d_in / 2 = 1 dead latent a row: 2 x (.6, .8) against the residual (2, 0), and nothing against (0, 0).
    # Error ((2 - 1.2)^2 + 1.6^2) / 2 = 1.6; variance of the residual 1.
    assert float(loss.detach()) == pytest.approx(1.6 / 32)
    loss.backward()
    assert x_hat.grad is None, "the residual is detached"
    assert sae.b_enc.grad is not None and (sae.b_enc.grad != 0).tolist() == [False, False, True]
    assert sae.b_dec.grad is None


def test_auxk_takes_the_strongest_of_many_dead_latents():
    sae = random_sae("topk")
    x = rows()
    pre = sae.pre_activations(x)
    dead = torch.arange(12) != 5
    loss = sae.auxiliary_loss(make_step(torch.zeros(40, 12), x=x, x_hat=x * 0, dead=dead, any_dead=True))
    assert loss is not None
    loss.backward()
    error, directions = 0.0, sae.W_dec.detach()
    for row, values in zip(x, pre.detach(), strict=True):
        first = sorted((i for i in range(12) if i != 5), key=lambda i: -values[i])[:3]  # d_in / 2
        error += float((row - sum(max(values[i], 0) * directions[i] for i in first)).square().sum()) / 40
    assert float(loss.detach()) == pytest.approx(error / float(x.var(dim=0, unbiased=False).sum()) / 32, rel=1e-4)
    assert sae.b_enc.grad is not None and not sae.b_enc.grad[5] and sae.b_enc.grad.count_nonzero() == 11


def test_geometric_median_ignores_an_outlier():
    cloud = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1000.0, 1000.0]])
    median = geometric_median(cloud)
    assert torch.dist(median, torch.tensor([1.0, 1.0])) < 0.3 and cloud.mean(dim=0).min() > 200

    def summed(point):
        return (cloud - point).norm(dim=1).sum()

    for direction in torch.eye(2):
        assert summed(median) <= min(summed(median + 0.05 * direction), summed(median - 0.05 * direction))
    sae = by_hand("topk")
    sae.initialise(cloud)
    torch.testing.assert_close(sae.b_dec.data, median)


@pytest.mark.parametrize("subtract_b_dec", [False, True])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_folding_the_input_scale(architecture, subtract_b_dec):
    sae = random_sae(architecture, subtract_b_dec=subtract_b_dec)
    folded = deepcopy(sae)
    folded.fold_input_scale(0.05)
    with torch.no_grad():
        torch.testing.assert_close(folded(rows()), sae(rows() * 0.05) / 0.05, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(folded.encode(rows()), sae.encode(rows() * 0.05) / 0.05, rtol=1e-4, atol=1e-4)
    assert torch.equal(folded.W_enc, sae.W_enc) and torch.equal(folded.W_dec, sae.W_dec)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_evaluation_is_deterministic_and_changes_nothing(architecture):
    sae = random_sae(architecture).eval()
    before = deepcopy(sae.state_dict())
    with torch.no_grad():
        one, other = sae.encode(rows()), sae.encode(rows())
        sae(rows())
        single = torch.stack([sae.encode(row) for row in rows()])
    assert torch.equal(one, other) and one.count_nonzero() > 0
    torch.testing.assert_close(single, one)  # no row depends on its batch
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_initial_weights(architecture):
    sae = build_autoencoder(random_sae(architecture, encoder_init_norm=0.1).cfg, d_in=6, seed=1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(sae.W_enc, 0.1 * sae.W_dec.T)
    assert not any(p.any() for name, p in sae.named_parameters() if not name.startswith(("W_", "threshold")))
    again, other = (build_autoencoder(sae.cfg, d_in=6, seed=seed) for seed in (1, 2))
    assert torch.equal(sae.W_dec, again.W_dec) and not torch.equal(sae.W_dec, other.W_dec)
    untied = build_autoencoder(random_sae(architecture, tied_init=False).cfg, d_in=6, seed=1)
    torch.testing.assert_close(untied.W_enc.norm(dim=0), torch.ones(12))
    assert (untied.W_enc.T * untied.W_dec).sum(dim=1).abs().max() < 0.99


def test_unit_norm_and_parallel_gradient_by_hand():
    sae = by_hand("standard")
    sae.W_dec.data = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.6, 0.8]])
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.data, torch.tensor([[0.6, 0.8], [0.0, 1.0], [0.6, 0.8]]))
    sae.remove_parallel_gradient()  # there is no gradient yet
    sae.W_dec.grad = torch.tensor([[1.0, 0.0], [2.0, 7.0], [1.2, 1.6]])
    sae.remove_parallel_gradient()
    torch.testing.assert_close(sae.W_dec.grad, torch.tensor([[0.64, -0.48], [2.0, 0.0], [0.0, 0.0]]))


def test_loading_what_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match=r"no sae.safetensors here; train this SAE first"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("method", methods("main", "field"))
def test_no_rows_give_no_latents(method):
    sae = build_autoencoder(tiny_config(method), 8)
    assert sae.encode(torch.empty(0, 8)).shape == (0, 16)
    assert sae(torch.empty(0, 8)).shape == (0, 8)
