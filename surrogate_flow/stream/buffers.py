"""Memory that outgoing steps are sent from, without a further copy."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import zmq

__all__ = ["BorrowedBuffer", "GatherBuffer"]


class GatherBuffer:
    """A buffer that small steps are copied into, one after the other.

    Its pages are reused: fresh memory for each message costs more in page faults than
    the copy, above all where many outlets share a machine.

    Parameters
    ----------
    size : int
        Bytes.
    """

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory = memory
        self._view = memoryview(memory)
        self._in_transit: list[zmq.MessageTracker] = []
        #: Append contiguous memory; raises ValueError for other memory.
        self.write: Callable[[Any], int] = memory.write

    @property
    def written(self) -> int:
        """Bytes written since the last `rewind`."""
        return self._memory.tell()

    def part(self, begin: int, end: int) -> memoryview:
        """Return some of the bytes, not copied; valid until `rewind`."""
        return self._view[begin:end]

    def track(self, tracker: zmq.MessageTracker) -> None:
        """Note that a part is being sent, until the tracker is done."""
        if not tracker.done:
            self._in_transit.append(tracker)

    def rewind(self, timeout: float) -> None:
        """Empty the buffer, after all that is being sent has left.

        Raises
        ------
        zmq.NotDone
            If it has not after `timeout` seconds.
        """
        while self._in_transit:
            self._in_transit[0].wait(timeout)
            self._in_transit.pop(0)
        self._memory.seek(0)


class BorrowedBuffer:
    """A `GatherBuffer` of one large step, which is the caller's own memory.

    Nothing is copied, so the caller must not write to that memory any more.
    """

    def __init__(self) -> None:
        self._view = memoryview(b"")
        self._in_transit: zmq.MessageTracker | None = None

    @property
    def written(self) -> int:
        """Bytes of the step; 0 if there is none."""
        return self._view.nbytes

    def write(self, step: Any) -> int:
        """Borrow contiguous memory; raises ValueError for other memory."""
        view = memoryview(step)
        if not view.c_contiguous:
            raise ValueError("expected contiguous memory, got an array with strides.")
        self._view = view.cast("B")
        return self.written

    def part(self, begin: int, end: int) -> memoryview:
        """Return some of the bytes, not copied; valid until `rewind`."""
        return self._view[begin:end]

    def track(self, tracker: zmq.MessageTracker) -> None:
        """Note that the step is being sent, until the tracker is done."""
        self._in_transit = tracker

    def rewind(self, timeout: float) -> None:
        """Give the memory back, as `GatherBuffer.rewind`."""
        if self._in_transit is not None:
            self._in_transit.wait(timeout)
            self._in_transit = None
        self._view = memoryview(b"")
