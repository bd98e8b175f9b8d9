"""The work of the notebooks: harvest, train, calibrate. Each call does only what is not done yet.

In a distributed run every rank makes the same calls: the work is shared out, and what must happen once is rank 0's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.autoencoders.build import WEIGHTS_FILE, build_autoencoder, load_autoencoder
from sae_lib.data.activations import ActivationStore
from sae_lib.data.corpus import build_tokens
from sae_lib.data.harvest import harvest, tokens_sha256
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.model_loading import device_of, model_identity
from sae_lib.data.store_manifest import content_key, finished_manifest
from sae_lib.data.tokens import load_tokens, with_masked
from sae_lib.metrics.toy import experiments as toy
from sae_lib.metrics.toy.methods import crossing
from sae_lib.profiles.profile import Profile, load_profile
from sae_lib.profiles.runs import FAIR, Calibration, FairATM, RunSpec, fairly_compared, plan_runs, sweep_runs
from sae_lib.training.log import run_log
from sae_lib.training.run import CHECKPOINT_FILE, is_finished, read_history, run_key, train_sae
from sae_lib.util import ranks
from sae_lib.util.checkpoint import save_checkpoint
from sae_lib.util.errors import ArtifactError
from sae_lib.util.files import FolderLock, is_held, json_key, read_json, write_json, write_parquet
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.parallel import for_each, kept
from sae_lib.util.paths import PROFILE_VARIABLE, Paths, corpus_cache

CALIBRATION_L0 = Stage("calibration l0", 1)
LATENTS_AT_ONCE = 2**26  # of the calibration documents, dense
EV_KEPT = 0.05  # of the variance: the margin of the claim that reconstruction is maintained (M-02)


@dataclass(frozen=True)
class Experiment:
    """One profile and its folders; what the notebooks hold in their hands."""

    profile: Profile
    paths: Paths

    @classmethod
    def open(cls, profile: str) -> Experiment:
        """The experiment of the profile with this name or path."""
        loaded = load_profile(profile)
        return cls(loaded, Paths(loaded.name))

    @classmethod
    def of_notebook(cls, profile: str) -> Experiment:
        """The experiment of a notebook whose parameter is `profile`; SAE_LIB_PROFILE names another one."""
        return cls.open(os.environ.get(PROFILE_VARIABLE) or profile)

    @property
    def device(self) -> str:
        return device_of(self.profile.model)

    def language_model(self, *, whole: bool) -> LanguageModel:
        """The profile's language model, cut after its layer unless `whole`."""
        return LanguageModel.load(self.profile.model, whole=whole)

    @property
    def workers(self) -> int:
        """SAEs worked on side by side: one at a time on a GPU."""
        return self.profile.training.workers if self.device == "cpu" else 1

    @property
    def corpus_cache(self) -> Path:
        return corpus_cache()

    def build_tokens(self, tokenizer: Any) -> dict[str, Any]:
        """Text to contexts (`corpus.build_tokens`), by rank 0."""
        profile, folder = self.profile, self.paths.tokens
        with self.writing():
            make = partial(build_tokens, profile.corpus, profile.data, tokenizer, folder, self.corpus_cache)
            return ranks.from_first(make)

    def harvest(self, lm: LanguageModel) -> ActivationStore:
        """The activation store of the training contexts, made or completed."""
        data = self.profile.data
        quiet = ranks.rank() > 0
        with self.writing(), tqdm(desc="harvest", unit="token", unit_scale=True, mininterval=5, disable=quiet) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            rows = None if data.masked_tokens else data.train_tokens  # of hidden places there are none
            return harvest(
                lm, self.train_tokens, self.paths.store, shard_rows=data.shard_rows, max_rows=rows,
                rank=ranks.rank(), world=ranks.world(), barrier=ranks.barrier, progress=progress,
            )  # fmt: skip

    def prepare(self, lm: LanguageModel | None = None) -> None:
        """Tokens and activations, made or completed."""
        lm = lm or self.language_model(whole=False)
        self.build_tokens(lm.tokenizer)
        self.harvest(lm)

    def store(self) -> ActivationStore:
        """The finished activation store, on a GPU where it fits. On a CPU the page cache does as much for all.

        Raises ArtifactError when it was made by another model, layer or corpus.
        """
        store = ActivationStore.open(self.paths.store, **self._store_source)
        if self.device != "cpu":
            store.preload(self.device)
        return store

    @property
    def store_key(self) -> str:
        """What the finished activation store is known by; needs none of its rows. Raises as `store`."""
        return content_key(finished_manifest(self.paths.store, self._store_source))

    @property
    def train_tokens(self) -> NDArray[np.int32]:
        tokens, share = load_tokens(self.paths.tokens, "train"), self.profile.data.masked_tokens
        return with_masked(tokens, share) if share else tokens

    @property
    def _store_source(self) -> dict[str, Any]:
        model, tokens = self.profile.model, self.train_tokens
        return {"identity": model_identity(model), "corpus_sha256": tokens_sha256(tokens), "layer": model.layer}

    def run_key(self, spec: RunSpec, store_key: str) -> str:
        key = run_key(spec.config, store_key, self.profile.data, self.profile.training, spec.seed)
        return key if spec.trained else json_key([key, spec.made])

    def run_folder(self, spec: RunSpec, store_key: str) -> Path:
        """Where a run lies: named by its content, so the same SAE in two tables is trained once."""
        return self.paths.runs / self.run_key(spec, store_key)[:20]

    def run_folders(self, specs: Iterable[RunSpec]) -> dict[RunSpec, Path]:
        store_key = self.store_key
        return {spec: self.run_folder(spec, store_key) for spec in specs}

    def autoencoder(self, spec: RunSpec) -> Autoencoder:
        """The trained SAE of a run, on the CPU; trained once more where only rows are known of it."""
        self.need_weights([spec])
        return load_autoencoder(self.run_folder(spec, self.store_key))

    def save(self, table: pd.DataFrame, name: str) -> Path:
        """Write a table of results as `<name>.parquet`, whole or not at all; returns the file."""
        path = self.paths.results / f"{name}.parquet"
        with self.writing():
            write_parquet(path, table, index=False)
        return path

    def train(self, specs: Sequence[RunSpec], description: str = "train") -> pd.DataFrame:
        """Train what is not trained yet and of which no rows are kept; returns the training curves, one row per logged
        step."""
        from sae_lib.study.rows import restore  # rows hold scores, which are of trained SAEs

        if ranks.rank() == 0:
            restore(self, specs)
        self._train(specs, description, weights=False)
        frames = []
        for spec, folder in self.run_folders(spec for spec in specs if spec.trained).items():
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)  # of a run killed after its last file
            frames.append(tag(read_history(folder), spec, folder.name))
        return concat(frames)

    def at_hand(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Those of `specs` whose weights are here: of an SAE that was trained elsewhere only rows may be."""
        store_key, lacking = self.store_key, self._unfinished(specs, weights=True)
        return [spec for spec in specs if self.run_key(spec, store_key) not in lacking]

    def need_weights(self, specs: Sequence[RunSpec]) -> None:
        """Train those of `specs` whose weights are not here, though rows may be known of them."""
        self._train(specs, "train again", weights=True)

    def _unfinished(self, specs: Sequence[RunSpec], *, weights: bool) -> dict[str, RunSpec]:
        store_key, runs = self.store_key, self.paths.runs
        keys = {self.run_key(spec, store_key): spec for spec in specs}
        return {key: spec for key, spec in keys.items() if not is_finished(runs / key[:20], key, weights=weights)}

    def _train(self, specs: Sequence[RunSpec], description: str, *, weights: bool) -> None:
        waiting = self._unfinished(specs, weights=weights)
        sources = [spec.permuted_from for spec in waiting.values() if spec.made == "permuted"]
        waiting |= self._unfinished(sources, weights=True)
        if waiting and ranks.rank() == 0:  # activations are read through once, and refused where they were altered
            kept(self, "store checked", lambda: ActivationStore.open(self.paths.store, check="full").key)
        with self.writing():
            for permuted in (False, True):  # last, because they are made from others
                jobs = [[spec] for spec in waiting.values() if (spec.made == "permuted") == permuted]
                for_each(_train_one, self, jobs, self.workers, description)

    def ground_truth(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The toys, one row per SAE: where the papers' mechanisms are taken apart `toy.experiments.ground_truth`, whose
        latents `absorption_picture` shows; where a profile names the field `field` and `ideas`."""
        folder, settings, papers = self.paths.runs / "toy", self.profile.ablations.toy, self.profile.ablations.papers
        made = [*([toy.ground_truth] if papers else []), toy.field, toy.ideas]
        with self.writing():
            tables = [make(folder, settings, self.workers) for make in made]
            picture = toy.absorption_picture(folder, settings, self.workers) if papers else pd.DataFrame()
            return concat([table for table in tables if len(table)]), picture

    def calibrate(self) -> Calibration:
        """The L1 methods' part of the sweep: the coefficient of each at which L0 meets the target on the calibration
        documents, and ATM's mask rate there, which uniform dropout takes over.

        Raises ArtifactError when ATM never masked, so that there is no rate to take over.
        """
        coefficients, probability = {}, 0.3
        methods = sorted(self.profile.sweep.coefficients, key=lambda name: name == "dropout")
        first = [s for method in methods if method != "dropout" for s in sweep_runs(self.profile, method)]
        self.train(first, "sweep")
        for method in methods:
            coefficients[method], history = self._matched(sweep_runs(self.profile, method, probability))
            if method == "atm":
                probability = round(_while_masking(history, "mask_rate", coefficients[method]), 4)
        return Calibration(coefficients=coefficients, dropout_probability=probability)

    def calibrate_atm(self, known: Calibration, grid: pd.DataFrame) -> Calibration:
        """`known` with ATM at the c and r that suit it best, by the scores of group `atm_grid`, whose seeds are judged
        nowhere; and with the uniform dropout that takes away as much activation. Both at the target L0.

        Where the profile has no sweep of both, `known` as it is. Raises ArtifactError when that ATM masked nothing.
        """
        if fairly_compared(self.profile):
            known = known.model_copy(update={"fair": choose_atm(grid)})
            for method in FAIR:
                known = self.match_fair(known, method)
        return known

    def match_fair(self, known: Calibration, method: str) -> Calibration:
        """`known` with the coefficient of one method of `FAIR`, and after ATM's with the rate of the dropout."""
        assert known.fair is not None
        found, history = self._matched(plan_runs(self.profile, known, ["fair_sweep"], [method]))
        decided: dict[str, Any] = {"coefficients": known.fair.coefficients | {method: found}}
        if method == "atm":
            decided["dropout_probability"] = round(_while_masking(history, "removed", found), 4)
        return known.model_copy(update={"fair": known.fair.model_copy(update=decided)})

    def _matched(self, specs: Sequence[RunSpec]) -> tuple[float, pd.DataFrame]:
        """The L1 coefficient at which L0 meets the target, between those of `specs`; and their training curves."""
        history = self.train(specs, f"sweep {specs[0].method}")
        values = {run.name: spec.config.get("l1_coefficient") for spec, run in self.run_folders(specs).items()}
        l0 = self.l0_by_coefficient(specs)
        history = history.assign(l1_coefficient=history["run"].map(values))
        return crossing([*l0.index], [*l0], self.profile.sweep.target_l0), history

    def l0_by_coefficient(self, specs: Sequence[RunSpec]) -> pd.Series:
        """`calibration_l0` at each L1 coefficient of a sweep, mean over seeds."""
        return pd.Series(self.calibration_l0(specs)).groupby([s.config.get("l1_coefficient") for s in specs]).mean()

    def calibration_l0(self, specs: Sequence[RunSpec]) -> list[float]:
        """L0 of trained SAEs on the calibration documents, which no metric uses; kept in their run folders."""
        text = read_json(self.paths.tokens / "manifest.json")["splits"]["calibration"]
        key = result_key(CALIBRATION_L0, model_identity(self.profile.model), text)
        files = {spec: run / "calibration.json" for spec, run in self.run_folders(specs).items()}
        with self.writing():
            return ranks.from_first(lambda: [self._calibration_l0(spec, files[spec], key) for spec in specs])

    def _calibration_l0(self, spec: RunSpec, file: Path, key: str) -> float:
        def harvested() -> Float[Tensor, "row d_in"]:
            tokens = load_tokens(self.paths.tokens, "calibration")
            store = harvest(self.language_model(whole=False), tokens, self.paths.reference / "calibration")
            return store.rows(np.arange(store.n_rows))

        if not file.is_file() or read_json(file).get("key") != key:
            rows: Tensor = kept(self, "calibration rows", harvested)
            sae = self.autoencoder(spec).to(self.device)
            parts = rows.split(max(1, LATENTS_AT_ONCE // sae.d_sae))
            with torch.no_grad():
                active = [(sae.encode(part.to(sae.device)) != 0).float().sum(dim=1) for part in parts]
            write_json(file, {"key": key, "l0": float(torch.cat(active).mean())})
        return float(read_json(file)["l0"])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the profile's folder while something is written into it, so that no other run clears it up; unless this
        process, or the run that it is part of, holds it already.

        Raises ArtifactError when another run holds it.
        """
        is_ours = ranks.rank() > 0 or is_held(self.paths.root)
        with nullcontext() if is_ours else FolderLock(self.paths.root):
            yield


def choose_atm(grid: pd.DataFrame) -> FairATM:
    """c and r of the cell that absorbs least (fraction, mean over seeds) among those whose explained variance is within
    `EV_KEPT` of the best cell's: a method that is to lower absorption *and* to keep reconstruction."""
    cells = grid[grid["group"] == "atm_grid"].groupby(["c", "r"])[["explained_variance", "absorption_fraction"]].mean()
    kept = cells[cells["explained_variance"] >= cells["explained_variance"].max() - EV_KEPT]
    c, r = kept["absorption_fraction"].fillna(0.0).idxmin()  # without letters no cell has a score: the first one
    return FairATM(c=float(c), r=float(r))


def _while_masking(history: pd.DataFrame, column: str, coefficient: float) -> float:
    """Mean of a column of ATM's log after its warm-up, in the calibration run nearest to the chosen coefficient."""
    if column not in history:
        raise ArtifactError(f"ATM's sweep has no '{column}' in its log: an older version made it; run `make clean`")
    nearest = min(history["l1_coefficient"].unique(), key=lambda value: abs(np.log(value / coefficient)))
    rates = history.loc[(history["l1_coefficient"] == nearest) & (history["mask_rate"] > 0), column]
    if rates.empty:
        why = "ATM never masked a latent in the whole sweep run, so uniform dropout has no rate to take over"
        fix = "lower its warmup_steps or training.schedule_scale, or raise training.steps"
        raise ArtifactError(f"methods.atm.masking: {why}; {fix}")
    return float(rates.mean())


def _train_one(experiment: Experiment, job: list[RunSpec]) -> None:
    store = kept(experiment, "store", experiment.store)
    for spec in job:
        folder = experiment.run_folder(spec, store.key)
        if spec.trained:
            events = experiment.paths.root / "tensorboard" / spec.group / spec.method / (spec.label or "-")
            with run_log(events / f"seed-{spec.seed}") as watch:
                train_sae(
                    spec.config, store, experiment.profile.data, experiment.profile.training, spec.seed, folder,
                    device=experiment.device, watch=watch, names={"method": spec.method, "group": spec.group},
                )  # fmt: skip
            continue
        if spec.made == "untrained":
            sae = build_autoencoder(spec.config, store.d_in, spec.seed)
            spent: dict[str, Any] = {"steps": 0, "tokens": 0, "seconds": 0.0, "final": {}}
        else:  # it encodes as the trained one, and writes what does not belong
            trained = experiment.run_folder(spec.permuted_from, store.key)
            sae, spent = load_autoencoder(trained), read_json(trained / "run.json")
            order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(spec.seed))
            sae.W_dec.data = sae.W_dec.data[order]
        made = {"config": spec.config.model_dump(mode="json"), "key": experiment.run_key(spec, store.key)}
        save_checkpoint(folder / WEIGHTS_FILE, sae.state_dict(), made)
        write_json(folder / "run.json", spent | made | {"method": spec.method, "group": spec.group, "seed": spec.seed})


def tag(frame: pd.DataFrame, spec: RunSpec, run: str) -> pd.DataFrame:
    """`frame` with the columns that say which SAE it belongs to."""
    return frame.assign(run=run, group=spec.group, method=spec.method, label=spec.label, seed=spec.seed, **spec.fields)


def concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The frames below each other; an empty one for none."""
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
