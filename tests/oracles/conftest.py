"""The packaged language model, as we hold it and as TransformerLens does."""

from __future__ import annotations

from typing import Any

import pytest

from sae_lib.data.config import ModelConfig
from sae_lib.data.language_model import LanguageModel


@pytest.fixture(scope="session")
def pocket() -> LanguageModel:
    return LanguageModel.load(ModelConfig(name="pocket", layer=2, dtype="float32", device="cpu"), whole=True)


@pytest.fixture(scope="session")
def hooked(pocket: LanguageModel) -> Any:
    """The same weights in TransformerLens, which SAEBench reads."""
    from benchmarks.saebench import hooked_transformer

    return hooked_transformer(pocket)
