"""Reconstruction, sparsity and behaviour against SAEBench's core evaluation, on the same model, SAE and contexts."""

import math
from typing import Any

import pytest

pytest.importorskip("sae_bench", reason="the oracles' environment is not this one: make test-oracles")

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from benchmarks.saebench import run_core
from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.core_reference import build_core_reference
from sae_lib.metrics.reconstruction import evaluate_reconstruction

CONTEXTS, POSITIONS = 6, 24
SAES: list[dict[str, Any]] = [{"architecture": "topk", "k": 12}, {"architecture": "standard"}]
# SAEBench's name -> ours.
SAME = {
    "l0": "l0", "l1": "l1", "cossim": "cosine", "ce_loss_without_sae": "ce_clean", "ce_loss_with_sae": "ce_sae",
    "kl_div_with_sae": "kl_sae",
}  # fmt: skip
WITH_ABLATION = {
    "ce_loss_with_ablation": "ce_zero", "kl_div_with_ablation": "kl_zero", "ce_loss_score": "ce_score",
    "kl_div_score": "kl_score",
}  # fmt: skip


@pytest.mark.parametrize("config", SAES, ids=["topk", "standard"])
def test_without_special_tokens_everything_agrees(
    config: dict[str, Any], pocket: LanguageModel, hooked: HookedTransformer
) -> None:
    tokens = _tokens(pocket)
    sae = _half_good_sae(pocket, tokens, config)
    ours, theirs = _both(sae, pocket, hooked, tokens)
    for peer, own in (SAME | WITH_ABLATION).items():
        assert ours[own] == pytest.approx(theirs[peer], rel=1e-5), own
    assert 0 < ours["ce_score"] < 1 and 0 < ours["kl_score"] < 1


def test_with_bos_and_eos_all_but_the_ablation_agrees(pocket: LanguageModel, hooked: HookedTransformer) -> None:
    """SAEBench zeroes special positions too, in the ablated run only: its scores are of another, worse model."""
    tokens = _tokens(pocket)
    tokens[:, 0] = pocket.bos_token_id
    tokens[1, 9] = pocket.tokenizer.eos_token_id
    sae = _half_good_sae(pocket, tokens, SAES[0])
    ours, theirs = _both(sae, pocket, hooked, tokens)
    for peer, own in SAME.items():
        assert ours[own] == pytest.approx(theirs[peer], rel=1e-5), own
    assert ours["ce_zero"] != pytest.approx(theirs["ce_loss_with_ablation"], rel=1e-4)
    ce_score = (theirs["ce_loss_with_ablation"] - ours["ce_sae"]) / (theirs["ce_loss_with_ablation"] - ours["ce_clean"])
    assert ce_score == pytest.approx(theirs["ce_loss_score"], rel=1e-5)


def test_its_mse_is_ours_times_the_width_over_the_number_of_tokens(
    pocket: LanguageModel, hooked: HookedTransformer
) -> None:
    """SAEBench divides each token's squared error by the number of tokens of its batch, not by d_in."""
    tokens = _tokens(pocket)
    sae = _half_good_sae(pocket, tokens, SAES[0])
    for batch in (CONTEXTS, CONTEXTS // 2):
        ours, theirs = _both(sae, pocket, hooked, tokens, batch)
        assert theirs["mse"] * batch * POSITIONS / pocket.d_in == pytest.approx(ours["mse"], rel=1e-5)


def test_its_explained_variance_is_something_else(pocket: LanguageModel, hooked: HookedTransformer) -> None:
    """Ours is 1 - R / V with the variance V of the rows. SAEBench puts S - (S / d)^2 in place of V, where S is the mean
    squared norm: the rows' scale decides how far that is from a variance."""
    tokens = _tokens(pocket)
    sae = _half_good_sae(pocket, tokens, SAES[0])
    ours, theirs = _both(sae, pocket, hooked, tokens)
    x = pocket.residual_stream(tokens).flatten(0, 1).double()
    error = (x - sae(x.float()).double()).square().sum(dim=1).mean()
    variance = (x - x.mean(dim=0)).square().sum(dim=1).mean()
    s = x.square().sum(dim=1).mean()
    assert ours["explained_variance"] == pytest.approx(1 - float(error / variance), rel=1e-5)
    assert theirs["explained_variance"] == pytest.approx(1 - float(error / (s - (s / pocket.d_in) ** 2)), rel=1e-4)
    assert not math.isclose(ours["explained_variance"], theirs["explained_variance"], rel_tol=0.01)


def _tokens(pocket: LanguageModel) -> Tensor:
    """Ordinary tokens only."""
    ordinary = [token for token in range(pocket.vocab_size) if token not in pocket.special_ids]
    drawn = torch.randint(len(ordinary), (CONTEXTS, POSITIONS), generator=torch.Generator().manual_seed(0))
    return torch.tensor(ordinary)[drawn]


def _half_good_sae(pocket: LanguageModel, tokens: Tensor, config: dict[str, Any]) -> Autoencoder:
    """An SAE whose latents point at tokens of these contexts: it reconstructs something, and not everything."""
    x = pocket.residual_stream(tokens).flatten(0, 1)
    sae = build_autoencoder(sae_config({"d_sae": 100, "subtract_b_dec": True, **config}), pocket.d_in)
    centred = x[:100] - x.mean(dim=0)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(dim=0))
        sae.W_dec.copy_(centred / centred.norm(dim=1, keepdim=True) * torch.linspace(0.5, 2, 100)[:, None])
        sae.W_enc.copy_((centred / centred.norm(dim=1, keepdim=True)).T * 0.5)
        sae.b_enc.fill_(-0.5 if config["architecture"] == "topk" else -3.0)
    return sae.requires_grad_(False)


def _both(
    sae: Autoencoder, pocket: LanguageModel, hooked: HookedTransformer, tokens: Tensor, batch: int = CONTEXTS
) -> tuple[dict[str, float], dict[str, float]]:
    ours, _ = evaluate_reconstruction(sae, pocket, build_core_reference(pocket, tokens, batch))
    # L1 depends on how a decoder's norms are shared with the activations: SAEBench is given unit decoders.
    with torch.no_grad():
        f = sae.encode(pocket.residual_stream(tokens)[~torch.isin(tokens, torch.tensor(sorted(pocket.special_ids)))])
        ours["l1"] = float((f * sae.W_dec.norm(dim=1)).sum(dim=1).mean())
    return ours, run_core(sae, pocket, hooked, tokens, batch)
