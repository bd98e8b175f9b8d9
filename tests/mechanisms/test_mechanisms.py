import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step
from sae_lib.autoencoders.build import ARCHITECTURES, build_autoencoder
from sae_lib.autoencoders.config import config_class, sae_config
from sae_lib.data.activations import WindowStream
from sae_lib.mechanisms import build_mechanisms, methods
from sae_lib.mechanisms.adaptive_temporal_masking import (
    AdaptiveTemporalMasking,
    DropoutConfig,
    MaskingConfig,
    UniformDropout,
)
from sae_lib.mechanisms.gradient_scaling import GradientScaling, GradientScalingConfig
from sae_lib.mechanisms.resampling import Resampling, ResamplingConfig
from sae_lib.mechanisms.temporal_penalty import TemporalConfig, TemporalPenalty
from tests.tiny_training import make_step, tiny_config, tiny_store


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


SHARED = ("b_dec", "W_router", "b_router")  # parameters that belong to no single latent


def make_sae(architecture: str = "standard", **config: Any) -> Autoencoder:
    """Four inputs, six latents, every parameter away from its start."""
    settings = {"architecture": architecture, "d_sae": 6, "k": 3, "target_l0": 3, "prefixes": (0.5, 1)} | config
    settings = {"shares": (2, 1), "experts": 2} | settings
    known = config_class(architecture).model_fields
    sae = build_autoencoder(sae_config({name: v for name, v in settings.items() if name in known}), d_in=4, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name not in ("W_enc", "W_dec", "threshold"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return sae


def rows(n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) * 2.0


def trained_step(sae: Autoencoder, x: Tensor, **known: Any) -> Step:
    """A step as the trainer hands it over, without masks."""
    with torch.no_grad():
        latents = sae.encode(x)
        x_hat = sae.decode(latents)
    return make_step(latents, x=x, x_hat=x_hat, **known)


# ------------------------------------------------------------------------------------ temporal penalty, Eq. 3, 4, 8

F_T = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
LINKED = torch.tensor([False, True, True, False])


def penalty(**config: Any) -> TemporalPenalty:
    return TemporalPenalty(TemporalConfig.model_validate({"coefficient": 1.0, "scale": "constant"} | config), d_sae=2)


def value(mechanism: TemporalPenalty, f: Tensor = F_T, loss: float | Tensor = 1.0, **known: Any) -> float:
    found = mechanism.loss(make_step(f, reconstruction=torch.as_tensor(loss), **known))
    assert found is not None
    return float(found.detach())


def test_penalty_by_hand():
    # ||(2, 0)||^2 = 4 and ||(0, 4)||^2 = 16 over the two rows that have a predecessor.
    assert value(penalty(), has_predecessor=LINKED) == 10.0
    assert value(penalty(coefficient=0.01), has_predecessor=LINKED) == pytest.approx(0.1)
    assert value(penalty(), has_predecessor=torch.zeros(4, dtype=torch.bool)) == 0.0


def test_adjacent_tokens_by_brute_force(tmp_path):
    """Against the definition, from context and position of each row."""
    store = tiny_store(tmp_path)
    stream = WindowStream(store, 4, 64, seed=1)
    for number in (0, 5):
        batch = stream.batch(number)
        numbers = (stream.windows(number)[:, None] * 4 + np.arange(4)).ravel()
        f = batch.activations.flatten(0, 1).relu()
        squares = []
        for i in range(1, 64):
            same = store.contexts[numbers[i]] == store.contexts[numbers[i - 1]]
            if i % 4 and same and int(store.positions[numbers[i]]) == int(store.positions[numbers[i - 1]]) + 1:
                squares.append(float((f[i] - f[i - 1]).square().sum()))
        assert 0 < len(squares) < 48, "some windows cross the end of a context"
        assert value(penalty(), f, has_predecessor=batch.has_predecessor.flatten()) == pytest.approx(np.mean(squares))


def test_alpha_by_hand():
    """Eq. 4 with beta an EMA that starts at the first loss: 1, then 0.99 + 0.02 = 1.01."""
    mechanism = penalty(scale="raw")
    assert value(mechanism, has_predecessor=LINKED) == pytest.approx(10 * sigmoid(0))
    assert float(mechanism.beta) == 1.0
    assert value(mechanism, loss=2.0, has_predecessor=LINKED) == pytest.approx(10 * sigmoid(5 * (1.01 - 2.0)), rel=1e-5)
    assert float(mechanism.beta) == pytest.approx(1.01)
    assert mechanism.log()["alpha"] == pytest.approx(0.00703, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "losses", "beta"),
    [
        ({"tracker_start": "zero"}, [1.0], 0.01),
        ({"tracker_start": "zero"}, [1.0, 3.0], 0.99 * 0.01 + 0.03),
        ({"tracker": "decayed_max"}, [4.0, 1.0, 1.0], 4.0 * 0.99**2),
        ({"tracker": "decayed_max"}, [4.0, 1.0, 7.0], 7.0),
        ({"momentum": 0.5}, [4.0, 1.0], 2.5),
    ],
)
def test_tracker(config, losses, beta):
    mechanism = penalty(**({"scale": "raw"} | config))
    for loss in losses:
        found = value(mechanism, loss=loss, has_predecessor=LINKED)
    assert float(mechanism.beta) == pytest.approx(beta)
    assert found == pytest.approx(10 * sigmoid(5 * (beta - losses[-1])), rel=1e-4)


def test_alpha_as_written_saturates_and_the_relative_one_does_not():
    """With losses in the hundreds, as published, 5 (beta - L) is far outside of a sigmoid's range."""
    losses = [500.0, 490.0, 515.0, 480.0, 520.0]
    saturated = {}
    for scale in ("raw", "relative", "constant"):
        mechanism = penalty(scale=scale)
        for loss in losses:
            value(mechanism, loss=loss)
        log = mechanism.log()
        saturated[scale] = log["alpha_saturated"]
        assert mechanism.log()["alpha_saturated"] == 0.0, "the count starts anew"
        if scale == "relative":
            beta = float(mechanism.beta)
            assert log["alpha"] == pytest.approx(sigmoid(5 * (beta - 520.0) / beta), rel=1e-4)
    assert saturated == {"raw": pytest.approx(0.8), "relative": 0.0, "constant": 1.0}


@pytest.mark.parametrize("through", [False, True])
def test_gradient_through_alpha(through):
    mechanism = penalty(scale="raw", gradient_through_scale=through)
    value(mechanism, has_predecessor=LINKED)
    loss = torch.tensor(1.5, requires_grad=True)
    f = F_T.clone().requires_grad_()
    found = mechanism.loss(make_step(f, reconstruction=loss, has_predecessor=LINKED))
    assert found is not None
    found.backward()
    if not through:
        assert loss.grad is None
    else:
        alpha = sigmoid(5 * (0.99 + 0.015 - 1.5))
        assert loss.grad is not None and float(loss.grad) == pytest.approx(-5 * 10 * alpha * (1 - alpha), rel=1e-4)


@pytest.mark.parametrize("gradient", ["detached", "both"])
def test_gradient_of_the_penalty_written_out(gradient):
    generator = torch.Generator().manual_seed(4)
    f = torch.rand(9, 5, generator=generator).requires_grad_()
    linked = torch.rand(9, generator=generator) > 0.4
    found = penalty(gradient=gradient).loss(make_step(f, has_predecessor=linked))
    before = f[:-1] if gradient == "both" else f[:-1].detach()
    expected = ((f[1:] - before).square().sum(dim=1) * linked[1:]).sum() / linked[1:].sum()
    assert found is not None
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, f), torch.autograd.grad(expected, f))


