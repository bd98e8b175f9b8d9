"""One SAE for several layers, beside one for each: what sharing costs."""

from __future__ import annotations

from itertools import product
from pathlib import Path
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
from sae_lib.study.experiment import Experiment
from sae_lib.study.scoring import score_inputs
from sae_lib.training.trainer import Trainer
from sae_lib.util.files import read_json, write_json
from sae_lib.util.keys import Stage, result_key

LAYER_GROUPS = Stage("layer groups", 1)
METHOD = "topk"


def layer_groups_key(experiment: Experiment) -> str:
    """What the rows of `compare_layer_groups` depend on."""
    profile = experiment.profile
    return result_key(
        LAYER_GROUPS, experiment.store_key, profile.sae_config(METHOD).model_dump(),
        profile.training.model_dump(mode="json"), profile.ablations.layer_groups,
    )  # fmt: skip


def compare_layer_groups(experiment: Experiment) -> pd.DataFrame:
    """One row for each layer, seed of the ablations and kind: `own`, an SAE of that layer, and `shared`, of its group
    (layers that are alone in theirs have the first only). Columns: layer, group, kind, seed, explained_variance, l0 (on
    held-out text), distance (the largest within the group) and amad. Finished SAEs are kept.
    """
    profile, held_out = experiment.profile, score_inputs(experiment).held_out
    lm = score_inputs(experiment).lm
    distances = angular_distances(lm, held_out)
    groups = layer_groups(distances, profile.ablations.layer_groups)
    stores = [_store(experiment, layer) for layer in range(len(distances))]
    texts = torch.cat(
        [lm.all_residual_streams(part).cpu()[:, lm.not_special(part)] for part in held_out.split(8)], dim=1
    )
    amad = widest(distances, groups)
    jobs = [([layer], "own") for layer in range(len(distances))]
    jobs += [(group, "shared") for group in groups if len(group) > 1]
    rows = []
    for (layers, kind), seed in tqdm(
        [*product(jobs, profile.training.ablation_seeds)], desc="layer groups", unit="SAE"
    ):
        for found in _trained(experiment, stores, layers, seed, texts):
            group = next(group for group in groups if found["layer"] in group)
            name, within = "-".join(map(str, dict.fromkeys((group[0], group[-1])))), distances[group][:, group].max()
            about = {"group": name, "kind": kind, "seed": seed, "distance": float(within)}
            rows.append(found | about | {"amad": amad})
    return pd.DataFrame(rows)


def _store(experiment: Experiment, layer: int) -> ActivationStore:
    profile = experiment.profile
    lm = LanguageModel.load(profile.model.model_copy(update={"layer": layer}), whole=False)
    folder = experiment.paths.root / "layers" / str(layer)
    data = profile.data
    return harvest(lm, experiment.train_tokens, folder, shard_rows=data.shard_rows, max_rows=data.train_tokens)


def _trained(
    experiment: Experiment,
    stores: list[ActivationStore],
    layers: list[int],
    seed: int,
    texts: Float[Tensor, "layer token d_in"],
) -> list[dict[str, Any]]:
    """Train one SAE on these layers, and reconstruct each of them with it."""
    profile = experiment.profile
    config = profile.sae_config(METHOD)
    members = [stores[layer] for layer in layers]
    key = result_key(
        LAYER_GROUPS, config.model_dump(), profile.data.model_dump(), profile.training.model_dump(mode="json"), seed,
        [member.key for member in members],
    )  # fmt: skip
    file: Path = experiment.paths.root / "layers" / f"{key[:20]}.json"
    if not file.is_file():
        store = MixedStore(members, profile.data.window)
        trainer = Trainer(config, store, profile.data, profile.training, seed, experiment.device)
        while trainer.index < profile.training.steps:
            trainer.step()
        sae, found = trainer.finish(), []
        for layer, scale in zip(layers, store.scales, strict=True):
            numbers, _ = reconstruction_statistics(sae, texts[layer].float() * scale)
            found.append({"layer": layer} | {name: numbers[name] for name in ("explained_variance", "l0")})
        write_json(file, found)
    rows: list[dict[str, Any]] = read_json(file)
    return rows
