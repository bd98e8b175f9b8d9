"""Surroundings of every test: shapes are checked, no network, one thread, output in a folder of its own."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

from tests import type_checks

# Read when the Hugging Face libraries are imported, which no module does before its tests are collected.
CACHE = tempfile.TemporaryDirectory(prefix="sae-lib-tests-")
os.environ["HF_DATASETS_CACHE"] = CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"

torch.set_num_threads(1)
# Every jaxtyping signature of the package is checked at each call.
install_import_hook("sae_lib", f"{type_checks.__name__}.numeric_tower")


@pytest.fixture(autouse=True)
def output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whatever a test makes the package write goes here."""
    folder = tmp_path / "output"
    monkeypatch.setenv("SAE_LIB_OUTPUT", str(folder))
    return folder
