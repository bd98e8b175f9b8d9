"""The toys: orthonormal features, some of which are children of others, in sequences of tokens."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NORM_SPREAD = 0.05  # a feature that is on has activation 1 + 0.05 N(0, 1), drawn once per feature
SEQUENCE = 8  # consecutive tokens of one sequence


@dataclass(frozen=True)
class Toy:
    """Orthonormal features in R^d_in, some of which are children: they fire only where their parent fires.

    `probability[i]` is that of feature i; for a child, given its parent. With `exclusive`, at most one child of a
    parent is on at a time. Roots (features without a parent) persist along a sequence as a Markov chain:

        P(on | on) = rho + (1 - rho) p,    P(on | off) = (1 - rho) p

    so that each is on with probability p at every token, whatever rho. Children are drawn anew at every token, and are
    `loudness` times as large as their parents.
    """

    name: str = field(compare=False)
    d_in: int
    probability: tuple[float, ...]
    parent: tuple[int | None, ...]
    exclusive: bool = False
    rho: float = 0.0
    loudness: float = 1.0

    train_rows: ClassVar[int] = 2**16

    @property
    def key(self) -> list[object]:
        """What it is, for the keys of results. Loudness is newer than results without it."""
        louder = [] if self.loudness == 1.0 else [self.loudness]
        return [self.d_in, self.probability, self.parent, self.exclusive, self.rho, *louder]

    @property
    def n_latents(self) -> int:
        """Of an SAE that is trained on it."""
        return self.n_features

    @property
    def n_features(self) -> int:
        return len(self.probability)

    @property
    def children(self) -> dict[int, list[int]]:
        """Parent -> its children, in feature order."""
        found: dict[int, list[int]] = {}
        for feature, parent in enumerate(self.parent):
            if parent is not None:
                found.setdefault(parent, []).append(feature)
        return found

    @property
    def singles(self) -> list[int]:
        """Features that have neither parent nor children."""
        return [i for i, parent in enumerate(self.parent) if parent is None and i not in self.children]

    @property
    def true_l0(self) -> float:
        """Expected number of features that are on."""
        chance = list(self.probability)
        for parent, children in self.children.items():
            for child in children:
                chance[child] *= chance[parent]
        return sum(chance)

    def directions(self) -> Float[Tensor, "feature d_in"]:
        """Unit vectors at right angles, one per feature."""
        generator = torch.Generator().manual_seed(0)
        return torch.linalg.qr(torch.randn(self.d_in, self.n_features, generator=generator)).Q.T.contiguous()

    def sample(self, rows: int, seed: int) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row feature"]]:
        """Inputs and the true activations they are made of: x = activations @ directions. Rows are tokens; each
        `SEQUENCE` of them are one sequence, independent of the others."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(-(-rows // SEQUENCE), SEQUENCE, self.n_features, generator=generator)
        on = self._persistent(uniform).flatten(0, 1)[:rows]
        uniform = uniform.flatten(0, 1)[:rows]
        for parent, children in self.children.items():
            if self.exclusive:
                # One draw in [0, 1) is cut into a piece for each child and one for none.
                edges = torch.tensor([self.probability[child] for child in children]).cumsum(0)
                chosen = torch.searchsorted(edges, uniform[:, children[0]].contiguous(), right=True)
                on[:, children] = chosen[:, None] == torch.arange(len(children))
            else:
                on[:, children] = uniform[:, children] < torch.tensor([self.probability[child] for child in children])
            on[:, children] &= on[:, parent, None]
        size = 1.0 + NORM_SPREAD * torch.randn(self.n_features, generator=torch.Generator().manual_seed(0))
        for children in self.children.values():
            size[children] *= self.loudness
        activations = on * size
        return activations @ self.directions(), activations

    def _persistent(self, uniform: Float[Tensor, "sequence token feature"]) -> Bool[Tensor, "sequence token feature"]:
        """The Markov chain of each root, started from what it is in the long run."""
        p = torch.tensor(self.probability)
        on = torch.empty_like(uniform, dtype=torch.bool)
        on[:, 0] = uniform[:, 0] < p
        for token in range(1, uniform.shape[1]):
            on[:, token] = uniform[:, token] < self.rho * on[:, token - 1] + (1.0 - self.rho) * p
        return on


# One parent (P = 0.25) with one child (P = 0.05 in all) and two singles, in R^50.
PAIR = Toy("pair", 50, (0.25, 0.2, 0.05, 0.05), (None, 0, None, None))
# Three parents with three exclusive children each, and eight singles, in R^20; true L0 1.12.
TREE = Toy(
    "tree", 20, (0.15,) * 3 + (0.2,) * 9 + (0.05,) * 8, (None,) * 3 + (0,) * 3 + (1,) * 3 + (2,) * 3 + (None,) * 8, True
)

# TREE with rare families: parents P = 0.01, each child 0.002.
RARE = replace(TREE, name="rare", probability=(0.01,) * 3 + TREE.probability[3:])
# With children five times as loud as their parents: what is large, or explains much, comes first, and it is the child.
LOUD = replace(TREE, name="loud", loudness=5.0)


def chain(rho: float) -> Toy:
    """TREE in sequences: its parents and singles persist with `rho`; at rho = 0 it is TREE."""
    return replace(TREE, name="chain", rho=rho)
