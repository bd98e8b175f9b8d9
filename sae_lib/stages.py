"""The work of the notebooks: harvest, calibrate, train, evaluate. Each call does only what is not done yet."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from sae_lib.activations import ActivationStore
from sae_lib.autoencoders import WEIGHTS_FILE, Autoencoder, build_autoencoder, load_autoencoder
from sae_lib.checkpoint import save_checkpoint
from sae_lib.corpus import build_tokens, load_tokens
from sae_lib.experiments import Calibration, RunSpec, calibration_runs
from sae_lib.files import FolderLock, atomic_write, json_key, read_json, write_json
from sae_lib.harvest import harvest, tokens_sha256
from sae_lib.language_model import LanguageModel
from sae_lib.metrics.absorption.reference import build_absorption_reference
from sae_lib.metrics.absorption.score import LETTER_COLUMNS, evaluate_absorption
from sae_lib.metrics.reconstruction import build_core_reference, evaluate_reconstruction
from sae_lib.model_loading import model_identity
from sae_lib.paths import Paths, output_root
from sae_lib.profile import Profile, load_profile
from sae_lib.source_key import source_key
from sae_lib.training import is_finished, run_key, train_sae

DENSITY_BINS = np.linspace(-6.0, 0.0, 31)  # log10 of the firing rate


@dataclass(frozen=True)
class Experiment:
    """One profile and its folders; what the notebooks hold in their hands."""

    source: str
    """Name or path that the profile was loaded by; worker processes load it again."""
    profile: Profile
    paths: Paths

    @classmethod
    def open(cls, profile: str) -> Experiment:
        """The experiment of the profile with this name or path. Raises ArtifactError for a wrong profile."""
        loaded = load_profile(profile)
        return cls(str(profile), loaded, Paths(loaded.name))

    @property
    def device(self) -> str:
        asked = self.profile.model.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked

    def language_model(self, *, whole: bool) -> LanguageModel:
        """The profile's language model, cut after its layer unless `whole`."""
        return LanguageModel.load(self.profile.model, whole=whole)

    def build_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """Text to contexts (`corpus.build_tokens`); the packaged corpus is cached across profiles."""
        return build_tokens(self.profile, tokenizer, self.paths.tokens, output_root() / "corpus")

    def harvest(self, lm: LanguageModel) -> ActivationStore:
        """The activation store of the training contexts, made or completed."""
        data = self.profile.data
        tokens = load_tokens(self.paths.tokens, "train")
        with tqdm(total=data.train_tokens, desc="harvest", unit="token", unit_scale=True, mininterval=5) as bar:
            return harvest(
                lm, tokens, self.paths.store, shard_rows=data.shard_rows, max_rows=data.train_tokens, check="full",
                progress=lambda done, total: bar.update(done - bar.n),
            )  # fmt: skip

    def open_store(self) -> ActivationStore:
        """The finished activation store. Raises ArtifactError when it was made by another model, layer or corpus."""
        return ActivationStore.open(
            self.paths.store,
            identity=model_identity(self.profile.model),
            corpus_sha256=tokens_sha256(load_tokens(self.paths.tokens, "train")),
            layer=self.profile.model.layer,
        )

    def store(self) -> ActivationStore:
        """The finished activation store, in memory where it fits."""
        store = self.open_store()
        store.preload(self.device)
        return store

    def run_folder(self, spec: RunSpec, store_key: str) -> Path:
        """Where a run lies: named by its content, so the same SAE in two tables is trained once."""
        return self.paths.runs / self.run_key(spec, store_key)[:20]

    def autoencoder(self, spec: RunSpec) -> Autoencoder:
        """The trained SAE of a run, on the CPU."""
        return load_autoencoder(self.run_folder(spec, self.open_store().key))

    def save(self, table: pd.DataFrame, name: str) -> Path:
        """Write a table of results as `<name>.parquet`, whole or not at all; returns the file."""
        path = self.paths.results / f"{name}.parquet"
        with atomic_write(path, "wb") as file:
            table.to_parquet(file, index=False)
        return path

    def run_key(self, spec: RunSpec, store_key: str) -> str:
        key = run_key(spec.config, store_key, self.profile.data, self.profile.training, spec.seed)
        return key if spec.trained else json_key([key, "untrained"])

    def train(self, specs: Sequence[RunSpec], description: str = "train") -> pd.DataFrame:
        """Train what is not trained yet; returns the training curves, one row per logged step."""
        store_key = self.open_store().key
        todo = {self.run_key(spec, store_key): spec for spec in specs}
        waiting = [s for key, s in todo.items() if not is_finished(self.run_folder(s, store_key), key)]
        with FolderLock(self.paths.runs):
            self._parallel(_train_one, waiting, description)
        frames = []
        for spec in (spec for spec in specs if spec.trained):
            folder = self.run_folder(spec, store_key)
            frames.append(_tag(pd.read_parquet(folder / "history.parquet"), spec, folder.name))
        return _concat(frames)

    def calibrate(self) -> Calibration:
        """Choose each L1 method's coefficient so that L0 meets the target on the calibration documents."""
        coefficients: dict[str, float] = {}
        probability = 0.3
        methods = sorted(self.profile.calibration.coefficients, key=lambda name: name == "dropout")
        first = [s for method in methods if method != "dropout" for s in calibration_runs(self.profile, method)]
        self.train(first, "calibrate")
        for method in methods:
            specs = calibration_runs(self.profile, method, probability)
            history = self.train(specs, f"calibrate {method}")
            values = [spec.config.l1_coefficient for spec in specs]
            coefficients[method] = interpolate_coefficient(
                values, self.calibration_l0(specs), self.profile.calibration.target_l0
            )
            if method == "atm":
                probability = round(_mask_rate(history, values, coefficients[method]), 4)
        return Calibration(coefficients=coefficients, dropout_probability=probability)

    def calibration_l0(self, specs: Sequence[RunSpec]) -> list[float]:
        """L0 of trained SAEs on the calibration documents, which no metric uses."""
        store_key = self.open_store().key
        rows = self._calibration_rows
        saes = [load_autoencoder(self.run_folder(spec, store_key)) for spec in specs]
        with torch.no_grad():
            return [float((sae.encode(rows) != 0).float().sum(dim=1).mean()) for sae in saes]

    @cached_property
    def _calibration_rows(self) -> Float[Tensor, "row d_in"]:
        folder = self.paths.reference / "calibration"
        tokens = load_tokens(self.paths.tokens, "calibration")
        store = harvest(self.language_model(whole=False), tokens, folder, check="full")
        return store.rows(np.arange(store.n_rows))

    def prepare_references(self) -> None:
        """What metrics compute once for the language model, so that the workers only read it."""
        build_references(self)

    def evaluate(self, specs: Sequence[RunSpec], description: str = "evaluate") -> Evaluation:
        """Evaluate what is not evaluated yet; one tidy row per SAE, letters and firing rates beside it."""
        store_key = self.open_store().key
        key = self.evaluation_key()
        files = {self.run_folder(spec, store_key): spec for spec in specs}
        waiting = [spec for folder, spec in files.items() if _evaluation(folder, key) is None]
        if waiting:
            self.prepare_references()
        self._parallel(_evaluate_one, waiting, description)
        rows, letters, densities = [], [], []
        for spec in specs:
            folder = self.run_folder(spec, store_key)
            result = _evaluation(folder, key)
            assert result is not None
            run = read_json(folder / "run.json")
            rows.append({"run": folder.name, **describe(spec, run), **result["summary"]})
            letters.append(_tag(pd.DataFrame(result["letters"], columns=LETTER_COLUMNS), spec, folder.name))
            density = pd.DataFrame({"log10_rate_left": DENSITY_BINS[:-1], "count": result["density"]})
            densities.append(_tag(density, spec, folder.name))
        return Evaluation(pd.DataFrame(rows), _concat(letters), _concat(densities))

    def evaluation_key(self) -> str:
        """Content key of an evaluation: model, held-out text, settings, code."""
        tokens = read_json(self.paths.tokens / "manifest.json")["splits"]["held_out"]
        settings = self.profile.evaluation.model_dump(mode="json")
        store = self.open_store()
        return json_key([tokens, settings, store.manifest["identity"], source_key("sae_lib.metrics", "sae_lib.stages")])

    def _parallel(self, work: Callable[[str, RunSpec], None], specs: Sequence[RunSpec], description: str) -> None:
        """Do the work for each spec, on several cores where the profile says so; the first failure ends it."""
        workers = 1 if self.device != "cpu" else min(self.profile.training.workers, len(specs))
        with tqdm(total=len(specs), desc=description, unit="SAE", mininterval=1, disable=not specs) as bar:
            if workers <= 1:
                for spec in specs:
                    work(self.source, spec)
                    bar.update()
                return
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
                futures = [pool.submit(work, self.source, spec) for spec in specs]
                try:
                    for future in as_completed(futures):
                        future.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise


