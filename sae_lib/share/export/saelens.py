"""SAELens's folder: `cfg.json` + `sae_weights.safetensors`, as `SAE.load_from_disk` of SAELens 6 reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sae_lib import __version__
from sae_lib.share.export.facts import Facts
from sae_lib.share.export.inference import InferenceForm
from sae_lib.share.saelens import CONFIG, WEIGHTS
from sae_lib.util.files import write_json

# Of the format: files that name a version before 6 are read by other rules.
FORMAT_VERSION = "6.0.0"


def save_saelens(form: InferenceForm, folder: Path, facts: Facts | None = None) -> None:
    """Write an SAE as SAELens does. Its layout is ours, so no weight is changed.

    Raises:
        OSError: the folder cannot be written.
    """
    d_in, d_sae = form.tensors["W_enc"].shape
    config: dict[str, Any] = {
        "architecture": form.architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": form.subtract_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": FORMAT_VERSION, "sae_lens_training_version": None}
        | (_metadata(facts) if facts else {}),
    }
    if form.architecture == "topk":
        config |= {"k": form.k, "rescale_acts_by_decoder_norm": False}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(form.tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def _metadata(facts: Facts) -> dict[str, Any]:
    model_class, hook = facts.place.saelens_hook
    return {
        "model_name": facts.place.model,
        "model_class_name": model_class,
        "model_from_pretrained_kwargs": {},
        "hook_name": hook,
        "hf_hook_name": facts.place.block,
        "hook_head_index": None,
        "context_size": facts.context_length,
        "dataset_path": facts.dataset,
        # Every context opens with BOS; activations of special tokens are left out.
        "prepend_bos": True,
        "exclude_special_tokens": True,
        "training_tokens": facts.tokens,
        "seed": facts.seed,
        "method": facts.method,
        "trained_by": f"sae_lib {__version__}",
    }
