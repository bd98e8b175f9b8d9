"""One dictionary held in equal pieces by several processes, each with consecutive latents; alone, one piece.

x, b_dec and the loss are on every process, the same bit for bit; what belongs to single latents is on one. Whatever is
reduced over latents goes through a `LatentGroup`. The two reductions with a gradient are those of tensor parallelism
(Shoeybi et al. 2019, arXiv 1909.08053, section 3, g and f): a sum over the pieces, whose gradient each piece already
has, and a shared input of all pieces, whose gradient is a sum over them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from sae_lib.util.errors import ArtifactError


class LatentGroup:
    """The pieces of one dictionary. Every process makes the same calls in the same order; alone they change nothing.

    `processes` reduces where the tensors are: NCCL's group on GPUs. The default group must take CPU tensors.
    """

    def __init__(self, rank: int = 0, world: int = 1, processes: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world, self._processes = rank, world, processes

    def piece_size(self, d_sae: int) -> int:
        """Latents of each piece. Raises ArtifactError when `d_sae` cannot be cut into equal pieces."""
        if d_sae % self.world:
            raise ArtifactError(
                f"training.shard_dictionary: d_sae {d_sae} cannot be cut into {self.world} equal pieces; use a number "
                "of GPUs that divides it"
            )
        return d_sae // self.world

    def piece(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor whose dimension `dim` counts all latents; a copy, strides in their order."""
        if self.world == 1:
            return whole
        size = self.piece_size(whole.shape[dim])
        return whole.narrow(dim, self.rank * size, size).clone()

    def whole(self, piece: Tensor, dim: int) -> Tensor:
        """The pieces of all processes, put together along `dim`. Without gradient."""
        if self.world == 1:
            return piece
        mine = piece.detach().contiguous()
        pieces = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(pieces, mine, group=self._processes)
        return torch.cat(pieces, dim=dim)

    def collected(self, piece: Tensor, dim: int) -> Tensor:
        """`whole` in the first process's main memory, which holds what no GPU does; on the others their pieces."""
        if self.world == 1:
            return piece
        mine = piece.detach().cpu().contiguous()
        pieces = [torch.empty_like(mine) for _ in range(self.world)] if self.rank == 0 else None
        dist.gather(mine, pieces)
        return piece if pieces is None else torch.cat(pieces, dim=dim)

    def total(self, part: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Sum over the pieces, in fp32; the gradient of each part is that of the sum."""
        if self.world == 1:
            return part
        total: Tensor = _Total.apply(part, self)
        return total

    def shared(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A tensor that all processes have and every piece uses; its gradient is the sum of the pieces'."""
        if self.world == 1:
            return tensor
        shared: Tensor = _Shared.apply(tensor, self)
        return shared

    def sum(self, part: Tensor) -> Tensor:
        """Sum over the pieces. Without gradient."""
        return part if self.world == 1 else self._reduced(part, dist.ReduceOp.SUM)

    def mean(self, part: Tensor) -> Tensor:
        """Mean over the (equal) pieces. Without gradient."""
        return part if self.world == 1 else self.sum(part) / self.world

    def largest(self, part: Tensor) -> Tensor:
        """The largest value of any piece. Without gradient."""
        return part if self.world == 1 else self._reduced(part, dist.ReduceOp.MAX)

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            dist.barrier()

    def _reduced(self, part: Tensor, operation: Any) -> Tensor:
        result = part.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, operation, group=self._processes)
        return result


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: LatentGroup) -> Tensor:
        ctx.dtype = part.dtype
        return group.sum(part.float())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: LatentGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum(grad), None


ALONE = LatentGroup()