@dataclass(frozen=True)
class Evaluation:
    """Tidy results: `rows` one row per SAE, `letters` one per SAE and letter, `density` one per SAE and bin."""

    rows: pd.DataFrame
    letters: pd.DataFrame
    density: pd.DataFrame


def interpolate_coefficient(values: Sequence[float], l0: Sequence[float], target: float) -> float:
    """The coefficient where log L0, linear in log coefficient between neighbours, meets log target.

    Where no two neighbours bracket the target, the value that came nearest: beyond the range lies what was not seen,
    and a method may collapse there.
    """
    order = np.argsort(values)
    x, y = np.log(np.array(values)[order]), np.log(np.maximum(np.array(l0)[order], 1e-3))
    goal = np.log(target)
    for i in range(len(x) - 1):
        if (y[i] - goal) * (y[i + 1] - goal) <= 0 and y[i] != y[i + 1]:
            return float(np.exp(x[i] + (goal - y[i]) / (y[i + 1] - y[i]) * (x[i + 1] - x[i])))
    return float(np.exp(x[np.abs(y - goal).argmin()]))


def _mask_rate(history: pd.DataFrame, values: Sequence[float], coefficient: float) -> float:
    """ATM's mean mask rate, after its warm-up, in the calibration run nearest to the chosen coefficient."""
    nearest = min(values, key=lambda value: abs(np.log(value / coefficient)))
    rates = history.loc[(history["label"] == f"l1={nearest:g}") & (history["mask_rate"] > 0), "mask_rate"]
    return float(rates.mean()) if len(rates) else 0.3