def test_previous_batch():
    mechanism = penalty(pairing="previous_batch")
    first, second = F_T.clone().requires_grad_(), (F_T + torch.tensor([3.0, 4.0])).requires_grad_()
    assert value(mechanism, first) == 0.0, "the first step has none before it"
    found = mechanism.loss(make_step(second))
    assert found is not None and float(found.detach()) == 25.0
    found.backward()
    assert first.grad is None and second.grad is not None and second.grad.tolist() == [[1.5, 2.0]] * 4
    assert value(mechanism, second) == 0.0


def test_shuffled_rows_are_a_variance_penalty():
    """The mean of ||f_a - f_b||^2 over all pairs of rows is 2 sum_i Var(f_i)."""
    f = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    pairs = [float((a - b).square().sum()) for a in f for b in f]
    assert value(penalty(pairing="variance"), f) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_no_pairing_still_tracks_alpha():
    mechanism = penalty(pairing="none", scale="raw")
    assert mechanism.loss(make_step(F_T, reconstruction=torch.tensor(3.0))) is None
    assert float(mechanism.beta) == 3.0 and mechanism.log()["alpha"] == 0.5


# ------------------------------------------------------------------------------------- adaptive temporal masking (ATM)

EMAS = {
    "magnitude": [2.0, 1.0, 1.0, 0.0],
    "frequency": [0.4, 0.4, 0.2, 0.0],
    "contribution": [3.0, 3.0, 0.0, 2.0],
}


