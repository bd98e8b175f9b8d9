"""Stability across seeds: do SAEs that differ only in their seed have the same decoder directions?"""

import math
from collections.abc import Mapping
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sae_lib.autoencoders.base import Autoencoder
from sae_lib.metrics.registry import Column
from sae_lib.util.errors import ArtifactError

# The exact assignment takes about n^3: on one CPU core 0.1 s for 1,024 latents, 1 s for 4,096, 5 to 10 s for
# 8,192, and there are ten pairs of five seeds for each method.
EXACT_UP_TO = 4096
MATCHED_ABOVE = 0.7  # two latents of such a cosine are the same feature
SHOWN = {
    "matched_cosine": Column("seeds, matched cosine", "higher", 3),
    "max_cosine": Column("seeds, max cosine", "higher", 3),
    "share_matched": Column("seeds, share > 0.7", "higher", 3),
}
COLUMNS = ["seed_a", "seed_b", "matched_cosine", "max_cosine", "share_matched", "latents", "matching"]

_CHUNK_ELEMENTS = 2**24


@torch.no_grad()
def seed_stability(
    saes: Mapping[int, Autoencoder],
    firing: Mapping[int, Bool[Tensor, " d_sae"]] | None = None,
) -> pd.DataFrame:
    """Compare the decoder rows of each pair of SAEs, seed_a < seed_b; see `compare_directions` for the columns.

    What chance gives is the same comparison of untrained SAEs: in few dimensions a random direction has a near
    neighbour among a thousand others (0.28 in 128 dimensions).

    `saes`: seed -> SAE, of one residual stream; `firing`: seed -> which latents ever fire. Where it is given, the
    others are left out: nothing has trained the direction of a dead latent.

    Raises ArtifactError where a decoder is not finite.
    """
    directions = {}
    for seed in sorted(saes):
        rows = F.normalize(saes[seed].W_dec.detach().float(), dim=1)
        if not rows.isfinite().all():
            raise ArtifactError(f"sae: the decoder of seed {seed} holds NaN or infinite values; train it again")
        directions[seed] = rows if firing is None else rows[firing[seed].to(rows.device)]
    records = [
        {"seed_a": a, "seed_b": b, **compare_directions(directions[a], directions[b])}
        for a, b in combinations(directions, 2)
    ]
    return pd.DataFrame(records, columns=COLUMNS)


def compare_directions(a: Float[Tensor, "m d_in"], b: Float[Tensor, "n d_in"]) -> dict[str, float | int | str]:
    """How well two sets of unit directions agree. Cosines are signed: activations are not negative.

    - matched_cosine: mean cosine of a one-to-one matching that leaves no latent of the smaller set alone.
    - share_matched: share of these pairs with a cosine above 0.7.
    - max_cosine: mean over the latents of a of the largest cosine with any of b, and over those of b with any of a,
      averaged. Two latents may share a neighbour.
    - latents: how many pairs those are. With none, the numbers are NaN.
    - matching: "exact", the assignment with the largest sum (the Hungarian algorithm's problem), or "greedy"
      (`match_greedily`) where the smaller set has more than `EXACT_UP_TO` latents.

    Source: one-to-one matching and threshold, Paulo and Belrose (2025), "Sparse autoencoders trained on the same data
    learn different features"; mean max cosine, Sharkey et al. (2022).
    """
    pairs = min(len(a), len(b))
    matching = "exact" if pairs <= EXACT_UP_TO else "greedy"
    if not pairs:
        return {**dict.fromkeys(COLUMNS[2:5], math.nan), "latents": 0, "matching": matching}
    cosine_a, _, cosine_b, _ = _nearest(a, b)
    matched = match_exactly(a, b) if matching == "exact" else match_greedily(a, b)
    return {
        "matched_cosine": matched.double().mean().item(),
        "max_cosine": (cosine_a.double().mean().item() + cosine_b.double().mean().item()) / 2,
        "share_matched": (matched > MATCHED_ABOVE).double().mean().item(),
        "latents": pairs,
        "matching": matching,
    }


def match_exactly(a: Float[Tensor, "m d_in"], b: Float[Tensor, "n d_in"]) -> Float[Tensor, " pairs"]:
    """Cosines of the one-to-one matching with the largest sum of cosines."""
    cosines = (a @ b.T).cpu()
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return cosines[torch.from_numpy(rows), torch.from_numpy(columns)]


def match_greedily(a: Float[Tensor, "m d_in"], b: Float[Tensor, "n d_in"]) -> Float[Tensor, " pairs"]:
    """Cosines of the greedy matching: the closest pair of all first, then the closest of what is left, and so on.

    Two latents that are each other's nearest among those left are a pair of it, whatever else there is, so all such
    pairs are taken at once and a few dozen rounds do. Its sum is within a few per cent of the largest possible one, and
    pairs with a large cosine, the ones that count as matched, are the same.
    """
    matched = [a.new_empty(0)]
    while len(a) and len(b):
        cosine, of_b, _, of_a = _nearest(a, b)
        own = torch.arange(len(a), device=a.device)
        mutual = of_a[of_b] == own
        matched.append(cosine[mutual])
        left = torch.ones(len(b), dtype=torch.bool, device=b.device)
        left[of_b[mutual]] = False
        a, b = a[~mutual], b[left]
    return torch.cat(matched).cpu()


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest cosine of each row of a with a row of b, and which; then of each row of b with a row of a.

    Computed for a block of a at a time: the table of all cosines of 65,536 latents would take 17 GB. Of equal
    cosines the first counts, on both sides, so that the closest pair of all is always mutual.
    """
    cosine_a, of_b = a.new_empty(len(a)), torch.empty(len(a), dtype=torch.long, device=a.device)
    cosine_b = b.new_full((len(b),), -math.inf)
    of_a = torch.zeros(len(b), dtype=torch.long, device=b.device)
    block = max(1, _CHUNK_ELEMENTS // len(b))
    for start in range(0, len(a), block):
        cosines = a[start : start + block] @ b.T
        cosine_a[start : start + block], of_b[start : start + block] = cosines.max(dim=1)
        best, row = cosines.max(dim=0)
        better = best > cosine_b
        cosine_b[better], of_a[better] = best[better], row[better] + start
    return cosine_a, of_b, cosine_b, of_a
