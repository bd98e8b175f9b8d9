"""A whole run on language models of which no letter can be asked: it says so first, and finishes all the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.profiles.profile import load_profile
from sae_lib.report.names import NOT_MEASURABLE
from sae_lib.study.experiment import Experiment
from sae_lib.study.measures import foreseen, measures
from sae_lib.study.scoring import score_inputs
from sae_lib.util.paths import Paths
from tests.faults import small_artifact
from tests.tiny_models import configuration, save_tiny_model


def write(folder: Path, words: bool) -> Path:
    """The small artifact on an untrained model, with the packaged vocabulary or with one that has no words."""
    profile, model = small_artifact.write(folder), folder / "model"
    if words:
        tokenizer = AutoTokenizer.from_pretrained(POCKET_FOLDER)
        torch.manual_seed(0)
        changed = configuration("llama").to_dict() | {"vocab_size": len(tokenizer)}
        LlamaForCausalLM(LlamaConfig(**changed)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    else:
        save_tiny_model(model, "llama")
        generator = random.Random(0)
        texts = [" ".join(f"w{generator.randrange(4, 40)}" for _ in range(60)) for _ in range(120)]
        for name in ("text", "labelled"):
            rows = [{"text": text, "label": f"{i % 2}"} for i, text in enumerate(texts)]
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    content = yaml.safe_load(profile.read_text())
    content["model"] |= {"name": str(model), "layer": 1}
    content["corpus"] |= {"lessons_fraction": 0.0}
    profile.write_text(yaml.safe_dump(content))
    return profile


@pytest.mark.parametrize("words", [True, False])
def test_everything_else_is_finished(tmp_path: Path, words: bool, capsys: pytest.CaptureFixture[str]) -> None:
    profile = write(tmp_path, words)
    loaded, paths = load_profile(profile), Paths(small_artifact.NAME)
    assert foreseen(loaded, paths)["absorption"].startswith(NOT_MEASURABLE) != words
    assert small_artifact.run(profile, lambda stage: None) == ["01_data", "02_train", "03_paper"]
    rows = pd.read_parquet(paths.results / "evaluation_main.parquet")
    assert rows["absorption_fraction"].isna().all() and rows["context_firing"].isna().all()
    there = ["explained_variance", "ce_score", "probing_k1", "token_change"]
    assert rows[there].notna().all(axis=None)
    table = (paths.figures / "table_main.md").read_text(encoding="utf8")
    assert f"{NOT_MEASURABLE.capitalize()}: absorption, fraction" in table and "CE score" in table
    found = measures(score_inputs(Experiment.open(str(profile))))
    assert (
        found["absorption"].startswith(f"{NOT_MEASURABLE}: ") and found["reconstruction, sparse probing"] == "measured"
    )