def masking(d_sae: int = 4, emas: dict[str, list[float]] | None = None, **config: Any) -> AdaptiveTemporalMasking:
    """ATM without warm-up; `emas` are the three moving averages."""
    mechanism = AdaptiveTemporalMasking(MaskingConfig.model_validate({"warmup_steps": 0} | config), d_sae)
    for name, values in (emas or {}).items():
        getattr(mechanism, name).copy_(torch.tensor(values))
    return mechanism


def test_importance_by_hand():
    # Means 1, 0.25, 2; so the parts are (2, 1, 1, 0), (1.6, 1.6, .8, 0), (1.5, 1.5, 0, 1).
    torch.testing.assert_close(
        masking(emas=EMAS).importance(), torch.tensor([5.1 / 3, 4.1 / 3, 0.6, 1 / 3]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        masking(emas=EMAS, combine="product").importance(), torch.tensor([4.8, 2.4, 0.0, 0.0]), rtol=1e-5, atol=1e-6
    )
    two = masking(emas=EMAS, components=("frequency", "contribution")).importance()
    torch.testing.assert_close(two, torch.tensor([1.55, 1.55, 0.4, 0.5]), rtol=1e-5, atol=1e-6)
    assert masking().importance().tolist() == [0, 0, 0, 0], "nothing has fired yet"


def test_threshold_by_hand():
    importance = torch.tensor([1.0, 2.0, 3.0, 7.0])
    # The last latent has never fired. (1, 2, 3): mean 2, sd sqrt(2/3); all: mean 3.25, sd sqrt(83)/4... by numpy.
    assert float(masking(emas=EMAS).threshold(importance)) == pytest.approx(2 + math.sqrt(2 / 3))
    assert float(masking(emas=EMAS, c=-0.5).threshold(importance)) == pytest.approx(2 - 0.5 * math.sqrt(2 / 3))
    every = masking(emas=EMAS, population="all").threshold(importance)
    assert float(every) == pytest.approx(3.25 + np.std([1, 2, 3, 7]))


def settled(c: float = 1.0, r: float = 1.0, **config: Any) -> AdaptiveTemporalMasking:
    """ATM whose probabilities follow from EMAS: a step that changes no moving average (decay 0 repeats the batch)."""
    mechanism = masking(d_sae=6, c=c, r=r, decay=0.0, **config)
    sae = make_sae()
    mechanism.before_update(sae, trained_step(sae, rows(30)))
    return mechanism


def test_probability_by_the_formula():
    for c, r in [(1.0, 1.0), (0.0, 2.0), (0.5, 5.0)]:
        mechanism = settled(c, r)
        importance = mechanism.importance().double().numpy()
        fired = mechanism.magnitude.numpy() > 0
        theta = importance[fired].mean() + c * importance[fired].std()
        for i, p in enumerate(mechanism.probability.tolist()):
            expected = 1 - math.exp(-r * (theta - importance[i]) / theta) if importance[i] < theta else 0.0
            assert p == pytest.approx(expected, abs=1e-5)
        assert 0 < mechanism.probability.count_nonzero() < 6


def test_a_low_c_or_no_rate_masks_nothing():
    assert not settled(c=-50.0).probability.any(), "theta is below zero, under every importance"
    assert not settled(r=0.0).probability.any()
    assert settled(r=50.0).probability.max() > 0.99


def test_masks_are_drawn_with_their_probability():
    mechanism = masking()
    mechanism.probability.copy_(torch.tensor([0.0, 0.25, 0.9, 1.0]))
    step = make_step(torch.ones(8, 4))
    masks = torch.stack([m for m in (mechanism.mask(step) for _ in range(4000)) if m is not None])
    assert masks.shape == (4000, 4), "one draw per latent and step, shared by the batch"
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(masks.mean(dim=0), torch.tensor([1.0, 0.75, 0.1, 0.0]), atol=0.03, rtol=0)
    last = masks[-1]
    assert mechanism.log()["mask_rate"] == pytest.approx(1 - float(last.mean()))


def test_one_draw_per_activation_and_rescaling():
    mechanism = masking(granularity="activation", rescale=True)
    mechanism.probability.copy_(torch.tensor([0.0, 0.5, 0.5, 0.75]))
    mask = mechanism.mask(make_step(torch.ones(4000, 4)))
    assert mask is not None and mask.shape == (4000, 4)
    assert [sorted(set(column.tolist())) for column in mask.T] == [[1], [0, 2], [0, 2], [0, 4]]
    torch.testing.assert_close(mask.mean(dim=0), torch.ones(4), atol=0.1, rtol=0)


def test_no_mask_during_warm_up():
    for mechanism in (masking(warmup_steps=3), UniformDropout(DropoutConfig(probability=0.5, warmup_steps=3), 4)):
        drawn = [mechanism.mask(make_step(torch.ones(2, 4), index=index)) is not None for index in range(5)]
        assert drawn == [False, False, False, True, True]


def test_uniform_dropout_masks_every_latent_alike():
    mechanism = UniformDropout(DropoutConfig(probability=0.3, warmup_steps=0), 5)
    step = make_step(torch.ones(2, 5))
    masks = torch.stack([m for m in (mechanism.mask(step) for _ in range(4000)) if m is not None])
    torch.testing.assert_close(masks.mean(dim=0), torch.full((5,), 0.7), atol=0.03, rtol=0)
    assert mechanism.log()["mask_rate"] == pytest.approx(1 - float(masks[-1].mean()))


def test_contribution_is_the_rise_in_error_without_the_latent():
    sae, x = make_sae(), rows(25)
    step = trained_step(sae, x)
    latents = step.latents.dense()
    mechanism, energy = masking(6), masking(6, contribution="energy")
    mechanism.before_update(sae, step)
    energy.before_update(sae, step)
    with torch.no_grad():
        whole = (x - step.x_hat).square().sum(dim=1).mean()
        for i in range(6):
            without = latents.clone()
            without[:, i] = 0.0
            rise = (x - sae.decode(without)).square().sum(dim=1).mean() - whole
            assert float(mechanism.contribution[i]) == pytest.approx(0.01 * max(float(rise), 0.0), abs=1e-6)
            alone = (latents[:, i, None] * sae.W_dec[i]).square().sum(dim=1).mean()
            assert float(energy.contribution[i]) == pytest.approx(0.01 * float(alone), rel=1e-4)
    torch.testing.assert_close(mechanism.magnitude, 0.01 * latents.mean(dim=0))
    torch.testing.assert_close(mechanism.frequency, 0.01 * (latents > 0).float().mean(dim=0))


def test_statistics_before_or_after_the_mask():
    sae, x = make_sae(), rows(25)
    keep = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    for fed_by, factor in (("pre_mask", torch.ones(6)), ("post_mask", keep)):
        step = trained_step(sae, x)
        unmasked, latents = step.x_hat, step.latents.dense()
        step.f = step.latents.times(keep)
        step.x_hat = sae.decode(latents * keep).detach()
        mechanism, plain = masking(6, fed_by=fed_by), masking(6)
        mechanism.before_update(sae, step)
        torch.testing.assert_close(mechanism.magnitude, 0.01 * factor * latents.mean(dim=0))
        torch.testing.assert_close(mechanism.frequency, 0.01 * factor * (latents > 0).float().mean(dim=0))
        # The error is that of the reconstruction without the mask.
        plain.before_update(sae, make_step(latents, x=x, x_hat=unmasked))
        torch.testing.assert_close(mechanism.contribution, factor * plain.contribution)


@pytest.mark.parametrize("subtract_b_dec", [False, True])
@pytest.mark.parametrize(
    ("architecture", "inference"),
    [
        ("standard", "off"), ("standard", "prune"), ("standard", "scale"), ("jumprelu", "off"),
        ("jumprelu", "prune"), ("jumprelu", "scale"), ("topk", "off"), ("batchtopk", "off"), ("batchtopk", "prune"),
        ("gated", "prune"), ("gated", "scale"), ("matryoshka", "prune"),
    ],
)  # fmt: skip
def test_inference_rules_are_folded_into_the_weights(architecture, inference, subtract_b_dec):
    sae = make_sae(architecture, subtract_b_dec=subtract_b_dec, initial_threshold=0.5)
    if architecture in ("batchtopk", "matryoshka"):
        sae.get_buffer("threshold").fill_(0.5)
    probability = torch.tensor([0.0, 0.3, 0.9, 0.0, 0.05, 0.6])
    mechanism = masking(6, inference=inference)
    mechanism.probability.copy_(probability)
    gain = {"off": torch.ones(6), "prune": (probability == 0).float(), "scale": 1 - probability}[inference]
    with torch.no_grad():
        x = rows(50)
        expected = sae.encode(x) * gain
        reconstruction = sae.decode(expected)
        mechanism.finish(sae)
        torch.testing.assert_close(sae.encode(x), expected)
        torch.testing.assert_close(sae(x), reconstruction)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_scaled_latents_would_be_selected_otherwise(architecture):
    with pytest.raises(ValueError, match="inference 'scale'"):
        make_sae(architecture, masking={"inference": "scale"})


# ----------------------------------------------------------------------------------------------- resampling, Eq. 5, 6


def resampling(rate: list[float], **config: Any) -> Resampling:
    """Resampling after every step, of latents whose rate is given."""
    settings = {"warmup_interval": 1, "interval": 1} | config
    mechanism = Resampling(ResamplingConfig.model_validate(settings), len(rate))
    mechanism.rate.copy_(torch.tensor(rate))
    return mechanism


def resampled_steps(total: int, **config: Any) -> list[int]:
    mechanism = Resampling(ResamplingConfig.model_validate(config), 2)
    steps = (make_step(torch.zeros(1, 2), total=total, index=index) for index in range(total))
    return [step.index + 1 for step in steps if mechanism.due(step)]


def test_schedule_of_eq_6():
    assert resampled_steps(2600) == [*range(100, 1000, 100), 1000, 1500, 2000, 2500]
    assert resampled_steps(2600, stop_fraction=0.8) == [*range(100, 1000, 100), 1000, 1500, 2000]
    assert resampled_steps(30, warmup_steps=10, warmup_interval=4, interval=7) == [4, 8, 14, 21, 28]
    assert resampled_steps(2600, threshold=None) == []


def test_rate_of_eq_5():
    mechanism = resampling([0.0, 0.5])
    for _ in range(2):
        mechanism.before_update(make_sae(), make_step(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [3.0, 0.0]])))
    torch.testing.assert_close(mechanism.rate, torch.tensor([0.0075 + 0.99 * 0.0075, 0.5 * 0.99**2]))


