"""Batches between the draw and the end of their training step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from surrogate_flow.reservoir.draw import Draw

__all__ = ["PendingBatches"]


class PendingBatches:
    """Batches that have been drawn and are not trained yet, oldest first.

    Batches are drawn ahead of the training, so those that a checkpoint finds between
    the two are neither in the store nor in the weights. They are kept here, and a run
    that goes on from the checkpoint begins with them.

    Parameters
    ----------
    again : iterable of Draw
        To be trained before anything is drawn.

    Notes
    -----
    Thread-safe.
    """

    def __init__(self, again: Iterable[Draw] = ()) -> None:
        self._again = deque(again)
        self._draws: deque[Draw | None] = deque()
        self._first = 0
        self._lock = threading.Lock()

    @property
    def airborne(self) -> int:
        """Number of batches that are being copied out."""
        with self._lock:
            return self._draws.count(None)

    @property
    def draws(self) -> list[Draw]:
        """All that is not trained; what is still being copied out is left out."""
        with self._lock:
            return [draw for draw in self._draws if draw is not None] + [*self._again]

    def repeat(self) -> Draw | None:
        """Return the next batch that is to be trained before anything is drawn."""
        with self._lock:
            draw = self._again.popleft() if self._again else None
            if draw is not None:
                self._draws.append(draw)
            return draw

    def begin(self) -> int:
        """Note that a batch is being drawn; return its number."""
        with self._lock:
            self._draws.append(None)
            return self._first + len(self._draws) - 1

    def land(self, number: int, draw: Draw) -> None:
        """Note what was drawn under a number."""
        with self._lock:
            self._draws[number - self._first] = draw

    def give_back(self, given: int) -> None:
        """Have all but the first `given` batches drawn again: nobody got them."""
        with self._lock:
            while self._draws and self._first + len(self._draws) > given:
                if (draw := self._draws.pop()) is not None:
                    self._again.appendleft(draw)

    def settle(self, trained: int) -> None:
        """Let go of the first `trained` batches, counted from the beginning."""
        with self._lock:
            while self._draws and self._first < trained:
                self._draws.popleft()
                self._first += 1
