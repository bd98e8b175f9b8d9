import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.autoencoders.build import build_autoencoder
from sae_lib.autoencoders.config import sae_config
from sae_lib.autoencoders.tree import Tree, TreeConfig, best_numbers, reassigned, reassignments
from sae_lib.share.weights import inference_form
from sae_lib.training.trainer import Trainer
from sae_lib.util.errors import ArtifactError
from tests.autoencoders.test_autoencoders import random_sae, rows
from tests.tiny_training import DATA, make_step, tiny_config, tiny_store, tiny_training


def config(d_sae: int, k: int, prefixes: tuple[float, ...], shares: tuple[float, ...], **more: Any) -> Any:
    values = {"architecture": "tree", "d_sae": d_sae, "k": k, "prefixes": prefixes, "shares": shares}
    return sae_config(values | more)


def test_the_authors_levels_shares_and_times():
    four = config(24576, 32, (1 / 16, 3 / 16, 9 / 16, 1.0), (21, 5, 4, 2))
    assert four.level_sizes() == (1536, 3072, 9216, 10752) and four.level_k() == (21, 5, 4, 2)
    two = config(24576, 80, (0.25, 1.0), (26, 6))
    assert two.level_sizes() == (6144, 18432) and two.level_k() == (65, 15)
    assert reassignments(four, 97_657) == [3000, 9000, 19000, 29000, 39000, 49000]
    assert reassignments(four, 977) == [30, 90, 190, 290, 390, 490]
    # One for each level at least, taken from where it is missed least.
    assert config(16, 4, (0.25, 0.5, 1.0), (21, 1, 1)).level_k() == (2, 1, 1)
    # What a level has no latents for goes to the next one.
    assert config(16, 14, (0.25, 0.5, 1.0), (8, 1, 1)).level_k() == (4, 4, 6)
    assert sum(config(64, 7, (0.25, 0.5, 1.0), (3, 2, 1)).level_k()) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": (1.0,), "shares": (1,)}, "two levels at least"),
        ({"shares": (1, 1, 1)}, "2 positive numbers"),
        ({"shares": (1, 0)}, "2 positive numbers"),
        ({"k": 1}, "k = 1 is less than one latent for each of 2 levels"),
    ],
)
def test_what_is_no_tree_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**({"d_sae": 16, "k": 4, "prefixes": (0.25, 1.0), "shares": (1, 1)} | changes))


def by_hand() -> Tree:
    """Levels of 2, 2 and 2 latents with one active each. Parents: 2 has 0, 3 the root, 4 has 2, 5 has 1."""
    sae = build_autoencoder(config(6, 3, (1 / 3, 2 / 3, 1.0), (1, 1, 1)), d_in=2)
    assert isinstance(sae, Tree)
    sae.parent.copy_(torch.tensor([6, 6, 0, 6, 2, 1]))
    return sae


def test_a_child_fires_only_where_its_parent_does():
    pre = torch.tensor(
        [
            [2.0, 1.0, 3.0, 1.0, 4.0, 9.0],  # 0 of the first level, so 2, so 4: 5's parent 1 has lost to 0
            [1.0, 2.0, 3.0, 1.0, 9.0, 4.0],  # 1, so 3 and not 2, so 5 and not 4
            [2.0, 1.0, 1.0, 3.0, 9.0, 4.0],  # 0; 3, of the root, is stronger than 2; nothing of the third level
            [-1.0, -2.0, 3.0, -1.0, 4.0, 4.0],  # nothing fires, and the child of the root is under zero
        ]
    )
    expected = [[2, 0, 3, 0, 4, 0], [0, 2, 0, 1, 0, 4], [2, 0, 0, 3, 0, 0], [0] * 6]
    sae = by_hand()
    assert sae.activate(pre).tolist() == expected
    assert sae.activate(pre[0]).tolist() == expected[0]
    assert sae.activate_training(make_step(pre, pre=pre)).tolist() == expected, "the same in training"