def with_optimizer(sae: Autoencoder) -> torch.optim.Optimizer:
    """An AdamW that has made a step."""
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2, fused=True)
    sae(rows(20)).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_dead_latents_are_started_again_and_no_others(architecture):
    sae = make_sae(architecture, initial_threshold=0.3)
    if architecture == "jumprelu":
        sae.get_parameter("threshold").data.add_(0.5)
    optimizer, x = with_optimizer(sae), rows(12, seed=8)
    before = deepcopy(sae.state_dict())
    moments = {name: deepcopy(optimizer.state[p]) for name, p in sae.named_parameters() if p in optimizer.state}
    tensors = dict(sae.named_parameters())
    mechanism = resampling([0.2, 0.001, 0.005, 0.0049, 0.3, 0.4])
    step = make_step(torch.zeros(12, 6), x=x, x_hat=torch.zeros(12, 4))
    mechanism.after_update(sae, optimizer, step)
    assert all(tensors[name] is p for name, p in sae.named_parameters()), "written into the weights, not a copy"
    alive, dead = [0, 2, 4, 5], [1, 3]
    directions = x / x.norm(dim=1, keepdim=True)
    for i in dead:
        torch.testing.assert_close(sae.W_enc[:, i], sae.W_dec[i])
        assert torch.isclose(directions @ sae.W_dec[i], torch.ones(())).sum() == 1, "one of the inputs, of norm 1"
    assert not torch.equal(sae.W_dec[1], sae.W_dec[3])
    assert torch.equal(sae.W_enc[:, alive], before["W_enc"][:, alive])
    for name, parameter in sae.named_parameters():
        if name not in ("W_enc", *SHARED):
            assert torch.equal(parameter[alive], before[name][alive]), name
        if name not in ("W_enc", "W_dec", *SHARED):
            start = sae.cfg.get("initial_threshold") if name == "threshold" else 0.0
            assert parameter[dead].tolist() == pytest.approx([start] * 2), f"{name} starts again"
        if name in SHARED:
            assert torch.equal(parameter, before[name])
    for name, old in moments.items():
        state = optimizer.state[tensors[name]]
        assert state["step"] == old["step"]
        for moment in ("exp_avg", "exp_avg_sq"):
            now, then = state[moment], old[moment]
            if name in SHARED:
                assert torch.equal(now, then)
                continue
            now, then = (now.T, then.T) if name == "W_enc" else (now, then)
            assert not now[dead].any(), f"{name}: fresh optimiser state"
            assert torch.equal(now[alive], then[alive])
    assert mechanism.log() == {"resampled": 2.0} and mechanism.log() == {"resampled": 0.0}


