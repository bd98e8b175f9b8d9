"""The carrier test on a tiny language model, with SAEs whose absorbers are known."""

from __future__ import annotations

import math

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption import answers
from sae_lib.metrics.absorption.answers import Questions, carrier_test
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.main_latents import main_latents
from sae_lib.metrics.absorption.planted import plant
from sae_lib.metrics.absorption.reference import (
    AbsorptionReference,
    build_absorption_reference,
    prompts_of_scored,
    residual_at_words,
)
from tests.metrics.tiny_saes import absorption_inputs, sae_of

CONFIG = AbsorptionConfig(icl_examples=2, probe_epochs=20, lm_batch=16)


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> AbsorptionReference:
    return build_absorption_reference(lm, CONFIG, tmp_path_factory.mktemp("reference"))


def along_probes(reference: AbsorptionReference) -> Autoencoder:
    """Latent i is ReLU(x . p_i) and writes along p_i."""
    directions = torch.nn.functional.normalize(reference.probe.weight, dim=1)
    return sae_of(directions.T, directions)


def test_prompts_are_those_that_the_words_were_read_in(lm: LanguageModel, reference: AbsorptionReference):
    prompts, _ = prompts_of_scored(lm, reference, CONFIG)
    assert torch.equal(residual_at_words(lm, prompts, 16, "words"), reference.scored_activations)


@pytest.mark.parametrize("resumes", [True, False])
def test_falls_are_those_of_whole_passes(
    lm: LanguageModel, reference: AbsorptionReference, monkeypatch: pytest.MonkeyPatch, resumes: bool
):
    monkeypatch.setattr(LanguageModel, "can_resume", lambda self, tokens: resumes)
    prompts, pieces = prompts_of_scored(lm, reference, CONFIG)
    labels, x = reference.scored_labels, reference.scored_activations
    answers = torch.tensor([answer[0] for answer in pieces.answers])
    lost = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * x.norm(dim=1, keepdim=True)
    falls = Questions.of_scored(lm, reference, CONFIG).falls([torch.zeros_like(lost), lost], 7)
    assert falls.shape == (len(labels), 2) and not falls[:, 0].any()
    word, at = 3, int(prompts.position[3])
    tokens = prompts.tokens[word : word + 1]

    def spliced(residual: torch.Tensor) -> torch.Tensor:
        changed = residual.clone()
        changed[0, at] -= lost[word]
        return changed

    clean, changed = (lm.logits(tokens, how)[0, at + len(pieces.question), answers] for how in (None, spliced))
    own = [float(z[labels[word]] - z.mean()) for z in (clean, changed)]
    assert float(falls[word, 1]) == pytest.approx(own[0] - own[1], abs=1e-5)
    assert abs(own[0] - own[1]) > 1e-3


def test_what_a_main_latent_writes_is_what_the_probe_reads(lm: LanguageModel, reference: AbsorptionReference):
    """So 'named' and 'direction' are one. No word is absorbed."""
    found = carrier_test(along_probes(reference), absorption_inputs(lm, reference, CONFIG)).set_index("kind")
    assert found.loc["absorbed", "words"] == 0 and math.isnan(found.loc["absorbed", "carried"])
    assert found.loc["found", "words"] > 20
    assert found.loc["found", "named"] == pytest.approx(found.loc["found", "direction"], rel=1e-4)


def test_absorbers_are_taken_out_where_they_are_known(
    lm: LanguageModel, reference: AbsorptionReference, monkeypatch: pytest.MonkeyPatch
):
    """Every word of the SAE above absorbed by a latent of its own, (p + o) / sqrt 2, which writes as much of p."""
    sae = along_probes(reference)
    mains = main_latents(sae, reference, CONFIG)
    monkeypatch.setattr(answers, "main_latents", lambda planted, *_: mains)
    planted = plant(sae, reference, mains, 1.0)
    found = carrier_test(planted, absorption_inputs(lm, reference, CONFIG)).set_index("kind")
    assert found.loc["found", "words"] == 0 and found.loc["absorbed", "words"] > 20
    # Taken out by hand: the activation of the word's own latent, which is behind the others, times its decoder row.
    here = torch.isin(reference.scored_labels, torch.tensor([*mains])).nonzero().flatten()
    own = planted.encode(reference.scored_activations[here])[:, sae.d_sae :] @ planted.W_dec[sae.d_sae :].detach()
    falls = Questions.of_scored(lm, reference, CONFIG).of(here).falls([own], 64)
    if len(falls) <= answers.MOST:
        assert found.loc["absorbed", "named"] == pytest.approx(float(falls.double().mean()), rel=1e-4)
    assert 0.0 <= found.loc["absorbed", "carried"] <= 1.0
