"""Circuits on a tiny language model: the gradient, and SAEs of which it is known what they leave."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption import answers
from sae_lib.metrics.absorption.answers import (
    ALONE,
    COLUMNS,
    Questions,
    build_circuit_reference,
    letter_circuits,
)
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from tests.metrics.tiny_saes import absorption_inputs, sae_of

CONFIG = AbsorptionConfig(icl_examples=2, probe_epochs=20, lm_batch=16, min_probe_f1=0.0)


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> AbsorptionReference:
    return build_absorption_reference(lm, CONFIG, tmp_path_factory.mktemp("reference"))


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FOUND_ON", 2)
    monkeypatch.setattr(answers, "TRIED_ON", 1)


def circuits_of(sae: Autoencoder, lm: LanguageModel, reference: AbsorptionReference, folder: Path) -> pd.DataFrame:
    return letter_circuits(sae, absorption_inputs(lm, reference, CONFIG, folder))


def exact(d: int, share: float = 1.0) -> Autoencoder:
    """Latents are the positive and negative parts of each dimension: all of x, or that share of it."""
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return sae_of(share * both.T, both)


@pytest.mark.parametrize("resumes", [True, False])
def test_gradients_add_up_to_the_difference(
    lm: LanguageModel, reference: AbsorptionReference, monkeypatch: pytest.MonkeyPatch, resumes: bool
) -> None:
    """The integral of a gradient along a way is what its ends differ by."""
    monkeypatch.setattr(LanguageModel, "can_resume", lambda self, tokens: resumes)
    some = Questions.of_scored(lm, reference, CONFIG).of(slice(20))
    x, start = reference.scored_activations[:20], reference.scored_activations.mean(dim=0)
    monkeypatch.setattr(answers, "STEPS", 40)
    gradient = some.gradients(x, start, 7)
    (falls,) = some.falls([x - start], 7).T
    assert falls.abs().max() > 1e-3
    torch.testing.assert_close((gradient * (x - start)).sum(dim=1), falls, rtol=0.02, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_an_sae_that_loses_nothing(lm: LanguageModel, reference: AbsorptionReference, tmp_path: Path) -> None:
    """Its latents alone are as good as everything, and its error carries nothing; all of them are a whole circuit."""
    found = circuits_of(exact(lm.d_in), lm, reference, tmp_path)
    assert found["all_latents"].tolist() == pytest.approx([1.0] * len(found), abs=1e-4)
    assert found["error"].abs().max() < 1e-4
    last = found.iloc[-1]  # more nodes than there are latents
    assert last["faithful"] == pytest.approx(1.0, abs=1e-4) and abs(last["outside"]) < 1e-4
    assert found["letters"].min() > 3 and (found["words"] == found["letters"]).all()


def test_an_sae_that_finds_nothing(lm: LanguageModel, reference: AbsorptionReference, tmp_path: Path) -> None:
    found = circuits_of(exact(lm.d_in, share=0.0), lm, reference, tmp_path)
    assert found[["faithful", "all_latents"]].abs().max(axis=None) < 1e-4
    for column in ("error", "outside"):
        assert found[column].tolist() == pytest.approx([1.0] * len(found), abs=1e-4)


def test_a_circuit_written_out_word_by_word(lm: LanguageModel, reference: AbsorptionReference, tmp_path: Path) -> None:
    """n = 3: the latents of a letter by their effects, all else at its mean, in whole forward passes."""
    sae, of = exact(lm.d_in), build_circuit_reference(absorption_inputs(lm, reference, CONFIG, tmp_path))
    found = circuits_of(sae, lm, reference, tmp_path).set_index("n")
    asks = Questions.of_scored(lm, reference, CONFIG)
    x = reference.scored_activations
    with torch.no_grad():
        f, rows = sae.encode(x), sae.W_dec
    mean, mean_f = x[of.found_on].mean(dim=0), f[of.found_on].mean(dim=0)

    @torch.no_grad()
    def m(word: int, at_word: torch.Tensor) -> float:
        def spliced(residual: torch.Tensor) -> torch.Tensor:
            changed = residual.clone()
            changed[0, asks.position[word]] = at_word
            return changed

        logits = lm.logits(asks.tokens[word : word + 1], spliced)[0, asks.asked[word], asks.answers]
        return float(logits[asks.labels[word]] - logits.mean())

    inside, outside, nothing, everything = 0.0, 0.0, 0.0, 0.0
    for place, word in enumerate(of.tried_on.tolist()):
        by = [(of.gradient[i] @ rows.T) * (f[of.found_on[i]] - mean_f) for i in (2 * place, 2 * place + 1)]
        best = (by[0] + by[1]).abs().topk(3).indices
        circuit = (f[word, best] - mean_f[best]) @ rows[best]
        assert asks.labels[word] == asks.labels[of.found_on[2 * place]]
        inside += m(word, mean + circuit)
        outside += m(word, x[word] - circuit)
        nothing += m(word, mean)
        everything += m(word, x[word])
    expected = [(each - nothing) / (everything - nothing) for each in (inside, outside)]
    assert found.loc[3, [*COLUMNS]].tolist() == pytest.approx(expected, abs=1e-3)
    assert found.loc[3, "whole"] == pytest.approx((everything - nothing) / len(of.tried_on), abs=1e-4)


def test_gradients_are_computed_once(
    lm: LanguageModel, reference: AbsorptionReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_circuit_reference(absorption_inputs(lm, reference, CONFIG, tmp_path))
    monkeypatch.setattr(Questions, "gradients", None)
    again = build_circuit_reference(absorption_inputs(lm, reference, CONFIG, tmp_path))
    assert torch.equal(first.gradient, again.gradient) and torch.equal(first.tried_on, again.tried_on)
    assert not set(first.found_on.tolist()) & set(first.tried_on.tolist()), "found on some words, tried on others"


def test_without_letters_there_is_no_row(lm: LanguageModel, reference: AbsorptionReference, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"min_probe_f1": 1.0})
    none = letter_circuits(exact(lm.d_in), absorption_inputs(lm, reference, config, tmp_path))
    assert none.empty and {"n", *COLUMNS, *ALONE} <= set(none.columns)
