"""What an inlet has seen, counted."""

from __future__ import annotations

from collections import deque

__all__ = ["Counts"]

_RECENT = 32


class Counts:
    """Steps, messages, and how long simulations took.

    Attributes
    ----------
    steps, messages, duplicates : int
        As in `StreamStats`.
    worked : float
        The same.
    """

    def __init__(self) -> None:
        self.steps = self.messages = self.duplicates = 0
        self.worked = 0.0
        self._durations: deque[float] = deque(maxlen=_RECENT)

    def receive(self, new: int, old: int) -> None:
        """Count the steps of one message, and those of them that had come before."""
        self.duplicates += old
        if new:
            self.steps += new
            self.messages += 1

    def finish(self, seconds: float) -> None:
        """Note how long the last attempt at a simulation took that has finished."""
        self.worked += seconds
        self._durations.append(seconds)

    @property
    def longest(self) -> float:
        """Seconds of the longest of the last ones; 0 before the first."""
        return max(tuple(self._durations), default=0.0)