def test_gradients_reach_what_fires():
    pre = torch.tensor([[2.0, 1.0, 3.0, 1.0, 4.0, 9.0]], requires_grad=True)
    by_hand().activate(pre).sum().backward()
    assert pre.grad is not None and pre.grad.tolist() == [[1, 0, 1, 0, 1, 0]]


def test_parents_are_drawn_from_the_levels_above_and_the_root():
    sae = build_autoencoder(tiny_config("tree_4", {"d_sae": 1024, "k": 32}), d_in=8, seed=3)
    assert isinstance(sae, Tree)
    first, second = sae.parent[:64], sae.parent[64:192]
    assert (first == 1024).all()
    assert ((second < 64) | (second == 1024)).all() and len(second.unique()) > 40
    assert (second == 1024).any() and ((sae.parent[192:576] >= 64) & (sae.parent[192:576] < 192)).any()
    again = build_autoencoder(sae.cfg, d_in=8, seed=3)
    assert torch.equal(again.get_buffer("parent"), sae.parent)


def test_numbers_of_children_maximise_the_least_capacity_of_each():
    everyone = torch.ones(3, dtype=torch.bool)
    assert best_numbers(torch.tensor([4.0, 1.0, 2.0]), everyone, 7).tolist() == [4, 1, 2]
    assert best_numbers(torch.tensor([4.0, 1.0, 2.0]), torch.tensor([False, True, True]), 3).tolist() == [0, 1, 2]
    assert best_numbers(torch.tensor([0.0, 0.0, 0.0]), everyone, 4).tolist() == [0, 0, 4], "all to the root"
    capacity = torch.rand(4, generator=torch.Generator().manual_seed(0))

    def least(numbers: Any) -> float:
        return min(float(c) / n for c, n in zip(capacity, numbers, strict=True) if n)

    found = best_numbers(capacity, torch.ones(4, dtype=torch.bool), 6).tolist()
    every = [n for n in itertools.product(range(7), repeat=4) if sum(n) == 6]
    assert sum(found) == 6 and least(found) == pytest.approx(max(map(least, every)))


def test_dead_children_move_to_parents_that_lack_them():
    parent = torch.tensor([0, 0, 0, 1, 2, 2])
    dead = torch.tensor([False, True, True, True, True, False])
    # Parent 0 has one too many and gives its first dead child; 1 keeps its own; 2 gives its only dead one; 3 lacks two.
    moved = reassigned(parent, torch.tensor([2, 1, 1, 2]), dead)
    assert moved.tolist() == [0, 3, 0, 1, 3, 2]
    assert reassigned(parent, torch.tensor([2, 1, 1, 2]), torch.zeros(6, dtype=torch.bool)).equal(parent)
    # 1 lacks two and 3 one, of which three dead children can fill all; from 0 first.
    assert reassigned(parent, torch.tensor([0, 3, 2, 1]), dead).tolist() == [0, 1, 1, 1, 2, 2]


def counted(sae: Tree, fired: list[float], loss: float, **known: Any) -> None:
    """The end of a step in which these latents have fired."""
    sae._loss = torch.tensor(loss)
    f = torch.tensor([fired], dtype=torch.float32)
    sae.after_step(make_step(f, x=torch.zeros(1, 2), total=1000, **known))


def test_a_steps_loss_is_shared_by_the_possible_parents_that_fired():
    sae = by_hand()
    counted(sae, [1, 0, 1, 0, 0, 0], 6.0)
    # For the second level 0 and the root, for the third 0, 2 and the root.
    assert sae.capacity[0].tolist() == [3, 0, 0, 0, 0, 0, 3]
    assert sae.capacity[1].tolist() == [2, 0, 2, 0, 0, 0, 2]
    counted(sae, [0, 0, 0, 0, 0, 0], 1.0)
    assert sae.capacity[1].tolist() == [2, 0, 2, 0, 0, 0, 3]
    assert sae.silent_tokens.tolist() == [1, 2, 1, 2, 2, 2]


