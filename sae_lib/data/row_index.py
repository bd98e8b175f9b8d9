"""Which tokens are rows of an activation store: every position whose token is not special, in token order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from sae_lib.util.errors import ArtifactError

CONTEXTS_PER_CHUNK = 8192  # so memory does not grow with the number of tokens

Rows = tuple[NDArray[np.int32], NDArray[np.uint16]]
"""Context and position of each row."""


def row_chunks(
    tokens: Int[np.ndarray, "context position"], special_ids: frozenset[int], rows: int | None = None
) -> Iterator[Rows]:
    """Context and position of the first `rows` rows (all, if None), some thousands of contexts at a time."""
    special = np.array(sorted(special_ids))
    left = rows
    for start in range(0, len(tokens), CONTEXTS_PER_CHUNK):
        context, position = np.nonzero(~np.isin(tokens[start : start + CONTEXTS_PER_CHUNK], special))
        yield (context[:left] + start).astype(np.int32), position[:left].astype(np.uint16)
        if left is not None:
            left -= min(left, len(context))
            if left == 0:
                return


def count_rows(
    tokens: Int[np.ndarray, "context position"], special_ids: frozenset[int], max_rows: int | None = None
) -> int:
    """How many rows the store of these tokens has: `max_rows`, or all there are.

    Raises:
        ArtifactError: there are no rows, or fewer than `max_rows`.
    """
    found = sum(len(contexts) for contexts, _ in row_chunks(tokens, special_ids, max_rows))
    if found == 0 or (max_rows is not None and found < max_rows):
        raise ArtifactError(
            f"data.train_tokens: {max_rows or 1} rows were asked for, the corpus has {found} tokens "
            "that are not special; lower it or add text"
        )
    return found
