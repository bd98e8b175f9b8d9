"""What others have made of the Matryoshka SAE: weights, drawn prefixes, a second pass and an order."""

import math
from typing import Any

import pytest
import torch

from sae_lib.autoencoders import latents
from sae_lib.autoencoders.base import Autoencoder, Step, squared_error
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.latents import Latents
from sae_lib.autoencoders.lista_matryoshka import ListaMatryoshka, tilted_mean
from sae_lib.autoencoders.matryoshka import SampledMatryoshka
from sae_lib.share.weights import inference_form
from sae_lib.util.errors import ArtifactError
from tests.autoencoders.test_autoencoders import random_sae, rows
from tests.autoencoders.test_matryoshka import with_reconstruction
from tests.tiny_training import make_step, tiny_config

# Errors by the first one, two and three latents: 26, 5, 8 in the first row; 4, 1, 1 in the second.
F, X = torch.tensor([[2.0, 3.0, 5.0], [0.0, 1.0, 0.0]]), torch.tensor([[4.0, 4.0], [1.0, 1.0]])
ERRORS = [[26.0, 4.0], [5.0, 1.0], [8.0, 1.0]]


def three(architecture: str, **config: Any) -> Autoencoder:
    """Two inputs, three latents, a prefix for each; only the decoder matters."""
    values = {"architecture": architecture, "d_sae": 3, "k": 1, "prefixes": (1 / 3, 2 / 3, 1.0)} | config
    sae = build_autoencoder(sae_config(values), d_in=2)
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    sae.b_dec.data = torch.tensor([1.0, -1.0])
    return sae


def decoded(sae: Autoencoder, f: torch.Tensor = F, **known: Any) -> Step:
    return with_reconstruction(sae, make_step(f, x=X, **known))


def test_balanced_weights_by_hand():
    sae = three("balanced_matryoshka", balance=0.5)
    loss = sae.reconstruction_loss(decoded(sae))
    assert float(loss.detach()) == pytest.approx((0.25 * 30 + 0.5 * 6 + 9) / 2)


def test_balance_between_batchtopk_and_matryoshka():
    losses = {}
    for balance in (0.0, 1.0):
        sae = three("balanced_matryoshka", balance=balance)
        losses[balance] = float(sae.reconstruction_loss(decoded(sae)).detach())
    matryoshka = three("matryoshka")
    step = decoded(matryoshka)
    assert losses[0.0] == float(step.reconstruction.detach()) == 4.5
    assert losses[1.0] == pytest.approx(3 * float(matryoshka.reconstruction_loss(step).detach()))


def test_the_balanced_method_differs_from_its_control_by_the_weights_alone():
    mine, control = (tiny_config(m).model_dump() for m in ("balanced_matryoshka", "matryoshka_4"))
    assert {name for name in mine if mine[name] != control.get(name)} == {"architecture", "balance"}
    assert mine["balance"] == 0.75


