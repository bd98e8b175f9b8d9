"""What a study compares beside its SAEs: toys, one method on texts with hidden tokens, one SAE for several layers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from sae_lib.data.activations import ActivationStore
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.layer_groups import MixedStore, angular_distances, layer_groups, widest
from sae_lib.metrics.reconstruction import reconstruction_statistics
from sae_lib.metrics.toy.experiments import challengers
from sae_lib.profiles.runs import RunSpec, plan_runs
from sae_lib.study.experiment import Experiment, concat
from sae_lib.study.scoring import evaluate, score_inputs, score_keys
from sae_lib.training.trainer import Trainer
from sae_lib.util.files import read_json, write_json, write_parquet
from sae_lib.util.keys import Stage, result_key
from sae_lib.util.paths import Paths

TOYS, CHALLENGERS = Stage("toys, as a table", 1), Stage("toys of the challengers", 1)
MASKED, MASKED_METHOD = Stage("masked regularisation", 1), "matryoshka_4"  # as its paper has it
LAYER_GROUPS, SHARED_METHOD = Stage("layer groups", 1), "topk"


def write_tables(experiment: Experiment) -> None:
    """What a profile asks for beside its SAEs; a table is left as it is where its attributes hold the key of what its
    rows depend on."""
    profile, asked = experiment.profile, experiment.profile.ablations

    def write(name: str, make: Callable[[Experiment], pd.DataFrame], stage: Stage, *made_from: object) -> None:
        file, key = experiment.paths.figures / "results" / f"{name}.parquet", result_key(stage, *made_from)
        if not (file.is_file() and pd.read_parquet(file).attrs.get("key") == key):
            table = make(experiment)
            table.attrs["key"] = key
            write_parquet(file, table, index=False)

    if field := asked.toy.field:
        toys = asked.toy.model_dump(mode="json", exclude={"field": {"challengers"}})
        write("toy_summary", lambda experiment: experiment.ground_truth()[0], TOYS, toys, asked.papers)
        if field.challengers:
            toys = asked.toy.model_dump(mode="json")
            write("toy_summary_challengers", compare_challengers, CHALLENGERS, toys)
    if asked.masked_tokens:
        runs = [experiment.run_key(spec, experiment.store_key) for spec in _masked_runs(experiment)]
        write("masked", compare_masked, MASKED, runs, list(asked.masked_tokens), score_keys(experiment))
    if asked.layer_groups:
        config, training = profile.sae_config(SHARED_METHOD).model_dump(), profile.training.model_dump(mode="json")
        made_from = experiment.store_key, config, training, asked.layer_groups
        write("layer_groups", compare_layer_groups, LAYER_GROUPS, *made_from)


def compare_challengers(experiment: Experiment) -> pd.DataFrame:
    """The toys of those that are to beat the rest of the field (`toy.experiments.challengers`)."""
    with experiment.writing():
        return challengers(experiment.paths.runs / "toy", experiment.profile.ablations.toy, experiment.workers)


def compare_masked(experiment: Experiment) -> pd.DataFrame:
    """The rows of `MASKED_METHOD` in the main table, and with each share of `ablations.masked_tokens`; the share is
    column `masked`. Each share has an activation store of its own, beside the other; every metric reads whole texts."""
    frames = []
    for share in (0.0, *experiment.profile.ablations.masked_tokens):
        hidden = experiment
        if share:
            data = experiment.profile.data.model_copy(update={"masked_tokens": share})
            paths = Paths(experiment.paths.profile)
            paths.store = experiment.paths.root / "masked" / f"{share:g}"
            hidden = replace(experiment, profile=experiment.profile.model_copy(update={"data": data}), paths=paths)
            hidden.harvest(hidden.language_model(whole=False))
        specs = _masked_runs(hidden)
        hidden.train(specs, f"masked {share:g}")
        frames.append(evaluate(hidden, specs).rows.assign(masked=share))
    return concat(frames)


def _masked_runs(experiment: Experiment) -> list[RunSpec]:
    return plan_runs(experiment.profile, None, ["main"], [MASKED_METHOD])


def compare_layer_groups(experiment: Experiment) -> pd.DataFrame:
    """One row for each layer, seed of the ablations and kind: `own`, an SAE of that layer, and `shared`, of its group
    (layers that are alone in theirs have the first only). Columns: layer, group, kind, seed, explained_variance, l0 (on
    held-out text), distance (the largest within the group) and amad. Finished SAEs are kept.
    """
    profile, inputs = experiment.profile, score_inputs(experiment)
    lm, held_out, data = inputs.lm, inputs.held_out, profile.data
    distances = angular_distances(lm, held_out)
    groups = layer_groups(distances, profile.ablations.layer_groups)
    stores = []
    for layer in range(len(distances)):
        cut = LanguageModel.load(profile.model.model_copy(update={"layer": layer}), whole=False)
        folder = experiment.paths.root / "layers" / str(layer)
        tokens, most = experiment.train_tokens, data.train_tokens
        stores.append(harvest(cut, tokens, folder, shard_rows=data.shard_rows, max_rows=most))
    parts = [lm.all_residual_streams(part).cpu()[:, lm.not_special(part)] for part in held_out.split(8)]
    texts, amad = torch.cat(parts, dim=1), widest(distances, groups)
    jobs = [([layer], "own") for layer in range(len(distances))]
    jobs += [(group, "shared") for group in groups if len(group) > 1]
    seeded = [*product(jobs, profile.training.ablation_seeds)]
    rows = []
    for (layers, kind), seed in tqdm(seeded, desc="layer groups", unit="SAE"):
        for found in _trained(experiment, [stores[layer] for layer in layers], layers, seed, texts):
            group = next(group for group in groups if found["layer"] in group)
            name, within = "-".join(map(str, dict.fromkeys((group[0], group[-1])))), distances[group][:, group].max()
            about = {"group": name, "kind": kind, "seed": seed, "distance": float(within)}
            rows.append(found | about | {"amad": amad})
    return pd.DataFrame(rows)


def _trained(
    experiment: Experiment,
    stores: list[ActivationStore],
    layers: list[int],
    seed: int,
    texts: Float[Tensor, "layer token d_in"],
) -> list[dict[str, Any]]:
    """Train one SAE on the stores of these layers, and reconstruct each of them with it."""
    profile = experiment.profile
    config, data, training = profile.sae_config(SHARED_METHOD), profile.data, profile.training
    settings = config.model_dump(), data.model_dump(), training.model_dump(mode="json")
    key = result_key(LAYER_GROUPS, *settings, seed, [store.key for store in stores])
    file = experiment.paths.root / "layers" / f"{key[:20]}.json"
    if not file.is_file():
        mixed = MixedStore(stores, data.window)
        trainer = Trainer(config, mixed, data, training, seed, experiment.device)
        while trainer.index < training.steps:
            trainer.step()
        sae, found = trainer.finish(), []
        for layer, scale in zip(layers, mixed.scales, strict=True):
            numbers, _ = reconstruction_statistics(sae, texts[layer].float() * scale)
            found.append({"layer": layer} | {name: numbers[name] for name in ("explained_variance", "l0")})
        write_json(file, found)
    return read_json(file)
