"""The `gemma-2-2b` profile on a model with random weights: same code, same sizes (or divided ones), no download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from benchmarks.random_model import save_random_gemma, write_documents
from sae_lib.data.model_loading import POCKET_FOLDER
from sae_lib.profiles.profile import load_profile
from sae_lib.util.files import atomic_write

BASE = "gemma-2-2b"


def write_profile(
    folder: Path,
    sizes: Mapping[str, Any],
    *,
    name: str,
    layer: int,
    d_sae: int,
    train_tokens: int,
    steps: int,
    batch: int,
    dtype: str,
    device: str,
    max_words: int | None = None,
) -> Path:
    """Make a random model of these sizes and its text in `folder`; returns the profile's YAML file.

    Everything else is as in `gemma-2-2b`: L0 at the same share of the latents, schedules at the same share of the
    steps.
    """
    base = load_profile(BASE)
    model = save_random_gemma(folder / "model", sizes, dtype=dtype, device=device)
    held_out = min(base.data.held_out_contexts, max(16, train_tokens // 2000))
    words = (train_tokens + 4 * held_out * base.data.context_length) * 2
    text = write_documents(folder / "text.jsonl", words, AutoTokenizer.from_pretrained(POCKET_FOLDER))
    k = max(1, round(320 / 16384 * d_sae))
    values = base.model_dump(mode="json")
    values |= {
        "name": name,
        "description": "gemma-2-2b's pipeline on random weights and random words",
        "model": {"name": str(model), "layer": layer, "dtype": dtype, "device": device},
        "corpus": {"source": "files", "files": [str(text)], "held_out_fraction": 0.1, "calibration_fraction": 0.1},
        "methods": {method: {key: k for key in told} for method, told in base.methods.items()},
        "as_written": {},
    }
    values["data"] |= {
        "train_tokens": train_tokens, "batch_tokens": batch, "held_out_contexts": held_out, "calibration_contexts": 8,
    }  # fmt: skip
    values["training"] |= {
        "d_sae": d_sae, "steps": steps, "schedule_scale": steps / base.training.steps, "seeds": [42],
        "ablation_seeds": [42], "checkpoint_every": max(1, steps // 5), "log_every": max(1, min(50, steps // 5)),
        "autocast": base.training.autocast if device != "cpu" else "none",
    }  # fmt: skip
    values["sweep"] |= {"target_l0": k}
    values["evaluation"]["absorption"] |= {"max_words": max_words}
    file = folder / f"{name}.yaml"
    with atomic_write(file) as stream:
        yaml.safe_dump(values, stream, sort_keys=False)
    return file
