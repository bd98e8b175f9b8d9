"""The rows of an activation store, shard by shard: the model computes one while a thread takes the one before away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Bool
from numpy.typing import NDArray
from torch import Tensor

from sae_lib.data.language_model import LanguageModel
from sae_lib.util.errors import ArtifactError

Take = Callable[[int, NDArray[np.uint16]], object]
"""Called with the number of a shard and its values, bf16 bit patterns `[row, d_in]`."""


class RowSource(NamedTuple):
    """What the rows of a store are computed from."""

    lm: LanguageModel
    tokens: NDArray[np.int32]
    """`[context, position]`"""
    contexts: NDArray[np.int32]
    """The context of every row of the store, ascending."""
    positions: NDArray[np.uint16]
    shard_rows: int
    batch: int
    """Contexts per forward pass."""


def make_shards(
    source: RowSource,
    numbers: Iterable[int],
    take: Take,
    advance: Callable[[int], object],
    resident: BFloat16[Tensor, "row d_in"] | None = None,
) -> None:
    """Compute the shards with these numbers and hand each to `take`, in a thread and in order.

    At most two shards are in memory: the one being computed and the one being taken. On a GPU a shard is copied to
    the host once, when it is whole, and only the thread waits for the copy.

    Args:
        advance: called with the number of rows of every batch.
        resident: a place for all rows of the store, on the model's device, where they are to stay.

    Raises:
        ArtifactError: NaN or infinite activations; or what `take` raises.
    """
    lm = source.lm
    with ThreadPoolExecutor(1, thread_name_prefix="shards") as thread:
        taking: Future[None] | None = None
        for number in numbers:
            rows = slice(number * source.shard_rows, (number + 1) * source.shard_rows)
            if resident is not None:
                values = resident[rows]
            else:
                values = torch.empty(len(source.contexts[rows]), lm.d_in, dtype=torch.bfloat16, device=lm.device)
            finite = _compute(source, rows, values, advance)
            fetched = _fetch(values), _fetch(finite)
            copied = torch.cuda.Event() if lm.device.type == "cuda" else None
            if copied is not None:
                copied.record()
            if taking is not None:
                taking.result()
            taking = thread.submit(_hand_over, source, number, *fetched, copied, take)
        if taking is not None:
            taking.result()


def _compute(
    source: RowSource, rows: slice, values: BFloat16[Tensor, "row d_in"], advance: Callable[[int], object]
) -> Bool[Tensor, "row"]:
    """Fill `values` with the rows of one shard; says which rows are finite. Never waits for a GPU."""
    lm, contexts = source.lm, np.asarray(source.contexts[rows])
    first, last, length = int(contexts[0]), int(contexts[-1]), source.tokens.shape[1]
    tokens = torch.from_numpy(np.array(source.tokens[first : last + 1], dtype=np.int64)).to(lm.device)
    # Place of each row in the shard's own contexts, laid end to end.
    places = torch.from_numpy((contexts.astype(np.int64) - first) * length + source.positions[rows]).to(lm.device)
    finite = torch.empty(len(values), dtype=torch.bool, device=lm.device)
    starts = np.arange(first, last + 1, source.batch)
    bounds = np.searchsorted(contexts, np.append(starts, last + 1).astype(contexts.dtype))
    for start, low, high in zip(starts - first, bounds[:-1], bounds[1:], strict=True):
        if low == high:
            continue
        stop = int(contexts[high - 1]) - first + 1
        residual = lm.residual_stream(tokens[start:stop]).flatten(0, 1)
        values[low:high] = residual.index_select(0, places[low:high] - start * length).to(torch.bfloat16)
        finite[low:high] = values[low:high].isfinite().all(dim=1)
        advance(int(high - low))
    return finite


def _fetch(values: Tensor) -> Tensor:
    """A tensor for the host; from a GPU it arrives later, in the order of the GPU's work."""
    if values.device.type == "cpu":
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _hand_over(
    source: RowSource, number: int, values: Tensor, finite: Tensor, copied: torch.cuda.Event | None, take: Take
) -> None:
    if copied is not None:
        copied.synchronize()
    if not finite.all():
        lm, row = source.lm, number * source.shard_rows + int((~finite).nonzero()[0])
        raise ArtifactError(
            f"activations: {lm.name} gives NaN or infinity after layer {lm.layer}, context {source.contexts[row]}, "
            f"position {source.positions[row]}; it computes in {str(lm.dtype).removeprefix('torch.')}: "
            "try another model.dtype"
        )
    take(number, values.view(torch.int16).numpy().view(np.uint16))
