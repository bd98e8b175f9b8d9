"""The Tree SAE: a latent of one level may fire only where its parent of a level above does."""

import heapq
from copy import copy
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.autoencoders.base import Step, architecture
from sae_lib.autoencoders.latents import Entries
from sae_lib.autoencoders.matryoshka import Matryoshka, MatryoshkaConfig
from sae_lib.autoencoders.method import Look
from sae_lib.autoencoders.topk import strongest, topk_method

RUN = 97_657  # optimiser steps of the authors' runs, of 5 x 1,024 tokens each


class TreeConfig(MatryoshkaConfig):
    """The Tree SAE. Its levels are what `prefixes` add to one another."""

    annealed: ClassVar[bool] = False
    architecture: str = "tree"
    shares: tuple[float, ...]
    """How k is divided among the levels; each has one active latent at least."""
    eligible_tokens: int = Field(50_000, ge=1)
    """Only what has fired within so many tokens is given children."""
    reassign_first: float = Field(3_000 / RUN, gt=0.0)
    """Share of the run after which dead children are given to other parents for the first time."""
    reassign_growth: float = Field(2.0, ge=1.0)
    """Each interval up to the next time is so many times as long as the one before it."""
    reassign_longest: float = Field(10_000 / RUN, gt=0.0)
    """At most this share of the run."""
    root_at: float = Field(50_000 / RUN, ge=0.0, le=1.0)
    """Share of the run after which dead children are given to the root, and none is moved any more."""

    @model_validator(mode="after")
    def _one_share_for_each_level(self) -> "TreeConfig":
        if len(self.prefixes) < 2:
            raise ValueError("a tree has two levels at least; give prefixes two numbers or more")
        if len(self.shares) != len(self.prefixes) or min(self.shares) <= 0.0:
            raise ValueError(f"shares must be {len(self.prefixes)} positive numbers, one for each of prefixes")
        if self.k < len(self.shares):
            raise ValueError(f"k = {self.k} is less than one latent for each of {len(self.shares)} levels; raise k")
        return self

    def level_k(self) -> tuple[int, ...]:
        """Active latents of each level: k by the largest remainders of `shares`, one at least, and no more than there
        are."""
        exact, sizes = [self.k * share / sum(self.shares) for share in self.shares], self.level_sizes()
        given = [min(max(1, int(k)), size) for k, size in zip(exact, sizes, strict=True)]
        while sum(given) != self.k:
            step = 1 if sum(given) < self.k else -1
            open_to = [level for level, k in enumerate(given) if 1 <= k + step <= sizes[level]]
            given[max(open_to, key=lambda level: step * (exact[level] - given[level]))] += step
        return tuple(given)


