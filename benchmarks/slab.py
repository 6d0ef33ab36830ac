"""Where received steps end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

__all__ = ["SLAB_BYTES", "Slab"]

SLAB_BYTES = 64 << 20


class Slab:
    """A ring of steps of `cells` numbers, and a sink that is never full.

    Attributes
    ----------
    full : threading.Event
        Set when `total` steps have come.
    end : float
        `time.perf_counter` then.
    """

    def __init__(self, cells: int, total: int) -> None:
        count = max(4, SLAB_BYTES // (4 * cells))
        self.rows = np.zeros((count, 1, cells), np.float32)
        self.full = threading.Event()
        self.end = 0.0
        self._left = total
        self._next = 0

    def offer(
        self,
        simulation: int,
        first: int,
        steps: np.ndarray,
        parameters: np.ndarray,
        inputs: np.ndarray | None = None,
    ) -> int:
        """Copy the steps into the ring."""
        count = len(steps)
        start = self._next
        stop = start + count
        if stop <= len(self.rows):
            self.rows[start:stop] = steps
        else:
            head = len(self.rows) - start
            self.rows[start:] = steps[:head]
            stop = count - head
            self.rows[:stop] = steps[head:]
        self._next = stop
        self._left -= count
        if self._left == 0:
            self.end = time.perf_counter()
            self.full.set()
        return count

    def open(self, simulation: int) -> int:
        """Begin at the first step."""
        return 0

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Do nothing: nothing is kept of a simulation."""

    def priority(self, simulation: int) -> int:
        """Return 0: all simulations are equal."""
        return 0

    def waiting(self) -> str:
        """Return "": nobody waits."""
        return ""

    def on_room(self, wake: Callable[[], None]) -> None:
        """Do nothing: there is always room."""
