"""Memory of the caller, out of which a large step leaves."""

from __future__ import annotations

from typing import Any

import zmq

__all__ = ["Loan"]


class Loan:
    """One step that leaves from where it lies: a copy of megabytes would be felt.

    It has the methods of a `Buffer` that has room for this one step. Whoever lends the
    step must not write to it any more.
    """

    def __init__(self) -> None:
        self._view = memoryview(b"")
        self._leaving: zmq.MessageTracker | None = None

    @property
    def written(self) -> int:
        """Bytes of the step; 0 if there is none."""
        return self._view.nbytes

    def write(self, step: Any) -> int:
        """Take contiguous memory as the step; refuse other with a ValueError."""
        view = memoryview(step)
        if not view.c_contiguous:
            raise ValueError("expected contiguous memory, got an array with strides.")
        self._view = view.cast("B")
        return self.written

    def part(self, begin: int, end: int) -> memoryview:
        """Return some of the bytes, not copied: they hold until `rewind`."""
        return self._view[begin:end]

    def leaves(self, tracker: zmq.MessageTracker) -> None:
        """Note that the step is being sent."""
        self._leaving = tracker

    def rewind(self, timeout: float) -> None:
        """Give the step back, once it has left.

        Raises
        ------
        zmq.NotDone
            If it has not after `timeout` seconds.
        """
        if self._leaving is not None:
            self._leaving.wait(timeout)
            self._leaving = None
        self._view = memoryview(b"")