@architecture(TreeConfig)
class Tree(Matryoshka):
    """Each latent of level l > 1 has one parent in the levels before it, or the root, which is always on. Of each row,
    each level keeps the k_l largest of ReLU(pre) whose parent is above zero; the loss is that of the Matryoshka SAE
    (arXiv 2605.07922, Eq. 6-7). A parent must fire wherever a child does: a child cannot stand in for it.

    Parents are drawn at random. Each step's loss is divided equally among the root and the latents that have fired in
    the batch; the sum over steps is a latent's *capacity* C_p for children. From time to time dead children are moved
    so that their numbers n_p maximise min_p C_p / n_p. After half of the run what is still dead is given to the root.

    The authors train GPT-2 small's layer 5 with 24,576 latents and 500 M tokens: Adam at 1e-4, no clipping, L0 of 32 as
    26 + 6 or 21 + 5 + 4 + 2, AuxK at 1/32 for dead latents of the first level alone, and each token standardised to
    mean 0 and deviation 1 (its inverse needs the token, so that it is not done here: inputs are scaled as for every
    other SAE). Their loss is the sum over levels, ours the mean: AuxK's weight is divided too.
    """

    exportable = False
    cfg: TreeConfig

    def __init__(self, config: TreeConfig, d_in: int, generator: torch.Generator) -> None:
        super().__init__(config, d_in, generator)
        root, starts = config.d_sae, (0, *config.prefix_sizes()[:-1])
        self.levels = list(zip(starts, config.level_sizes(), strict=True))  # first latent and size of each
        parent = torch.full((root,), root)
        for start, size in self.levels[1:]:
            drawn = torch.randint(0, start + 1, (size,), generator=generator)
            parent[start : start + size] = torch.where(drawn == start, root, drawn)
        self.parent: Tensor = nn.Buffer(parent)
        # Of each level's parents; the root's is the last one.
        self.capacity: Tensor = nn.Buffer(torch.zeros(len(starts) - 1, root + 1))
        self.silent_tokens: Tensor = nn.Buffer(torch.zeros(root, dtype=torch.long))
        self._loss = torch.zeros(())  # of the current training step

    def activate(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        fires = torch.ones_like(pre[..., :1])  # the root, then one level after another
        found: list[Tensor] = []
        for (start, size), k in zip(self.levels, self.cfg.level_k(), strict=True):
            of_level = pre[..., start : start + size]
            if start:
                parent = self.parent[start : start + size]
                of_level = of_level * fires.index_select(-1, torch.where(parent == self.d_sae, 0, parent + 1))
            found.append(strongest(of_level, k))
            fires = torch.cat([fires, found[-1].detach().sign()], dim=-1)
        return torch.cat(found, dim=-1)

    def activate_training(self, step: Step) -> Float[Tensor, "batch d_sae"]:
        return self.activate(step.pre)

    def entries(self, step: Step, pre: Float[Tensor, "batch d_sae"]) -> Entries | None:
        return None

    def reconstruction_loss(self, step: Step) -> Float[Tensor, ""]:
        loss = super().reconstruction_loss(step)
        self._loss = loss.detach()
        return loss

    def auxiliary_loss(self, step: Step) -> Float[Tensor, ""] | None:
        """AuxK of the first level: its dead latents, and what it leaves of x."""
        dead = step.dead.clone()
        dead[self.levels[1][0] :] = False
        first = copy(step)
        first.dead, first.any_dead, first.x_hat = dead, step.any_dead and bool(dead.any()), step.kept[0].float()
        return super().auxiliary_loss(first)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        fired = step.firing_rate > 0
        self.silent_tokens.add_(len(step.x)).masked_fill_(fired, 0)
        dead = self.silent_tokens >= self.cfg.dead_after_tokens
        done, root_at = step.index + 1, max(1, round(self.cfg.root_at * step.total))
        if done == root_at:
            dead[: self.levels[1][0]] = False
            self.parent.masked_fill_(dead, self.d_sae)
        if done >= root_at:
            return
        for level, (start, _) in enumerate(self.levels[1:]):
            on = fired[:start].float()
            share = self._loss / (on.sum() + 1)
            self.capacity[level, :start].add_(share * on)
            self.capacity[level, -1].add_(share)
        if done in reassignments(self.cfg, step.total):
            self._reassign(dead)

    def _reassign(self, dead: Bool[Tensor, " d_sae"]) -> None:
        """Give dead children to parents with much capacity for each; capacity is counted anew."""
        eligible = self.silent_tokens < self.cfg.eligible_tokens
        root = eligible.new_ones(1)
        for level, (start, size) in enumerate(self.levels[1:]):
            own = slice(start, start + size)
            capacity = torch.cat([self.capacity[level, :start], self.capacity[level, -1:]])
            allowed = torch.cat([eligible[:start], root])
            moved = reassigned(self.parent[own].clamp(max=start), best_numbers(capacity, allowed, size), dead[own])
            self.parent[own] = torch.where(moved == start, self.d_sae, moved)
        self.capacity.zero_()


def reassignments(config: TreeConfig, total: int) -> list[int]:
    """The numbers of finished steps after which dead children are moved, in a run of `total` steps."""
    found, interval, at = [], config.reassign_first * total, 0.0
    while (at := at + max(1.0, interval)) < min(total, config.root_at * total):
        found.append(round(at))
        interval = min(config.reassign_longest * total, interval * config.reassign_growth)
    return found


def best_numbers(
    capacity: Float[Tensor, " parent"], eligible: Bool[Tensor, " parent"], children: int
) -> Int[Tensor, " parent"]:
    """How many children each parent has where min C_p / n_p is largest: one at a time to whoever has the largest
    C_p / (n_p + 1). The last parent, the root, is always eligible.
    """
    values = capacity.double().tolist()
    numbers = [0] * len(values)
    may = [p for p in eligible.nonzero().squeeze(1).tolist() if values[p] > 0]
    heap = [(-values[p], p) for p in (may or [len(values) - 1])]
    heapq.heapify(heap)
    for _ in range(children):
        p = heap[0][1]
        numbers[p] += 1
        heapq.heapreplace(heap, (-values[p] / (numbers[p] + 1), p))
    return torch.tensor(numbers, device=capacity.device)


def reassigned(
    parent: Int[Tensor, " child"], numbers: Int[Tensor, " parent"], dead: Bool[Tensor, " child"]
) -> Int[Tensor, " child"]:
    """`parent` after as many dead children as can have gone from those with more children than `numbers` says to those
    with fewer."""
    excess = torch.bincount(parent, minlength=len(numbers)) - numbers
    movable = dead.nonzero().squeeze(1)
    movable = movable[parent[movable].argsort(stable=True)]
    giver = parent[movable]
    place = torch.arange(len(giver), device=giver.device) - torch.searchsorted(giver, giver)  # among its parent's
    movers = movable[place < excess[giver]]
    takers = torch.repeat_interleave((-excess).clamp_min(0))
    moves = min(len(movers), len(takers))
    return parent.index_copy(0, movers[:moves], takers[:moves])


SOURCE = "*Tree SAE*, arXiv 2605.07922"
OLIVE, SAND = Look("#999933", "H", (0, (4, 2, 1, 2))), Look("#ddcc77", "X", (0, (6, 1, 2, 1)))
# 6,144 and 18,432 latents; 1,536, 3,072, 9,216 and 10,752.
for _n, _prefixes, _shares, _look in (
    (2, (1 / 4, 1.0), (26, 6), OLIVE),
    (4, (1 / 16, 3 / 16, 9 / 16, 1.0), (21, 5, 4, 2), SAND),
):
    _recipe = {"architecture": "tree", "prefixes": _prefixes, "shares": _shares, "auxk_coefficient": 1 / 32 / _n}
    topk_method(f"tree_{_n}", f"Tree ({_n} levels)", _recipe, _look, papers=(SOURCE,))