def test_children_are_moved_at_the_times_and_given_to_the_root_at_last():
    sae = by_hand()
    sae.cfg = sae.cfg.model_copy(update={"dead_after_tokens": 5, "eligible_tokens": 3})
    sae.silent_tokens.fill_(9)
    sae.parent[2:4] = 1
    always = [1.0, 0, 0, 0, 0, 0]
    counted(sae, always, 1.0, index=28)
    assert sae.parent.tolist() == [6, 6, 1, 1, 2, 1], "not yet"
    counted(sae, always, 1.0, index=30)
    # Only 0 and the root are eligible: of two children each gets one, in both levels; 5, of parent 1, goes before 4.
    assert sae.parent.tolist() == [6, 6, 0, 6, 6, 0]
    assert not sae.capacity.any(), "counted anew"
    counted(sae, [1, 0, 0, 0, 0, 1], 1.0, index=511)
    assert sae.parent.tolist() == [6, 6, 6, 6, 6, 0], "5 has fired and keeps its parent"
    sae.parent[2:4] = 1
    counted(sae, always, 1.0, index=600)
    assert sae.parent.tolist() == [6, 6, 1, 1, 6, 0] and not sae.capacity.any(), "no more"


@pytest.mark.parametrize("architecture", ["tree", "switch", "matching_pursuit"])
def test_no_other_library_is_given_what_it_cannot_hold(architecture):
    with pytest.raises(ArtifactError, match=f"sae: {architecture} encodes in a way that no other library's format"):
        inference_form(random_sae(architecture))


def test_auxk_is_that_of_the_first_level():
    sae, topk = random_sae("tree", k=6, subtract_b_dec=True), random_sae("topk", subtract_b_dec=True)
    topk.load_state_dict(sae.state_dict(), strict=False)
    x, dead = rows(), torch.zeros(12, dtype=torch.bool)
    dead[[1, 3, 7]] = True
    step = make_step(torch.zeros(40, 12), x=x, dead=dead, any_dead=True)
    step.f = sae.encode_training(step)
    step.x_hat = sae.decode_training(step)
    step.reconstruction = (x - step.x_hat).square().sum(dim=1).mean()
    sae.reconstruction_loss(step)
    found = sae.auxiliary_loss(step)
    f = step.f.dense()
    dead[7] = False
    first = make_step(f, x=x, dead=dead, any_dead=True, x_hat=f[:, :4] @ sae.W_dec[:4] + sae.b_dec)
    expected = topk.auxiliary_loss(first)
    assert found is not None and expected is not None
    torch.testing.assert_close(found, expected)
    dead[:4] = False
    dead[9] = True
    assert isinstance(sae, Tree) and first.x_hat is not None
    assert sae.auxiliary_loss(make_step(f, x=x, dead=dead, any_dead=True, kept=[first.x_hat])) is None


def test_children_that_never_fire_find_other_parents_in_training(tmp_path: Path):
    settings = {"dead_after_tokens": 64, "reassign_first": 0.2, "reassign_longest": 0.2, "root_at": 0.9}
    cfg = tiny_config("tree_2", settings)
    assert isinstance(cfg, TreeConfig)
    trainer = Trainer(cfg, tiny_store(tmp_path), DATA, tiny_training(), 0, "cpu")
    parent = trainer.sae.get_buffer("parent")
    before, after = parent.clone(), []
    for _ in range(40):
        trainer.step()
        after.append(parent.clone())
    kept = trainer.snapshot().get_buffer("parent")
    assert kept.equal(parent) and kept is not parent
    changes = [i + 1 for i, (one, two) in enumerate(itertools.pairwise([before, *after])) if not one.equal(two)]
    assert changes and set(changes) <= {8, 16, 24, 32, 36}
