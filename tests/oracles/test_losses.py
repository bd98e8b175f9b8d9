"""Training losses and their gradients against dictionary_learning's trainers: same weights, same batch."""

from typing import Any

import pytest

pytest.importorskip("dictionary_learning", reason="the oracles' environment is not this one: make test-oracles")

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

from sae_lib.autoencoders.base import Autoencoder, Step, squared_error
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config

D_IN, D_SAE, BATCH, K = 12, 40, 32, 5
TRAINER: dict[str, Any] = {
    "steps": 100, "warmup_steps": 10, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 0, "lm_name": "none",
    "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("any_dead", [False, True])
@pytest.mark.parametrize(("architecture", "peer"), [("topk", TopKTrainer), ("batchtopk", BatchTopKTrainer)])
def test_topk_and_its_auxiliary_loss(architecture: str, peer: Any, any_dead: bool) -> None:
    sae, x = _sae(architecture=architecture, k=K), _rows()
    trainer = peer(k=K, **TRAINER)
    with torch.no_grad():
        for theirs, ours in _linear_pairs(trainer.ae, sae):
            theirs.copy_(ours)
    dead = torch.arange(D_SAE) >= (15 if any_dead else D_SAE)
    trainer.num_tokens_since_fired[dead] = trainer.dead_feature_threshold + 1
    # What has just fired is not dead: its trainer looks after counting, so only silent latents stay so.
    with torch.no_grad():
        dead &= ~(sae.activate_training(_step(sae, x, dead)) > 0).any(dim=0)
    theirs = trainer.loss(x, step=0)
    _backward_and_compare(sae, _step(sae, x, dead), theirs, _linear_pairs(trainer.ae, sae))
    assert bool(dead.any()) == any_dead


def test_gated() -> None:
    sae, x = _sae(architecture="gated", l1_coefficient=0.3), _rows()
    trainer = GatedSAETrainer(l1_penalty=0.3, sparsity_warmup_steps=None, **TRAINER)
    pairs = [
        (trainer.ae.encoder.weight, sae.W_enc.T), (trainer.ae.decoder.weight, sae.W_dec.T),
        (trainer.ae.decoder_bias, sae.b_dec), (trainer.ae.gate_bias, sae.b_gate), (trainer.ae.mag_bias, sae.b_mag),
        (trainer.ae.r_mag, sae.r_mag),
    ]  # fmt: skip
    with torch.no_grad():
        sae.r_mag.normal_(std=0.2)
        for theirs, ours in pairs:
            theirs.copy_(ours)
    _backward_and_compare(sae, _step(sae, x), trainer.loss(x, step=0), pairs)


def test_jumprelu_loss() -> None:
    """The value, and every gradient where the kernel of the thresholds holds no row; inside it, the peer's L0 sees only
    the half above the threshold."""
    sae, x = _sae(architecture="jumprelu", target_l0=4, subtract_b_dec=False, bandwidth=1e-6), _rows()
    trainer = JumpReluTrainer(target_l0=4, bandwidth=1e-6, sparsity_warmup_steps=None, **TRAINER)
    pairs = [
        (trainer.ae.W_enc, sae.W_enc), (trainer.ae.W_dec, sae.W_dec), (trainer.ae.b_enc, sae.b_enc),
        (trainer.ae.b_dec, sae.b_dec), (trainer.ae.threshold, sae.threshold),
    ]  # fmt: skip
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    _backward_and_compare(sae, _step(sae, x), trainer.loss(x, step=0), pairs)


def test_matryoshka_reconstruction_is_theirs_times_the_number_of_prefixes() -> None:
    """dictionary_learning weights n prefixes by 1 / n and then takes their mean, so once too often: beside it, AuxK
    weighs n times as much as the paper's loss has it."""
    prefixes = (0.25, 0.5, 1.0)
    sae, x = _sae(architecture="matryoshka", k=K, prefixes=prefixes), _rows()
    trainer = MatryoshkaBatchTopKTrainer(k=K, group_fractions=[0.25, 0.25, 0.5], **TRAINER)
    with torch.no_grad():
        for theirs, ours in [
            (trainer.ae.W_enc, sae.W_enc), (trainer.ae.W_dec, sae.W_dec), (trainer.ae.b_enc, sae.b_enc),
            (trainer.ae.b_dec, sae.b_dec),
        ]:  # fmt: skip
            theirs.copy_(ours)
    step = _step(sae, x)
    ours = sae.reconstruction_loss(step)
    assert float(ours) == pytest.approx(3 * float(trainer.loss(x, step=0)), rel=1e-5)


@pytest.mark.parametrize(("k", "threshold"), [(1, 0.01), (5, 0.01), (20, 1.0)])
def test_matching_pursuit_is_that_of_saelens(k: int, threshold: float) -> None:
    peers = pytest.importorskip("sae_lens.saes.matching_pursuit_sae")
    sae, x = _sae(architecture="matching_pursuit", k=k, residual_threshold=threshold), _rows()
    peer = peers.MatchingPursuitTrainingSAE(
        peers.MatchingPursuitTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, residual_threshold=threshold, max_iterations=k, decoder_init_norm=1.0
        )
    )
    pairs = [(peer.W_dec, sae.W_dec), (peer.b_dec, sae.b_dec)]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    torch.testing.assert_close(sae.encode(x), peer.encode(x))
    _backward_and_compare(sae, _step(sae, x), (peer(x) - x).square().sum(dim=1).mean(), pairs)


