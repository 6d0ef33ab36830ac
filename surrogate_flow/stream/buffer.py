"""Memory in which steps wait until they leave."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import zmq

__all__ = ["Buffer"]


class Buffer:
    """Bytes that are written in order, and leave without a further copy.

    Its pages are used again and again: fresh memory for each message costs more in page
    faults than the copy into it, above all where many outlets share a machine.

    Parameters
    ----------
    size : int
        Bytes.
    """

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory = memory
        self._view = memoryview(memory)
        self._leaving: list[zmq.MessageTracker] = []
        #: Appends contiguous memory; refuses other with a ValueError.
        self.write: Callable[[Any], int] = memory.write

    @property
    def written(self) -> int:
        """Bytes written since the last `rewind`."""
        return self._memory.tell()

    def part(self, begin: int, end: int) -> memoryview:
        """Return some of the bytes, not copied: they hold until `rewind`."""
        return self._view[begin:end]

    def leaves(self, tracker: zmq.MessageTracker) -> None:
        """Note that a part of it is being sent."""
        if not tracker.done:
            self._leaving.append(tracker)

    def rewind(self, timeout: float) -> None:
        """Begin anew, once all that is being sent has left.

        Raises
        ------
        zmq.NotDone
            If it has not after `timeout` seconds.
        """
        while self._leaving:
            self._leaving[0].wait(timeout)
            self._leaving.pop(0)
        self._memory.seek(0)
