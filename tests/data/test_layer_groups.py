"""Distances between layers, their groups, and rows of several layers in one store."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_lib.data.activations import WindowStream
from sae_lib.data.harvest import harvest
from sae_lib.data.language_model import LanguageModel
from sae_lib.data.layer_groups import MixedStore, angular_distances, layer_groups, widest
from sae_lib.util.errors import ArtifactError
from tests.tiny_models import random_tokens, save_tiny_model

DISTANCES = torch.tensor([[0.0, 0.1, 0.4, 0.5], [0.1, 0.0, 0.3, 0.4], [0.4, 0.3, 0.0, 0.2], [0.5, 0.4, 0.2, 0.0]])


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return LanguageModel.load(save_tiny_model(tmp_path_factory.mktemp("model")), whole=True)


def contexts(rows: int = 6) -> torch.Tensor:
    return torch.from_numpy(random_tokens(rows, 12)).long()


def test_streams_of_every_layer(lm: LanguageModel) -> None:
    tokens = contexts()
    streams = lm.all_residual_streams(tokens)
    assert len(streams) == lm.model.config.get_text_config().num_hidden_layers
    torch.testing.assert_close(streams[lm.layer], lm.residual_stream(tokens))


def test_distance_is_the_mean_angle(lm: LanguageModel) -> None:
    tokens = contexts()
    found = angular_distances(lm, tokens, batch=4)
    kept = lm.not_special(tokens)
    first, second = (lm.all_residual_streams(tokens)[layer][kept].double() for layer in (0, 1))
    cosines = (first * second).sum(dim=1) / (first.norm(dim=1) * second.norm(dim=1))
    assert float(found[0, 1]) == pytest.approx(float(cosines.arccos().mean()) / math.pi, abs=1e-4)
    assert torch.equal(found, found.T) and not found.diagonal().any()


def test_groups_are_runs_of_near_layers() -> None:
    assert layer_groups(DISTANCES, 2) == [[0, 1], [2, 3]]
    assert layer_groups(DISTANCES, 3) == [[0, 1], [2], [3]]
    assert layer_groups(DISTANCES, 4) == [[0], [1], [2], [3]] and layer_groups(DISTANCES, 1) == [[0, 1, 2, 3]]
    assert widest(DISTANCES, [[0, 1], [2, 3]]) == pytest.approx(0.15)
    far = DISTANCES.clone()
    far[0, 3] = far[3, 0] = 0.01  # near, but no neighbours
    assert layer_groups(far, 3) == [[0, 1], [2], [3]]
    with pytest.raises(ArtifactError, match="5 groups of 4 layers"):
        layer_groups(DISTANCES, 5)


def test_windows_come_from_one_layer_each(tmp_path: Path) -> None:
    tokens = contexts(rows=40)
    stores = []
    for layer in (0, 1):
        config = save_tiny_model(tmp_path / "model").model_copy(update={"layer": layer})
        of = LanguageModel.load(config, whole=False)
        stores.append(harvest(of, tokens.numpy().astype(np.int32), tmp_path / str(layer)))
    mixed = MixedStore(stores, block=4)
    rows = np.arange(mixed.n_rows // 4 * 4)
    scaled = [store.rows(rows) * scale for store, scale in zip(stores, mixed.scales, strict=True)]
    found = mixed.rows(rows)
    of_block = [[torch.equal(found[i : i + 4], each[i : i + 4]) for each in scaled] for i in range(0, len(rows), 4)]
    assert all(sum(each) == 1 for each in of_block) and {each[0] for each in of_block} == {True, False}
    assert mixed.mean_squared_norm(1000) == pytest.approx(1.0, rel=0.05)
    stream = WindowStream(mixed, window=4, batch_rows=40, seed=0)
    expected = mixed.rows(stream.windows(0)[:, None] * 4 + np.arange(4), torch.bfloat16).float()
    torch.testing.assert_close(stream.batch(0).activations, expected)
