"""Rows of a dataset that arrive over a network, in spite of the network."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

from sae_lib.errors import ArtifactError, first_line

# After each failure in a row the wait doubles: 1, 2, 4 ... 64 seconds, two minutes in all. `datasets` has then already
# tried each read many times itself.
MOST_FAILURES = 7


class Retried:
    """The rows of a streamed dataset; after a network error it goes on with the row that comes next.

    >>> list(Retried(dataset, "the corpus"))      # doctest: +SKIP

    Raises:
        ArtifactError: while iterating, when `MOST_FAILURES` + 1 attempts to read one row have failed.
    """

    def __init__(self, dataset: Any, name: str, sleep: Callable[[float], object] = time.sleep) -> None:
        self._dataset, self._name, self._sleep = dataset, name, sleep
        self._beginning = dataset.state_dict()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset, place = self._dataset, self._beginning
        read = failures = 0
        while True:
            dataset.load_state_dict(place)
            try:
                for row in dataset:
                    read, failures = read + 1, 0
                    # Not later: a failure leaves the state of a share of the rows between two of them.
                    place = dataset.state_dict()
                    yield row
                return
            except Exception as error:
                if not is_network_error(error):
                    raise
                failures += 1
                if failures > MOST_FAILURES:
                    raise ArtifactError(
                        f"corpus: {self._name} could not be read on after {read:,} rows, in {failures} attempts "
                        f"({type(error).__name__}: {first_line(error)}); run the same command again when the network "
                        "works, what is finished is kept; or download the files and set corpus.source to files"
                    ) from error
            self._sleep(2.0 ** (failures - 1))


def is_network_error(error: BaseException) -> bool:
    """Whether trying again may help: a lost connection, a timeout, a server that is busy or broken."""
    import httpx2  # what huggingface_hub reads with

    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return False
    return isinstance(error, OSError | EOFError | httpx2.HTTPError)
