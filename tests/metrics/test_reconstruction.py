"""Reconstruction metrics by hand, and behaviour with SAEs whose effect is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics import core_reference
from sae_lib.metrics.core_reference import build_core_reference, distribution, loss_sums
from sae_lib.metrics.reconstruction import ReconstructionSums, evaluate_reconstruction, reconstruction_statistics
from sae_lib.util.errors import ArtifactError
from tests.metrics.tiny_saes import make_sae, sae_of

D_IN = 32


def identity_sae() -> Autoencoder:
    """x_hat = x: one latent for the positive part of each axis and one for the negative part."""
    axes = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    return sae_of(axes.T, axes)


def zero_sae() -> Autoencoder:
    """x_hat = 0: no latent is ever on."""
    return sae_of(torch.zeros(D_IN, 4), torch.eye(4, D_IN))


@pytest.fixture(scope="module")
def tokens(lm) -> torch.Tensor:
    """Seven contexts of random text; BOS in front, an EOS in the middle of two, padding at the end of one."""
    tokens = torch.randint(3, lm.vocab_size, (7, 24), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    tokens[2, 10] = tokens[5, 3] = 1
    tokens[6, 20:] = 2
    return tokens


@pytest.fixture(scope="module")
def reference(lm, tokens):
    return build_core_reference(lm, tokens, batch=3)


def test_metrics_by_hand():
    # Two rows, two latents of which the second is never on.
    #   x = (3, 4), (1, 0); f = (2, 0), (0, 0); x_hat = (3, 0), (0, 0)
    # squared errors 16 and 1; cosines 9 / (5 * 3) = .6 and 0; the mean of x is (2, 2),
    # and ||x - mean||^2 is 1 + 4 = 5 for both rows.
    sae = sae_of(torch.tensor([[2 / 3, 0.0], [0.0, 0.0]]), torch.tensor([[1.5, 0.0], [0.0, 0.0]]))
    with torch.no_grad():
        sums = ReconstructionSums(sae)
        sums.reconstruct(torch.tensor([[3.0, 4.0]]))
        sae.W_enc.zero_()
        sums.reconstruct(torch.tensor([[1.0, 0.0]]))
    metrics = sums.metrics(variance=5.0)
    assert metrics == pytest.approx(
        {
            "l0": 0.5,
            "l1": 1.0,
            "mse": 17 / 4,
            "cosine": 0.3,
            "explained_variance": 1 - 8.5 / 5,
            "dead_fraction": 0.5,
        }
    )
    assert sums.density().tolist() == [0.5, 0]


def test_explained_variance_is_centred():
    # Predicting the mean explains nothing, however far the mean is from zero.
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 100
    sae = sae_of(torch.zeros(8, 3), torch.zeros(3, 8))
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    metrics, density = reconstruction_statistics(sae, x)
    assert metrics["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert metrics["mse"] == pytest.approx(x.var(0, correction=0).mean().item(), rel=1e-4)
    assert metrics["l0"] == 0 and metrics["dead_fraction"] == 1 and density.tolist() == [0, 0, 0]


def test_statistics_agree_with_whole_tensors():
    x = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))  # more than one chunk
    sae = make_sae(architecture="topk", d_sae=48, k=5, d_in=16, seed=1)
    metrics, density = reconstruction_statistics(sae, x)
    with torch.no_grad():
        f = sae.encode(x)
        x_hat = sae.decode(f)
    assert metrics["mse"] == pytest.approx(F.mse_loss(x_hat, x).item(), rel=1e-5)
    assert metrics["l0"] == pytest.approx((f != 0).sum(1).float().mean().item())
    assert metrics["cosine"] == pytest.approx(F.cosine_similarity(x, x_hat).mean().item(), rel=1e-5)
    residual, total = (x - x_hat).var(0, correction=0), x.var(0, correction=0)
    shift = (x - x_hat).mean(0).square()
    assert metrics["explained_variance"] == pytest.approx(1 - ((residual + shift).sum() / total.sum()).item(), rel=1e-4)
    torch.testing.assert_close(density, (f != 0).float().mean(0))


def test_reference_by_an_independent_route(lm, tokens, reference):
    kept = tokens > 2
    with torch.no_grad():
        output = lm.model(tokens, output_hidden_states=True)
    rows = output.hidden_states[2][kept].double()
    torch.testing.assert_close(reference.mean, rows.mean(0), atol=1e-6, rtol=1e-5)
    assert reference.variance == pytest.approx(rows.var(0, correction=0).sum().item(), rel=1e-6)
    # Positions whose own token is special predict nothing that counts; the last position has no target.
    losses = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    assert reference.ce_clean == pytest.approx(losses[kept[:, :-1]].mean().item(), rel=1e-5)
    assert torch.equal(reference.kept, kept)


def test_kl_by_an_independent_route(lm, tokens, reference):
    kept = tokens > 2
    with torch.no_grad():
        clean = lm.logits(tokens).double()
        zeroed = lm.logits(tokens, lambda residual: residual * ~kept[..., None]).double()
    kl = F.kl_div(zeroed.log_softmax(-1), clean.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert reference.kl_zero == pytest.approx(kl[kept].mean().item(), rel=1e-4)
    assert reference.kl_zero > 0


def test_the_identity_loses_nothing(lm, reference):
    metrics, density = evaluate_reconstruction(identity_sae(), lm, reference, batch=2)
    assert metrics["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert metrics["ce_score"] == metrics["ce_score_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["kl_score"] == pytest.approx(1, abs=1e-5)
    assert metrics["cosine"] == pytest.approx(1, abs=1e-6)
    assert metrics["mse"] == pytest.approx(0, abs=1e-10)
    # Each axis is positive or negative: one latent of each pair is on.
    assert metrics["l0"] == pytest.approx(D_IN)
    assert metrics["tokens"] == int(reference.kept.sum())
    torch.testing.assert_close(density[:D_IN] + density[D_IN:], torch.ones(D_IN))


def test_the_mean_scores_zero_against_the_mean(lm, tokens, reference):
    sae = zero_sae()
    with torch.no_grad():
        sae.b_dec.copy_(reference.mean)
        kept = (tokens > 2)[..., None]
        logits = lm.logits(tokens, lambda residual: torch.where(kept, reference.mean.float(), residual))
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    assert reference.ce_mean == pytest.approx(losses[kept[:, :-1, 0]].mean().item(), rel=1e-5)
    metrics, _ = evaluate_reconstruction(sae, lm, reference, batch=4)
    assert metrics["ce_sae"] == pytest.approx(metrics["ce_mean"]) and metrics["ce_mean"] == reference.ce_mean
    assert metrics["ce_score_mean"] == pytest.approx(0, abs=1e-5)


def test_zeros_score_zero(lm, reference):
    metrics, density = evaluate_reconstruction(zero_sae(), lm, reference, batch=5)
    assert metrics["ce_score"] == pytest.approx(0, abs=1e-6)
    assert metrics["kl_score"] == pytest.approx(0, abs=1e-6)
    assert metrics["ce_sae"] == pytest.approx(reference.ce_zero)
    assert metrics["cosine"] == 0 and metrics["dead_fraction"] == 1 and metrics["l1"] == 0
    assert density.tolist() == [0] * 4


def test_special_positions_are_neither_replaced_nor_counted(lm, tokens, reference):
    kept = tokens > 2
    seen = []

    class Watching(type(zero_sae())):  # type: ignore[misc]
        def encode(self, x):
            seen.append(x.clone())
            return super().encode(x)

    sae = zero_sae()
    sae.__class__ = Watching
    metrics, _ = evaluate_reconstruction(sae, lm, reference, batch=7)
    torch.testing.assert_close(torch.cat(seen), lm.residual_stream(tokens)[kept])
    assert metrics["tokens"] == int(kept.sum()) == 7 * 24 - 7 - 2 - 4
    # Replacing special positions as well gives another loss: that is what is not done.
    with torch.no_grad():
        everything = lm.logits(tokens, torch.zeros_like)[:, :-1].transpose(1, 2)
    losses = F.cross_entropy(everything, tokens[:, 1:], reduction="none")[kept[:, :-1]]
    assert abs(losses.mean().item() - metrics["ce_sae"]) > 1e-3


def test_batches_and_chunks_do_not_matter(lm, tokens, reference, monkeypatch):
    sae = make_sae(architecture="topk", d_sae=64, k=8, d_in=D_IN, seed=1)
    whole, _ = evaluate_reconstruction(sae, lm, reference, batch=7)
    monkeypatch.setitem(core_reference._CHUNK_ELEMENTS, "cpu", 5 * lm.vocab_size)
    parts, _ = evaluate_reconstruction(sae, lm, reference, batch=2)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert build_core_reference(lm, tokens, batch=2).ce_zero == pytest.approx(reference.ce_zero, rel=1e-5)
    assert whole["kl_sae"] > 0
    # The SAE's numbers on the rows alone are the same.
    rows = lm.residual_stream(tokens)[tokens > 2]
    alone, density = reconstruction_statistics(sae, rows)
    assert alone == pytest.approx({name: whole[name] for name in alone}, rel=1e-4)
    assert density.shape == (64,)


def spliced_by_whole_passes(sae, lm, tokens) -> tuple[float, float]:
    """CE and KL of an SAE from two whole forward passes, in float64."""
    kept = tokens > 2
    with torch.no_grad():

        def splice(residual):
            return torch.where(kept[..., None], sae(residual), residual)

        log_p, log_q = (lm.logits(tokens, how).double().log_softmax(-1) for how in (None, splice))
    ce = -log_q[:, :-1].gather(2, tokens[:, 1:, None])[..., 0][kept[:, :-1]].mean()
    return ce.item(), (log_p.exp() * (log_p - log_q)).sum(-1)[kept].mean().item()


@pytest.mark.parametrize("path", ["in memory", "head again", "whole passes"])
def test_every_path_gives_the_loss_of_whole_passes(lm, tokens, reference, monkeypatch, path):
    sae = make_sae(architecture="topk", d_sae=64, k=8, d_in=D_IN, seed=1)
    assert reference.residual is not None
    if path == "head again":
        monkeypatch.setattr(core_reference, "_DISTRIBUTION_BYTES", 0)
    if path == "whole passes":
        monkeypatch.setattr(core_reference, "_STATE_BYTES", 0)
        reference = build_core_reference(lm, tokens, batch=3)
        assert reference.residual is None
    calls = count_calls(monkeypatch, "head", "logits")
    metrics, _ = evaluate_reconstruction(sae, lm, replace(reference), batch=2)
    ce, kl = spliced_by_whole_passes(sae, lm, tokens)
    assert metrics["ce_sae"] == pytest.approx(ce, abs=1e-6)
    assert metrics["kl_sae"] == pytest.approx(kl, abs=1e-6)
    assert kl > 1e-3
    assert ("head" in calls) == (path != "whole passes")


def count_calls(monkeypatch, *names) -> list[str]:
    """The names of these methods of a language model, one for each call."""
    calls: list[str] = []
    for name in names:
        original = getattr(LanguageModel, name)

        def counting(self, *arguments, original=original, name=name):
            calls.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(LanguageModel, name, counting)
    return calls


def test_the_clean_distributions_are_computed_for_the_first_sae_only(lm, reference, monkeypatch):
    fresh = replace(reference)
    calls = count_calls(monkeypatch, "head", "residual_stream")
    evaluate_reconstruction(zero_sae(), lm, fresh, batch=7)
    first = len(calls)
    evaluate_reconstruction(zero_sae(), lm, fresh, batch=7)
    assert len(calls) - first < first
    assert "residual_stream" not in calls


def test_the_reference_is_read_from_disk_the_second_time(lm, tokens, reference, monkeypatch, tmp_path):
    written = build_core_reference(lm, tokens, batch=3, folder=tmp_path)
    calls = count_calls(monkeypatch, "residual_stream", "logits", "resume", "head")
    read = build_core_reference(lm, tokens, batch=3, folder=tmp_path)
    assert calls == []
    for name in ("tokens", "kept", "mean", "residual", "hidden"):
        assert torch.equal(getattr(read, name), getattr(written, name))
        assert torch.equal(getattr(read, name), getattr(reference, name))
    for name in ("variance", "ce_clean", "ce_zero", "ce_mean", "kl_zero"):
        assert getattr(read, name) == getattr(written, name)
    sae = make_sae(architecture="topk", d_sae=64, k=8, d_in=D_IN, seed=1)
    assert evaluate_reconstruction(sae, lm, read)[0] == evaluate_reconstruction(sae, lm, written)[0]


def test_other_tokens_models_and_damaged_files_are_computed(lm, tokens, monkeypatch, tmp_path):
    first = build_core_reference(lm, tokens, batch=7, folder=tmp_path)
    other = tokens.clone()
    other[0, 1] = 3 + (int(other[0, 1]) - 2) % 5
    assert build_core_reference(lm, other, batch=7, folder=tmp_path).ce_clean != first.ce_clean
    renamed = LanguageModel(lm.model, lm.tokenizer, name="tiny", layer=1, whole=True, identity="tiny-2")
    build_core_reference(renamed, tokens, batch=7, folder=tmp_path)
    assert len(list(tmp_path.glob("core-*.json"))) == 3
    for file in tmp_path.glob("core-*.safetensors"):
        file.write_bytes(file.read_bytes()[:-4])
    calls = count_calls(monkeypatch, "residual_stream")
    assert build_core_reference(lm, tokens, batch=7, folder=tmp_path).ce_clean == first.ce_clean
    assert calls


def test_losses_by_hand():
    # Clean p = (1/2, 1/4, 1/4), changed q = (1/4, 1/4, 1/2) plus a shift of the logits, which changes nothing.
    # CE of token 2: log 2. KL = 1/2 log 2 + 0 + 1/4 log 1/2 = 1/4 log 2. The second position has no next token.
    p = torch.tensor([[0.5, 0.25, 0.25]]).repeat(2, 1)
    q = torch.tensor([[0.25, 0.25, 0.5]]).repeat(2, 1)
    ce, kl, predictions = loss_sums(q.log() + 3, torch.tensor([2, -1]), distribution(p.log() - 5)).tolist()
    assert ce == pytest.approx(math.log(2), rel=1e-6)
    assert kl == pytest.approx(2 * math.log(2) / 4, rel=1e-6)
    assert predictions == 1


def test_a_model_that_zeros_do_not_change_has_no_score(lm, reference):
    metrics, _ = evaluate_reconstruction(
        identity_sae(), lm, replace(reference, ce_zero=reference.ce_clean, kl_zero=0.0), batch=7
    )
    assert math.isnan(metrics["ce_score"]) and math.isnan(metrics["kl_score"])


def test_bad_input_is_one_clear_line(lm, reference):
    with pytest.raises(ArtifactError, match="special tokens only"):
        build_core_reference(lm, torch.zeros(2, 8, dtype=torch.long))
    with pytest.raises(ArtifactError, match="d_in is 4"):
        evaluate_reconstruction(sae_of(torch.zeros(4, 3), torch.zeros(3, 4)), lm, reference)