def build_references(experiment: Experiment) -> tuple[LanguageModel, Any, Any]:
    """The whole language model, the core reference and the absorption reference."""
    profile = experiment.profile
    lm = experiment.language_model(whole=True)
    tokens = torch.from_numpy(np.array(load_tokens(experiment.paths.tokens, "held_out"), dtype=np.int64))
    core = build_core_reference(lm, tokens, profile.evaluation.batch_contexts)
    settings = profile.evaluation.absorption
    return lm, core, build_absorption_reference(lm, settings, experiment.paths.reference)


def describe(spec: RunSpec, run: dict[str, Any]) -> dict[str, Any]:
    """The columns of a result row that say what the SAE is."""
    config = spec.config
    masking, temporal = config.masking, config.temporal
    return {
        "group": spec.group, "method": spec.method, "label": spec.label, "seed": spec.seed,
        "architecture": config.architecture, "temporal": temporal is not None,
        "resampling": config.resampling is not None, "gradient_scaling": config.gradient_scaling is not None,
        "masking": masking is not None, "c": masking.c if masking else np.nan, "r": masking.r if masking else np.nan,
        "importance": spec.fields.get("importance"), "l1_coefficient": config.l1_coefficient,
        "temporal_coefficient": temporal.coefficient if temporal else np.nan,
        "resampling_threshold": config.resampling.threshold if config.resampling else np.nan,
        "k": config.k or np.nan, "target_l0": config.target_l0 or np.nan, "d_sae": config.d_sae,
        "steps": run["steps"], "trained_tokens": run["tokens"], "train_seconds": run["seconds"],
        "final_loss": run["final"].get("loss", np.nan),
    }  # fmt: skip


