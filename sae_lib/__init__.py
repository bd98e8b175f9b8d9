"""Sparse autoencoders with temporal mechanisms: trained, measured and reported for two papers.

    import sae_lib

    experiment = sae_lib.Experiment.open("smoke")        # one scale of everything: text, model, activations, runs
    sae = sae_lib.load_sae("build/smoke/runs/RUN")        # takes raw activations: sae.encode(x), sae(x)
    sae_lib.evaluate_sae("FOLDER", "pocket", layer=2)     # any SAE, also of SAELens and dictionary_learning

`autoencoders` and `mechanisms` are what the papers are about; `training` brings them together; `data` is what they
read and `metrics` what is measured; `profiles` and `study` are the experiment, `report` its figures, tables and claims,
`share` what others can use of it. From a shell: `python -m sae_lib --help`.

The names below are imported when they are first used, so that what needs no PyTorch starts without it.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "study.experiment": ("Experiment",),
    "profiles.profile": ("Profile", "load_profile"),
    "autoencoders.base": ("Autoencoder",),
    "autoencoders.standard": ("Standard",),
    "autoencoders.gated": ("Gated",),
    "autoencoders.topk": ("TopK", "BatchTopK"),
    "autoencoders.matryoshka": ("Matryoshka",),
    "autoencoders.jumprelu": ("JumpReLU",),
    "autoencoders.config": ("SAEConfig", "sae_config"),
    "mechanisms.base": ("Mechanism",),
    "mechanisms.temporal_penalty": ("TemporalPenalty",),
    "mechanisms.resampling": ("Resampling",),
    "mechanisms.gradient_scaling": ("GradientScaling",),
    "mechanisms.adaptive_temporal_masking": ("AdaptiveTemporalMasking", "UniformDropout"),
    "autoencoders.method": ("Method", "METHODS"),
    "training.trainer": ("Trainer",),
    "training.run": ("train_sae",),
    "data.language_model": ("LanguageModel",),
    "data.activations": ("ActivationStore",),
    "share.load": ("load_sae",),
    "share.evaluate": ("evaluate_sae",),
    "share.export": ("export_run",),
    "util.errors": ("ArtifactError",),
}
_PLACES = {name: f"sae_lib.{module}" for module, names in _MODULES.items() for name in names}
_ROOMS = (
    "autoencoders", "mechanisms", "training", "data", "metrics", "profiles", "study", "report", "share", "util",
)  # fmt: skip
__all__ = [*_PLACES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"sae_lib.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'sae_lib' has no attribute '{name}'")
    found = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