@pytest.mark.parametrize(("power", "shares"), [(1, [1 / 6, 2 / 6, 3 / 6]), (2, [1 / 14, 4 / 14, 9 / 14])])
def test_inputs_are_drawn_by_their_error(power, shares):
    """Three inputs with reconstruction errors 1, 2 and 3."""
    x = torch.eye(3, 4) * 5.0
    x_hat = x.clone()
    x_hat[:, 3] = torch.tensor([1.0, 2.0, 3.0])
    counts = torch.zeros(3)
    generator = torch.Generator().manual_seed(0)
    sae, mechanism = make_sae(), resampling([0.0] * 6, error_power=power)
    step = make_step(torch.zeros(3, 6), x=x, x_hat=x_hat, generator=generator)
    for _ in range(500):
        mechanism.after_update(sae, torch.optim.Adam(sae.parameters()), step)
        counts += sae.W_dec.detach()[:, :3].sum(dim=0)
    torch.testing.assert_close(counts / counts.sum(), torch.tensor(shares), atol=0.03, rtol=0)


def test_norm_of_new_encoder_rows():
    sae = make_sae(encoder_init_norm=3.0)
    mechanism = resampling([0.2, 0.0, 0.2, 0.2, 0.2, 0.2], encoder_norm="alive_fraction")
    mechanism.after_update(
        sae, torch.optim.Adam(sae.parameters()), make_step(torch.zeros(9, 6), x=rows(9), x_hat=rows(9, 4))
    )
    assert sae.W_enc[:, 1].norm().item() == pytest.approx(0.2 * 3.0, rel=1e-5)
    assert sae.W_dec[1].norm().item() == pytest.approx(1.0)
    sae = make_sae()
    mechanism = resampling([0.0] * 6, encoder_norm="alive_fraction")
    mechanism.after_update(
        sae, torch.optim.Adam(sae.parameters()), make_step(torch.zeros(9, 6), x=rows(9), x_hat=rows(9, 4))
    )
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.full((6,), 0.2))


