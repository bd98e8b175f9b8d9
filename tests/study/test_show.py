"""The notebooks' small tables say what is in the objects that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.topk import TopKConfig
from sae_lib.data.activations import WindowStream
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.metrics.absorption.config import AbsorptionConfig
from sae_lib.metrics.absorption.reference import build_absorption_reference
from sae_lib.metrics.core_reference import build_core_reference
from sae_lib.profiles.profile import load_profile
from sae_lib.profiles.runs import RunSpec
from sae_lib.study.experiment import Experiment
from sae_lib.study.show import (
    ask_first_letters,
    context_text,
    corpus_overview,
    latents_on,
    model_facts,
    probe_letters,
    recipe_table,
    window_table,
)
from tests.metrics.conftest import lm, tokenizer

__all__ = ["lm", "tokenizer"]  # fixtures
SETTINGS = AbsorptionConfig(probe_epochs=2)


def test_corpus_is_counted_by_split(tmp_path: Path) -> None:
    texts = [f"a text with the number {i}, long enough to be one" for i in range(200)]
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(texts), encoding="utf8")
    profile = load_profile("smoke")
    corpus = profile.corpus.model_copy(update={"source": "files", "files": (str(file),), "packages": ()})
    table = corpus_overview(profile.model_copy(update={"corpus": corpus}), tmp_path / "cache")
    assert table.loc["all", "documents"] == 200
    assert table.loc["all", ["train", "held out", "calibration"]].sum() == 200
    assert table.loc["all", "characters"] == sum(map(len, texts))


def test_context_keeps_its_tokens_apart(tokenizer: Any) -> None:
    ids = np.array(tokenizer("\nban", add_special_tokens=False)["input_ids"])
    text = context_text(tokenizer, ids)
    assert text.replace("|", "") == "⏎ban"
    assert text.count("|") == len(ids) - 1
    assert context_text(tokenizer, ids, tokens=1) == "⏎|…"


def test_window_rows_are_those_of_the_stream(lm: LanguageModel, tmp_path: Path) -> None:
    tokens = torch.randint(3, lm.vocab_size, (6, 12), generator=torch.Generator().manual_seed(0)).int().numpy()
    tokens[:, 0] = lm.bos_token_id
    store = harvest(lm, tokens, tmp_path / "store")
    stream = WindowStream(store, 4, 16, seed=0)
    table = window_table(store, stream, tokens, lm.tokenizer, batch=1, window=2)
    batch = stream.batch(1)
    assert table["has_predecessor"].tolist() == batch.has_predecessor[2].tolist()
    assert torch.equal(store.rows(table.index.to_numpy()), batch.activations[2])
    context, position = table.iloc[0][["context", "position"]]
    assert table.iloc[0]["token"] == repr(lm.tokenizer.decode([int(tokens[context, position])]))


def test_model_is_described_and_asked(lm: LanguageModel, tmp_path: Path) -> None:
    tokens = torch.randint(3, lm.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    core = build_core_reference(lm, tokens)
    facts = model_facts(lm, core)["value"]
    assert f"{core.ce_clean:.3f}" in facts.tolist() and "Gemma2ForCausalLM" in facts.tolist()
    asked = ask_first_letters(lm, SETTINGS, n=5)
    assert len(asked) == 5 and asked["probability"].between(0, 1).all()
    assert [eval(word).strip()[0].upper() for word in asked["word"]] == asked["letter"].tolist()
    letters = probe_letters(build_absorption_reference(lm, SETTINGS, tmp_path))
    assert letters["letter"].tolist() == list("abcdefghijklmnopqrstuvwxyz")
    assert (letters["train_words"] > 0).all() and letters["probe_f1"].between(0, 1).all()


@pytest.mark.parametrize(("method", "sparsity"), [("topk", "k = 16"), ("standard", "λ₁, calibrated")])
def test_recipes_name_where_sparsity_comes_from(method: str, sparsity: str) -> None:
    table = recipe_table(load_profile("smoke"), [method])
    assert table["sparsity from"].tolist() == [sparsity]


def test_latents_on_a_sentence(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = build_autoencoder(TopKConfig(d_sae=16, k=3), lm.d_in, seed=1)
    spec = RunSpec(group="main", method="topk", label="", seed=1, config=sae.cfg)
    monkeypatch.setattr(Experiment, "language_model", lambda self, whole: lm)
    monkeypatch.setattr(Experiment, "autoencoder", lambda self, spec: sae)
    experiment = Experiment.open("smoke")
    pieces, latents = latents_on(experiment, "ban ban", {"topk": spec})
    ids = lm.tokenizer("ban ban", add_special_tokens=False)["input_ids"]
    assert "".join(pieces) == "ban ban" and len(pieces) == len(ids)
    residual = lm.residual_stream(torch.tensor([[lm.bos_token_id, *ids]]))[0, 1:].float()
    np.testing.assert_array_equal(latents["topk"], sae.encode(residual).detach().numpy())