def test_widths_are_drawn_with_uniform_logarithm():
    sae = build_autoencoder(
        sae_config({"architecture": "sampled_matryoshka", "d_sae": 4096, "k": 1, "levels": 1, "narrowest": 1 / 512}), 2
    )
    assert isinstance(sae, SampledMatryoshka)
    step = make_step(torch.zeros(1, 4096), x=torch.zeros(1, 2))
    widths = []
    for _ in range(2000):
        width, whole = sae.widths(step)
        assert whole == 4096
        widths.append(width)
    place = (torch.tensor(widths).double() / 8).log() / math.log(512)
    assert min(widths) >= 8 and max(widths) < 4096
    # Uniform on [0, 1], but that widths are rounded down: mean 1/2, and a quarter in each quarter.
    assert float(place.mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.histc(place, 4, 0, 1).div(2000).tolist() == pytest.approx([0.25] * 4, abs=0.05)


def test_sampled_prefixes_add_their_errors_once_each():
    sae = three("sampled_matryoshka", prefixes=(1.0,), levels=2, narrowest=0.1)
    assert isinstance(sae, SampledMatryoshka)
    seen = set()
    for seed in range(60):
        step = decoded(sae, generator=torch.Generator().manual_seed(seed))
        sizes = sae.widths(make_step(F, generator=torch.Generator().manual_seed(seed)))
        loss = float(sae.reconstruction_loss(step).detach())
        assert loss == pytest.approx(sum(sum(ERRORS[size - 1]) for size in sizes) / 2)
        seen.add(tuple(sizes))
    assert seen == {(1, 3), (2, 3), (1, 2, 3)}


def lista(**config: Any) -> Autoencoder:
    return three("lista_matryoshka", **{"tilt": 0.0, **config})


def test_prefixes_hold_what_fires_most_often():
    """Latents 1, 2 and 0 in this order: errors of (1, 2), (1, 0) and of what follows."""
    sae = lista(detached=False)
    sae.get_buffer("frequency").copy_(torch.tensor([0.1, 0.5, 0.2]))
    step = decoded(sae, firing_rate=torch.tensor([0.1, 0.5, 0.2]))
    by = [sae.b_dec + sum(F[:, [i]] * sae.W_dec[[i]] for i in kept) for kept in ([1], [1, 2], [1, 2, 0])]
    expected = sum(float(squared_error(X, x_hat).detach()) for x_hat in by)
    assert float(sae.reconstruction_loss(step).detach()) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx((30 + 6 + 9) / 2), "by index it is another loss"
    by_index = lista(order="index")
    assert float(by_index.reconstruction_loss(decoded(by_index)).detach()) == pytest.approx((30 + 6 + 9) / 2)


def test_frequency_is_an_average_that_begins_with_the_first_batch():
    sae = lista(frequency_momentum=0.9)
    for rate, expected in (([0.5, 0.0, 1.0], [0.5, 0.0, 1.0]), ([0.0, 1.0, 1.0], [0.45, 0.1, 1.0])):
        decoded(sae, firing_rate=torch.tensor(rate))
        torch.testing.assert_close(sae.get_buffer("frequency"), torch.tensor(expected))


def test_presence_is_read_off_the_input_also_where_a_latent_is_silent():
    """A parent (1, 0) and a child (.6, .8) that has absorbed it. Under the child the parent reads 1.2, above its level
    of 1; where the parent is alone the child reads .6, below three quarters of its level of 2."""
    x = torch.tensor([[1.0, 0.0], [1.2, 1.6], [1.2, 1.6]])
    f = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    step = make_step(f, x=x)
    found = {}
    for order in ("presence", "magnitude", "frequency"):
        config = tiny_config("lista_matryoshka", {"d_sae": 2, "k": 1, "prefixes": (1.0,), "order": order})
        sae = build_autoencoder(config, 2)
        sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        assert isinstance(sae, ListaMatryoshka)
        found[order] = sae._counted(step).tolist()
    assert found["presence"] == pytest.approx([1.0, 2 / 3])
    assert found["magnitude"] == pytest.approx([1.0, 2.0]) and found["frequency"] == pytest.approx([1 / 3, 2 / 3])


def test_a_latent_that_never_fired_is_not_present():
    config = tiny_config("lista_matryoshka", {"d_sae": 2, "k": 1, "prefixes": (1.0,), "order": "presence"})
    sae = build_autoencoder(config, 2)
    assert isinstance(sae, ListaMatryoshka)
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    step = make_step(torch.tensor([[1.0, 0.0]]), x=torch.tensor([[1.0, 1.0]]))
    assert sae._counted(step).tolist() == [1.0, 0.0]


def test_a_prefix_takes_the_one_before_it_as_given():
    """The first latent learns from its own prefix and from the whole: gradient 2 (e . d) of (3, -1) and of (-2, -2)."""
    gradients = {}
    for detached in (True, False):
        sae, f = lista(order="index", detached=detached), F.clone().requires_grad_()
        loss = sae.reconstruction_loss(decoded(sae, f))
        assert float(loss.detach()) == pytest.approx((30 + 6 + 9) / 2), "the same value either way"
        loss.backward()
        assert f.grad is not None
        gradients[detached] = f.grad[0].tolist()
    # x_hat - x by one, two and three latents: (-1, -5), (-1, -2), (2, 2); half of twice that, for two rows.
    assert gradients[True] == pytest.approx([-1 + 2, -2 + 2, 2.8])
    assert gradients[False] == pytest.approx([-1 - 1 + 2, -2 + 2, 2.8])


def test_tilted_mean_by_hand():
    error = torch.tensor([1.0, 3.0], requires_grad=True)
    assert float(tilted_mean(error, 0.0).detach()) == 2.0
    # Weights softmax(ln 3 (1/2, 3/2)) = (1, 3) / 4.
    tilted = tilted_mean(error, math.log(3.0))
    assert float(tilted.detach()) == pytest.approx(2.5)
    tilted.backward()
    assert error.grad is not None and error.grad.tolist() == pytest.approx([0.25, 0.75]), "none through the weights"


def test_the_second_pass_by_hand():
    """One latent too many fires at first; what it takes away brings the other back."""
    values = {"architecture": "lista_matryoshka", "d_sae": 2, "k": 1, "prefixes": (1.0,), "eta": 0.5}
    sae = build_autoencoder(sae_config(values | {"subtract_b_dec": True}), d_in=2)
    sae.W_enc.data = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    sae.W_dec.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    sae.b_dec.data, sae.b_enc.data = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.25])
    x = torch.tensor([[5.0, 1.0]])
    # x - b_dec = (4, 1): pre (4, 3.25), first pass (4, 0), x_hat_0 (5, 0), left over (0, 1), half of it times W_enc
    # (0, .5): pre (4, 3.75).
    pre = torch.tensor([[4.0, 3.75]])
    latents = sae.encode_training(make_step(torch.zeros(1, 2), x=x, index=0, total=1))
    assert latents.dense().tolist() == [[4.0, 0.0]]
    sae.get_buffer("first_threshold").fill_(3.5)
    sae.get_buffer("threshold").fill_(3.5)
    assert sae.encode(x).tolist() == pre.tolist()
    sae.get_buffer("threshold").fill_(3.8)
    assert sae.encode(x).tolist() == [[4.0, 0.0]]
    sae.get_buffer("first_threshold").fill_(0.0)  # both at first: x_hat_0 (5, 3.25), left over (0, -2.25)
    sae.get_buffer("threshold").fill_(0.0)
    torch.testing.assert_close(sae.encode(x), torch.tensor([[4.0, 3.25 - 0.5 * 2.25]]))