_WORKER: dict[str, Any] = {}  # what a worker process keeps between jobs


def _begin_worker() -> None:
    """One core for each worker; and a worker ends when its parent is gone, killed without a chance to say so."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _train_one(profile: str, spec: RunSpec) -> None:
    experiment = _opened(profile)
    if "store" not in _WORKER:
        _WORKER["store"] = experiment.store()
    store = _WORKER["store"]
    folder = experiment.run_folder(spec, store.key)
    if spec.trained:
        train_sae(
            spec.config, store, experiment.profile.data, experiment.profile.training, spec.seed, folder,
            device=experiment.device,
        )  # fmt: skip
    else:
        _leave_untrained(spec, store, folder, experiment.run_key(spec, store.key))


def _leave_untrained(spec: RunSpec, store: ActivationStore, folder: Path, key: str) -> None:
    """A run folder with the weights as they are before the first step."""
    sae = build_autoencoder(spec.config, store.d_in, spec.seed)
    config = spec.config.model_dump(mode="json")
    save_checkpoint(folder / WEIGHTS_FILE, sae.state_dict(), {"config": config, "key": key})
    write_json(folder / "run.json", {"key": key, "seed": spec.seed, "config": config, "steps": 0, "tokens": 0,
                                     "seconds": 0.0, "final": {}})  # fmt: skip


def _evaluate_one(profile: str, spec: RunSpec) -> None:
    experiment = _opened(profile)
    if "references" not in _WORKER:
        _WORKER["references"] = build_references(experiment)
        _WORKER["store_key"] = experiment.open_store().key
        _WORKER["evaluation_key"] = experiment.evaluation_key()
    lm, core, absorption = _WORKER["references"]
    folder = experiment.run_folder(spec, _WORKER["store_key"])
    sae = load_autoencoder(folder, experiment.device)
    summary, density = evaluate_reconstruction(sae, lm, core, experiment.profile.evaluation.batch_contexts)
    found = evaluate_absorption(sae, absorption, experiment.profile.evaluation.absorption)
    # Clipped after the logarithm: a rate of 1e-6 in single precision lies just outside the first bin.
    rates = np.log10(density.double().cpu().numpy().clip(min=1e-12)).clip(DENSITY_BINS[0], DENSITY_BINS[-1])
    counts, _ = np.histogram(rates, bins=DENSITY_BINS)
    result = {
        "key": _WORKER["evaluation_key"],
        "summary": _no_nan(summary | found.summary),
        "letters": [_no_nan(row) for row in found.letters.to_dict(orient="records")],
        "density": counts.tolist(),
    }
    write_json(folder / "evaluation.json", result)


def _opened(profile: str) -> Experiment:
    """The experiment of this process; a pool's workers are asked for one profile only."""
    if _WORKER.get("profile") != profile:
        _WORKER.clear()
        _WORKER.update(profile=profile, experiment=Experiment.open(profile))
    experiment: Experiment = _WORKER["experiment"]
    return experiment


def _evaluation(folder: Path, key: str) -> dict[str, Any] | None:
    """The finished evaluation in a run folder, if it is the one with this key."""
    file = folder / "evaluation.json"
    result: dict[str, Any] | None = read_json(file) if file.is_file() else None
    return result if result is not None and result["key"] == key else None


def _no_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a value that is not there is null."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}


def _tag(frame: pd.DataFrame, spec: RunSpec, run: str) -> pd.DataFrame:
    return frame.assign(run=run, group=spec.group, method=spec.method, label=spec.label, seed=spec.seed)


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
