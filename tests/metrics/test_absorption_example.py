"""The word that explains the metric: its numbers give its score, and no evaluated word scores higher."""

import dataclasses
from pathlib import Path

import pytest
import torch

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.example import explain_word
from sae_lib.metrics.absorption.reference import AbsorptionReference, build_absorption_reference
from sae_lib.metrics.absorption.score import evaluate_absorption
from sae_lib.util.errors import ArtifactError
from tests.metrics.conftest import D_IN
from tests.metrics.tiny_saes import make_sae

CONFIG = AbsorptionConfig(probe_epochs=20, k_max=2)


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> AbsorptionReference:
    folder: Path = tmp_path_factory.mktemp("reference")
    return build_absorption_reference(lm, CONFIG, folder)


@pytest.fixture(scope="module")
def sae() -> Autoencoder:
    return make_sae(d_in=D_IN, architecture="topk", k=4, d_sae=64)


def test_numbers_give_the_score(reference: AbsorptionReference, sae: Autoencoder) -> None:
    example = explain_word(sae, reference, CONFIG, rows=64)
    n = example.numbers
    own = example.latents[example.latents["role"] == "the letter's own"]
    others = example.latents[example.latents["role"] == "can absorb"]
    strongest = others["activation × cosine"].clip(lower=0).nlargest(3)
    assert n["M"] == pytest.approx(own["activation × cosine"].sum(), abs=5e-3)  # the table is rounded
    assert n["T"] == pytest.approx(strongest.sum(), abs=5e-3)
    assert n["T / P"] == pytest.approx(n["T"] / n["P"])
    q = min(n["T"], n["P"] - n["M"])
    expected = 0.0 if n["M"] >= n["P"] or n["T / P"] < 0.4 else 1.0 if n["M"] <= 0 else q / (q + n["M"])
    assert n["fraction"] == pytest.approx(expected, abs=1e-5)
    assert example.word.strip()[0].upper() == example.letter


def test_no_letter_is_absorbed_more_than_its_worst_word(reference: AbsorptionReference, sae: Autoencoder) -> None:
    example = explain_word(sae, reference, CONFIG)
    letters = evaluate_absorption(sae, reference, CONFIG).tables["letters"]
    assert letters["absorption_fraction"].max() > 0
    assert example.numbers["fraction"] >= letters["absorption_fraction"].max()


def test_without_a_letter_there_is_no_word(reference: AbsorptionReference, sae: Autoencoder) -> None:
    silent = dataclasses.replace(reference, probe_f1=[0.0] * 26)
    with pytest.raises(ArtifactError, match="no letter"):
        explain_word(sae, silent, CONFIG)


def test_the_residual_stream_decides_not_the_stored_order(reference: AbsorptionReference, sae: Autoencoder) -> None:
    order = torch.arange(len(reference.scored)).flip(0)
    turned = dataclasses.replace(
        reference, scored=reference.scored[order], scored_activations=reference.scored_activations[order]
    )
    first, second = (explain_word(sae, each, CONFIG) for each in (reference, turned))
    assert first.numbers["fraction"] == pytest.approx(second.numbers["fraction"])
