"""The packaged language model, as we hold it and as TransformerLens does."""

from __future__ import annotations

from typing import Any

import pytest

from sae_lib.language_model import LanguageModel
from sae_lib.profile import ModelConfig


@pytest.fixture(scope="session")
def pocket() -> LanguageModel:
    return LanguageModel.load(ModelConfig(name="pocket", layer=2, dtype="float32", device="cpu"), whole=True)


@pytest.fixture(scope="session")
def hooked(pocket: LanguageModel) -> Any:
    """The same weights in TransformerLens, which SAEBench reads."""
    from benchmarks.saebench import hooked_transformer

    return hooked_transformer(pocket)