def _rows() -> Tensor:
    return torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(1)) + 0.3


def _sae(**config: Any) -> Any:
    """Weights that are not those of a fresh SAE: biases, and an encoder that is not the decoder's transpose."""
    sae = build_autoencoder(
        sae_config({"subtract_b_dec": True, "tied_init": False, **config, "d_sae": D_SAE}), D_IN, seed=4
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name in ("b_enc", "b_dec", "b_gate", "b_mag"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.copy_(0.3 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return sae


def _step(sae: Autoencoder, x: Tensor, dead: Tensor | None = None) -> Step:
    """A training step up to the reconstruction."""
    silent = torch.zeros(D_SAE, dtype=torch.bool) if dead is None else dead
    step = Step(
        index=0, total=100, x=x, has_predecessor=torch.zeros(len(x), dtype=torch.bool), dead=silent,
        any_dead=bool(silent.any()), generator=torch.Generator(),
    )  # fmt: skip
    step.latents = step.f = sae.encode_training(step)
    step.x_hat = sae.decode_training(step)
    step.reconstruction = squared_error(x, step.x_hat)
    return step


def _linear_pairs(peer: Any, sae: Any) -> list[tuple[Tensor, Tensor]]:
    """Their parameters and ours, in their layout."""
    return [
        (peer.encoder.weight, sae.W_enc.T), (peer.encoder.bias, sae.b_enc), (peer.decoder.weight, sae.W_dec.T),
        (peer.b_dec, sae.b_dec),
    ]  # fmt: skip


def _backward_and_compare(sae: Any, step: Step, theirs: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    terms = [sae.reconstruction_loss(step), sae.sparsity_loss(step), sae.auxiliary_loss(step)]
    ours = torch.stack([term for term in terms if term is not None]).sum()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    mine = torch.autograd.grad(ours, [_leaf(sae, tensor) for _, tensor in pairs])
    peers = torch.autograd.grad(theirs, [parameter for parameter, _ in pairs])
    for own, peer in zip(mine, peers, strict=True):
        own = own.T if own.shape != peer.shape else own
        torch.testing.assert_close(own, peer, rtol=1e-4, atol=1e-5)


def _leaf(sae: Any, tensor: Tensor) -> Tensor:
    """The parameter that a transposed view is of."""
    leaf: Tensor = next(p for p in sae.parameters() if p.data_ptr() == tensor.data_ptr())
    return leaf
