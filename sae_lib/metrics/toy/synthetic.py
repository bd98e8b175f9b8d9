"""Data in the shape of SynthSAEBench (Chanin and Garriga-Alonso 2026, arXiv 2602.14687, as SAELens 6.54 makes it).

More features than dimensions, and than latents: frequencies as Zipf has them, trees of exclusive children, correlated
roots, magnitudes that vary. With the seed of a SAELens `SyntheticModel` all but the draws is that model's own.
"""

import math
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.metrics.toy.data import Toy

_ENTRIES = 2**24  # activations that are drawn at once
LEAST_OWN = 0.01  # of a feature's variance is its own, whatever it shares


@dataclass(frozen=True)
class Synthetic(Toy):
    """Feature i is on where eps . factor_i + eta_i sqrt(1 - |factor_i|^2) exceeds the normal quantile of 1 - p_i, with
    eps (`rank` numbers) and eta of each row normal, factor_i ~ `correlation` N(0, 1): a Gaussian copula. Its activation
    is then max(0, mean_i + sd_i N(0, 1)), with mean_i linear in i and sd_i = |m + s N(0, 1)|; where it is a child,
    times parent / mean_parent. Of the children of a parent that are on, one drawn at random stays: `probability[i]` is
    that before. x = activations @ directions + a vector of norm 1. Siblings are side by side.
    """

    width: int = 128
    rank: int = 25
    correlation: float = 0.1
    mean: tuple[float, float] = (5.0, 4.0)
    """Of the first and the last feature."""
    sd: tuple[float, float] = (0.5, 0.5)
    """m and s."""
    orthogonal_steps: int = 100
    seed: int = 20_000
    """No SAE has it: the same draws would be the true directions and where its latents start."""

    train_rows = 2**17

    @property
    def key(self) -> list[object]:
        return ["synthetic", *astuple(self)[1:]]

    @property
    def n_latents(self) -> int:
        return self.width

    @property
    def true_l0(self) -> float:
        """Of the `width` most frequent: more cannot have a latent. What correlations do to how often siblings meet is
        left out."""
        # A child that is on stays with E[1 / (1 + K)] = int_0^1 prod_j (1 - q_j + q_j t) dt, K of its siblings on.
        nodes, weights = np.polynomial.legendre.leggauss(16)
        t, chance = (nodes + 1.0) / 2.0, np.array(self.probability)
        for parent, children in self.children.items():
            q = chance[children]
            siblings = 1.0 - q + q * t[:, None]
            kept = (weights / 2.0) @ (siblings.prod(axis=1, keepdims=True) / siblings)
            chance[children] = chance[parent] * q * kept
        return float(np.sort(chance)[-self.width :].sum())

    @property
    def means(self) -> Float[Tensor, " feature"]:
        return torch.linspace(*self.mean, self.n_features)

    @property
    def sds(self) -> Float[Tensor, " feature"]:
        m, s = self.sd
        return (m + s * torch.randn(self.n_features, generator=torch.Generator().manual_seed(self.seed + 1))).abs()

    @property
    def factors(self) -> Float[Tensor, "feature rank"]:
        """What features share with others; a row that would leave less than `LEAST_OWN` is made shorter."""
        generator = torch.Generator().manual_seed(self.seed + 4)
        factors = torch.randn(self.n_features, self.rank, generator=generator) * self.correlation
        most = math.sqrt(1.0 - LEAST_OWN)
        return factors * (most / factors.norm(dim=1, keepdim=True).clamp_min(most))

    def directions(self) -> Float[Tensor, "feature d_in"]:
        return _vectors(self)[0]

    def sample(self, rows: int, seed: int) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row feature"]]:
        generator = torch.Generator().manual_seed(seed)
        at_once = max(1, _ENTRIES // self.n_features)
        factors, sds, means = self.factors, self.sds, self.means
        directions, constant = _vectors(self)
        own = (1.0 - factors.square().sum(dim=1)).sqrt()
        least = math.sqrt(2) * torch.erfinv(1.0 - 2.0 * torch.tensor(self.probability))
        x, activations = torch.empty(rows, self.d_in), torch.empty(rows, self.n_features)
        for part_x, part in zip(x.split(at_once), activations.split(at_once), strict=True):
            shared = torch.randn(len(part), self.rank, generator=generator) @ factors.T
            on = shared.addcmul_(torch.randn(part.shape, generator=generator), own) > least
            place = on.nonzero(as_tuple=True)
            size = means[place[1]] + sds[place[1]] * torch.randn(len(place[1]), generator=generator)
            part.zero_()[place] = size.relu()
            for parents, children, each in self._levels():
                family = part[:, children].view(len(part), -1, each)
                chance = torch.rand(family.shape, generator=generator) * (family > 0)
                family *= chance == chance.amax(dim=2, keepdim=True)
                family *= (part[:, parents] / means[parents])[:, :, None]
            torch.add(part @ directions, constant, out=part_x)
        return x, activations

    def _levels(self) -> list[tuple[slice, slice, int]]:
        """Level by level: parents, their children, and how many each has."""
        children, found = self.children, []
        level = [i for i in children if self.parent[i] is None]
        while level:
            below = [child for i in level for child in children[i]]
            found.append((slice(level[0], level[-1] + 1), slice(below[0], below[-1] + 1), len(below) // len(level)))
            level = [i for i in below if i in children]
        return found


@lru_cache(maxsize=4)
def _vectors(toy: Synthetic) -> tuple[Float[Tensor, "feature d_in"], Float[Tensor, " d_in"]]:
    """Directions and the constant part of x. Directions: `orthogonal_steps` steps of Adam on the sum over pairs of
    (d_i . d_j)^2, with n (d_i . d_i - 1)^2 to hold their norms."""
    generator = torch.Generator().manual_seed(toy.seed)
    vectors = normalize(torch.randn(toy.n_features, toy.d_in, generator=generator), dim=1)
    constant = normalize(torch.randn(toy.d_in, generator=generator), dim=0)
    vectors.requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=3e-4)
    for _ in range(toy.orthogonal_steps):
        optimizer.zero_grad()
        for part, here in zip(vectors.split(1024), torch.arange(toy.n_features).split(1024), strict=True):
            product = part @ vectors.T
            own = product[torch.arange(len(here)), here]
            (product.square().sum() - own.square().sum() + toy.n_features * (own - 1.0).square().sum()).backward()
        optimizer.step()
    return normalize(vectors.detach(), dim=1), constant


def synthetic(
    name: str, n_features: int, d_in: int, width: int, *, roots: int, branching: int = 4, depth: int = 3,
    exponent: float = 0.5, most: float = 0.4, least: float = 5e-4, correlation: float = 0.1,
    orthogonal_steps: int = 100,
) -> Synthetic:  # fmt: skip
    """Frequencies fall as rank^-`exponent`, from `most` to `least`; the `roots` most frequent features have trees of
    `depth` levels of `branching` children, and what is left fires alone. A child's probability given its parent makes
    up for the parent and for the siblings: p_i / p_parent (1 + sum_siblings p / p_parent)."""
    in_trees = roots * sum(branching**level for level in range(depth + 1))
    if in_trees > n_features:
        raise ValueError(f"{n_features} features are too few for trees of {in_trees}")
    rank = torch.arange(1, n_features + 1, dtype=torch.float32) ** -exponent
    p = least + (most - least) * (rank - rank.min()) / (rank.max() - rank.min())
    parent: list[int | None] = [None] * n_features
    given = p.clone()
    level, free = range(roots), roots
    for _ in range(depth):
        for above in level:
            children = slice(free, free := free + branching)
            parent[children] = [above] * branching
            share = p[children] / p[above]
            given[children] = (share * (1.0 + (share.sum() - share).clamp_min(0.0))).clamp_max(1.0)
        level = range(level.stop, free)
    return Synthetic(
        name, d_in, tuple(given.tolist()), tuple(parent), True, width=width, correlation=correlation,
        orthogonal_steps=orthogonal_steps,
    )  # fmt: skip


# The shape of SynthSAEBench-16k, which is synthetic("synthsaebench", 16_384, 768, 4096, roots=128) and takes 2 * 10^8
# rows, at 1 / 32 of the features. With one level less parents are as much more frequent than their children as there;
# with 128 dimensions, not 24, nearly as much of what a latent reads is noise of other features (L0 / d_in).
SMALL = synthetic("synthetic", 512, 128, 128, roots=16, depth=2)
