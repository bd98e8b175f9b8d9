"""What a run folder, and what lies beside it, say about an SAE. Nothing is added to it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import WEIGHTS_FILE, load_autoencoder
from sae_lib.autoencoders.config import SAEConfig
from sae_lib.data.store_manifest import MANIFEST, content_key
from sae_lib.metrics.scores import SCORES
from sae_lib.profiles.profile import load_profile
from sae_lib.share.origin import Place, place
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import read_json

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Facts:
    """One trained SAE. None or empty: nothing says."""

    run: str
    """Name of the run folder."""
    method: str
    """Key in `METHODS`."""
    config: SAEConfig
    place: Place
    seed: int
    steps: int
    tokens: int
    context_length: int | None
    dataset: str | None
    """Hub id of the training text."""
    scores: dict[str, float]


def read_run(folder: Path) -> tuple[Autoencoder, Facts]:
    """The SAE of a finished run folder and what is known about it.

    Raises:
        ArtifactError: no such folder, no run in it, a run that has not finished, damaged files.
    """
    if not folder.is_dir():
        raise ArtifactError(f"run: there is no folder {folder}; give a folder of build/<profile>/runs")
    if not (folder / RUN_FILE).is_file():
        started = any(folder.glob("checkpoint*")) or (folder / WEIGHTS_FILE).is_file()
        fault = "has not finished training; run make paper to the end" if started else "is no run of this project"
        raise ArtifactError(f"run: {folder} {fault} (it has no {RUN_FILE})")
    run = read_json(folder / RUN_FILE)
    if not isinstance(run, dict) or not {"method", "seed", "steps", "tokens"} <= set(run):
        raise ArtifactError(f"run: {folder / RUN_FILE} names no method, seed, steps and tokens; train this SAE again")
    sae = load_autoencoder(folder)
    store = _store(folder, run)
    model, layer = (run.get(key, store.get(key)) for key in ("model", "layer"))
    return sae, Facts(
        run=folder.resolve().name,
        method=run["method"],
        config=sae.cfg,
        place=place(model, layer),
        seed=run["seed"],
        steps=run["steps"],
        tokens=run["tokens"],
        context_length=store.get("positions"),
        dataset=_dataset(folder, (model, layer, sae.d_sae)),
        scores=_scores(folder),
    )


def _store(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the activations that the SAE was trained on, if they lie where this project keeps them."""
    file = folder.resolve().parent.parent / "store" / MANIFEST
    manifest: dict[str, Any] = read_json(file) if file.is_file() else {}
    key = content_key(manifest)
    # An untrained SAE has read nothing: it names no store, and belongs to the one beside it.
    return manifest if run.get("store_key", key) == key else {}


def _dataset(folder: Path, read: tuple[str | None, int | None, int]) -> str | None:
    """The text of the profile that the run lies in, if it has this model, layer and width."""
    with suppress(ArtifactError):
        found = load_profile(folder.resolve().parent.parent.name)
        if (found.model.name, found.model.layer, found.training.d_sae) == read and found.corpus.source == "hub":
            return found.corpus.name
    return None


def _scores(folder: Path) -> dict[str, float]:
    """Every score that is kept with the run, by name; what could not be measured is left out."""
    scores: dict[str, float] = {}
    for name in SCORES:
        file = folder / f"{name}.json"
        if file.is_file():
            summary = read_json(file).get("summary", {})
            scores |= {key: value for key, value in summary.items() if isinstance(value, int | float)}
    return scores
