"""CE and KL of next-token distributions, summed over chunks of positions in one pass over the logits."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Distribution(NamedTuple):
    """Next-token distributions p of the clean model, with the sums that KL needs."""

    p: Float[Tensor, "position vocab"]
    total: Float[Tensor, " position"]
    """sum_v p_v: 1 up to rounding."""
    negentropy: Float[Tensor, " position"]
    """sum_v p_v log p_v."""

    def at(self, positions: slice) -> "Distribution":
        """Those of some positions."""
        return Distribution(*(tensor[positions] for tensor in self))


def distribution(logits: Float[Tensor, "position vocab"]) -> Distribution:
    """softmax of the logits, in float32 whatever their type."""
    log_p = logits.float().log_softmax(dim=1)
    p = log_p.exp()
    return Distribution(p, p.sum(dim=1), torch.linalg.vecdot(p, log_p))


class LossSums:
    """Sums of CE and KL over positions, in nats, in float64.

    With z the changed logits, y the next token and L = logsumexp(z):

        CE = L - z_y                KL(p || softmax(z)) = sum_v p_v log p_v - sum_v p_v z_v + L sum_v p_v
    """

    def __init__(self, device: torch.device) -> None:
        self._ce = torch.zeros((), dtype=torch.float64, device=device)
        self._kl = torch.zeros((), dtype=torch.float64, device=device)
        self.predictions = self.positions = 0

    def add(
        self,
        logits: Float[Tensor, "position vocab"],
        following: Int[Tensor, " position"],
        clean: Distribution | None = None,
    ) -> None:
        """Add positions.

        Args:
            following: the next token of each position, on the CPU, -1 where there is none: such a position counts for
                KL and not for CE.
            clean: the clean model's distributions there; without them nothing is added to KL.
        """
        z = logits.float()
        normaliser = z.logsumexp(dim=1).double()
        target = following.to(z.device)
        of_target = z.gather(1, target.clamp(min=0)[:, None])[:, 0]
        self._ce += ((normaliser - of_target) * (target >= 0)).sum()
        if clean is not None:
            crossed = torch.linalg.vecdot(clean.p, z).double()
            self._kl += (clean.negentropy - crossed + normaliser * clean.total).sum()
        self.predictions += int((following >= 0).sum())
        self.positions += len(following)

    @property
    def ce(self) -> float:
        """Mean over the positions that have a next token."""
        return self._ce.item() / self.predictions

    @property
    def kl(self) -> float:
        """Mean over all positions."""
        return self._kl.item() / self.positions
