"""Batches made ready in a thread while the one before is trained on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from sae_lib.activations import Batch, WindowStream


class Prefetched:
    """The batches of a stream, in order. One is made ahead where its rows come from the disk, or from main memory to a
    GPU; rows that are where they are used are gathered at once. `steps` is how many batches are wanted.
    """

    def __init__(self, stream: WindowStream, steps: int) -> None:
        self._stream, self._steps = stream, steps
        self._waiting: dict[int, Future[Batch]] = {}
        resident = stream.store.resident
        at_hand = resident is not None and resident.device.type == stream.device.type
        self._thread = None if at_hand else ThreadPoolExecutor(1, thread_name_prefix="batches")

    def batch(self, index: int) -> Batch:
        """Batch number `index`."""
        if self._thread is None:
            return self._stream.batch(index)
        ready = self._waiting.pop(index, None)
        batch = self._stream.batch(index) if ready is None else ready.result()
        if index + 1 < self._steps:
            self._waiting = {index + 1: self._thread.submit(self._stream.batch, index + 1)}
        return batch