def test_each_pass_has_its_threshold():
    sae = random_sae("lista_matryoshka", k=2, threshold_start_step=0, subtract_b_dec=True)
    for name in ("threshold", "first_threshold"):
        sae.get_buffer(name).zero_()
    x = rows()
    latents = sae.encode_training(make_step(torch.zeros(40, 12), x=x)).dense().detach()
    pre = sae.pre_activations(x).detach()
    assert float(sae.get_buffer("first_threshold")) == pytest.approx(float(pre.flatten().sort().values[-80]))
    assert float(sae.get_buffer("threshold")) == pytest.approx(float(latents[latents > 0].min()))
    torch.testing.assert_close(sae.encode(x), latents)


def test_without_a_step_an_order_or_a_tilt_it_is_the_matryoshka():
    plain = random_sae("balanced_matryoshka", k=3, balance=1.0, prefixes=(0.25, 0.5, 1.0))
    values = {"eta": 0.0, "order": "index", "detached": False, "tilt": 0.0, "prefixes": (0.25, 0.5, 1.0)}
    mine = random_sae("lista_matryoshka", k=3, **values)
    mine.load_state_dict(plain.state_dict(), strict=False)
    losses = []
    for sae in (mine, plain):
        step = make_step(torch.zeros(40, 12), x=rows())
        step.latents = step.f = sae.encode_training(step)
        losses.append(sae.reconstruction_loss(with_reconstruction(sae, step)))
        losses[-1].backward()
    torch.testing.assert_close(*losses)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, mine.get_parameter(name).grad)


def test_latents_by_their_entries_give_the_same(monkeypatch: pytest.MonkeyPatch):
    """Loss, gradients and buffers of a step, held either way."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) * 2
    found: list[list[torch.Tensor]] = []
    for smallest in (2**30, 0):
        monkeypatch.setattr(latents, "SMALLEST_BATCH", smallest)
        config = {"architecture": "lista_matryoshka", "d_sae": 60, "k": 4, "prefixes": (0.1, 0.5, 1.0), "tilt": 0.5}
        sae = build_autoencoder(sae_config(config | {"subtract_b_dec": True, "threshold_start_step": 0}), 6, seed=2)
        sae.b_dec.data.normal_(generator=torch.Generator().manual_seed(1))
        step = make_step(torch.zeros(300, 60), x=x)
        step.latents = step.f = sae.encode_training(step)
        assert (type(step.f) is Latents) == bool(smallest)
        step.firing_rate = step.latents.rate()
        loss = sae.reconstruction_loss(with_reconstruction(sae, step))
        loss.backward()
        gradients = [p.grad for p in sae.parameters() if p.grad is not None]
        assert len(gradients) == 4
        found.append([loss.detach(), *gradients, *sae.buffers()])
    for dense, entries in zip(*found, strict=True):
        torch.testing.assert_close(dense, entries, rtol=1e-4, atol=1e-5)


def test_two_passes_are_not_exported_as_one():
    with pytest.raises(ArtifactError, match="lista_matryoshka encodes in a way that no other library's format holds"):
        inference_form(random_sae("lista_matryoshka"))