def test_resampling_with_few_badly_reconstructed_inputs():
    """Fewer inputs with an error than dead latents, and none at all: both go on."""
    x = rows(8)
    for wrong in (2, 0):
        x_hat = x.clone()
        x_hat[:wrong] = 0.0
        sae = make_sae()
        resampling([0.0] * 6).after_update(
            sae, torch.optim.Adam(sae.parameters()), make_step(torch.zeros(8, 6), x=x, x_hat=x_hat)
        )
        assert sae.W_dec.isfinite().all() and sae.W_enc.isfinite().all()


def test_nothing_is_resampled_where_nothing_is_dead():
    sae, x = make_sae(), rows(8)
    before = deepcopy(sae.state_dict())
    step = make_step(torch.zeros(8, 6), x=x, x_hat=x * 0)
    resampling([0.2] * 6).after_update(sae, torch.optim.Adam(sae.parameters()), step)
    resampling([0.0] * 6, interval=7, warmup_interval=7).after_update(sae, torch.optim.Adam(sae.parameters()), step)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


# -------------------------------------------------------------------------------------------- gradient scaling, Eq. 7


def scaling(rate: list[float], **config: Any) -> GradientScaling:
    """Gradient scaling with these activation rates, which stay as they are."""
    mechanism = GradientScaling(GradientScalingConfig.model_validate({"momentum": 0.0} | config), len(rate))
    mechanism.rate.copy_(torch.tensor(rate))
    return mechanism


