"""The sparsity coefficient at which a method has a given L0, from a few that were tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def crossing(values: Sequence[float], l0: Sequence[float], target: float) -> float:
    """The value where log L0, linear in log value between neighbours, meets log target; the smallest one, if several.

    Where no two neighbours bracket the target, the value that came nearest: beyond the range lies what was not seen,
    and a method may collapse there.

    >>> round(crossing([0.01, 0.1], [4.0, 1.0], 2.0), 4)
    0.0316
    """
    order = np.argsort(values)
    x, y = np.log(np.array(values)[order]), np.log(np.maximum(np.array(l0)[order], 1e-3)) - np.log(target)
    for i in range(len(x) - 1):
        if y[i] * y[i + 1] <= 0 and y[i] != y[i + 1]:
            return float(np.exp(x[i] - y[i] / (y[i + 1] - y[i]) * (x[i + 1] - x[i])))
    return float(np.array(values)[order][np.abs(y).argmin()])
