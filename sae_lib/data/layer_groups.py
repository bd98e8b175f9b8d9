"""Layer groups: neighbouring layers whose residual streams point the same way share one SAE.

The angular distance of two layers is the mean over tokens of arccos(cos(x_l, x_m)) / pi. Groups are runs of layers,
found by hierarchical clustering with complete linkage; an SAE of a group is trained on windows each from one of its
layers, drawn at random and scaled to E||x||^2 = 1.

Source: 2410.21508.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from sae_lib.data.activations import ActivationStore
from sae_lib.data.language_model import LanguageModel
from sae_lib.util.errors import ArtifactError

SCALE_ROWS = 2**14  # by which a layer is scaled


def angular_distances(
    lm: LanguageModel, contexts: Int[Tensor, "context position"], batch: int = 8
) -> Float[Tensor, "layer layer"]:
    """Between all layers of a whole model, over the tokens that are not special; 1 for opposite directions."""
    total, tokens = torch.zeros(()), 0
    for part in contexts.split(batch):
        kept = lm.not_special(part).to(lm.device)
        x = torch.nn.functional.normalize(lm.all_residual_streams(part)[:, kept].float(), dim=-1)
        total = total + torch.einsum("ltd,mtd->lmt", x, x).clamp(-1, 1).arccos().sum(dim=-1).cpu() / math.pi
        tokens += int(kept.sum())
    return (total / tokens).fill_diagonal_(0.0)  # but for rounding


def layer_groups(distances: Float[Tensor, "layer layer"], groups: int) -> list[list[int]]:
    """The layers, from the first on, in so many runs of neighbours. Raises ArtifactError: there are fewer layers."""
    layers = len(distances)
    if not 1 <= groups <= layers:
        raise ArtifactError(f"ablations.layer_groups: {groups} groups of {layers} layers; take 1 to {layers}")
    chain = np.abs(np.subtract.outer(range(layers), range(layers))) == 1
    clustering = AgglomerativeClustering(groups, metric="precomputed", linkage="complete", connectivity=chain)
    labels = clustering.fit_predict(distances.double().numpy()) if groups < layers else np.arange(layers)
    return [[i for i in range(layers) if labels[i] == label] for label in dict.fromkeys(labels.tolist())]


def widest(distances: Float[Tensor, "layer layer"], groups: Sequence[Sequence[int]]) -> float:
    """The largest distance within a group, mean over groups: the paper's AMAD."""
    return float(np.mean([distances[group][:, group].max() for group in map(list, groups)]))


class MixedStore(ActivationStore):
    """Stores of one text after several layers, each block of rows from one of them, scaled to E||x||^2 = 1."""

    def __init__(self, members: Sequence[ActivationStore], block: int, seed: int = 0) -> None:
        super().__init__(members[0].folder, members[0].manifest)
        self.members, self.block = list(members), block
        self.scales = [member.mean_squared_norm(SCALE_ROWS) ** -0.5 for member in members]
        self.of_block = np.random.default_rng(seed).integers(len(members), size=self.n_rows // block + 1)

    def rows(
        self, indices: Int[np.ndarray, "*shape"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*shape d_in"]:
        """As of one store; never on a GPU."""
        flat: NDArray[np.int64] = np.asarray(indices, dtype=np.int64).reshape(-1)
        values = torch.empty(len(flat), self.d_in)
        for number, (member, scale) in enumerate(zip(self.members, self.scales, strict=True)):
            here = np.flatnonzero(self.of_block[flat // self.block] == number)
            values[torch.from_numpy(here)] = member.rows(flat[here]) * scale
        return values.view(*np.shape(indices), self.d_in).to(dtype)