def test_scale_by_hand():
    rates = [0.0, 0.05, 0.2, 1.0]
    expected = [10.0, 10.0, 1 / 0.200001, 1 / 1.000001]
    assert scaling(rates).scale().tolist() == pytest.approx(expected)
    assert scaling(rates, s_max=3.0).scale().tolist() == pytest.approx([3.0, 3.0, 3.0, 1 / 1.000001])
    assert scaling(rates, s_min=2.0).scale().tolist() == pytest.approx([10.0, 10.0, 1 / 0.200001, 2.0])
    assert scaling(rates, epsilon=0.3).scale().tolist() == pytest.approx([1 / 0.3, 1 / 0.35, 2.0, 1 / 1.3])


RATES = torch.tensor([0.0, 1.0, 0.5, 0.2, 0.1, 0.25])
SCALES = torch.tensor([10.0, 1.0, 2.0, 5.0, 10.0, 4.0])


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
def test_gradients_of_each_latent_are_scaled(architecture):
    sae = make_sae(architecture)
    mechanism = scaling([0.0] * 6)
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    mechanism.before_update(sae, make_step(torch.zeros(1, 6), firing_rate=RATES))
    for name, parameter in sae.named_parameters():
        expected = {"W_enc": SCALES.expand(4, 6), "W_dec": SCALES[:, None].expand(6, 4), "b_dec": torch.ones(4)}
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected.get(name, SCALES), rtol=1e-4, atol=1e-4)


def trained_weights(scale: float | None, placement: str, steps: int = 20) -> tuple[Tensor, Tensor]:
    """W_enc before and after some Adam steps; every latent's gradient (or update) times `scale`."""
    sae, x = make_sae(), rows(64)
    start = sae.W_enc.detach().clone()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    bounds = {"s_min": scale, "s_max": scale} if scale else {}
    mechanism = scaling([0.0] * 6, placement=placement, **bounds)
    for index in range(steps):
        optimizer.zero_grad()
        (sae(x) - x).square().sum(dim=1).mean().backward()
        step = make_step(torch.zeros(1, 6), firing_rate=RATES, index=index)
        if scale:
            mechanism.before_update(sae, step)
        optimizer.step()
        if scale:
            mechanism.after_update(sae, optimizer, step)
    return start, sae.W_enc.detach()


def test_scaling_before_adam_is_almost_a_no_op():
    start, plain = trained_weights(None, "pre_adam")
    _, before = trained_weights(10.0, "pre_adam")
    _, after = trained_weights(10.0, "post_adam", steps=1)
    _, one = trained_weights(None, "post_adam", steps=1)
    moved = (plain - start).abs().max()
    assert (before - plain).abs().max() < 1e-3 * moved
    torch.testing.assert_close(after - start, 10.0 * (one - start), rtol=1e-3, atol=1e-6)


def test_post_adam_scales_the_update_of_each_latent():
    sae = make_sae("jumprelu")
    mechanism = scaling([0.0] * 6, placement="post_adam")
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    step = make_step(torch.zeros(1, 6), firing_rate=RATES)
    mechanism.before_update(sae, step)
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in sae.parameters())
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
    optimizer.step()
    mechanism.after_update(sae, optimizer, step)
    for name, parameter in sae.named_parameters():
        factor = {"W_enc": SCALES.expand(4, 6), "W_dec": SCALES[:, None].expand(6, 4), "b_dec": torch.ones(4)}
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.1 * factor.get(name, SCALES), rtol=1e-4, atol=1e-4
        )


# ------------------------------------------------------------------------------------------------------------ together


def test_mechanisms_of_each_method():
    built = {m: [type(x).__name__ for x in build_mechanisms(tiny_config(m))] for m in methods("main", "as written")}
    assert built["temporal_sae"] == ["TemporalPenalty", "GradientScaling", "Resampling"]
    assert built["atm"] == built["paper_atm"] == ["AdaptiveTemporalMasking"]
    assert built["dropout"] == ["UniformDropout"]
    for method in ("standard", "gated", "topk", "batchtopk", "matryoshka_4", "jumprelu", "paper_standard"):
        assert built[method] == []
