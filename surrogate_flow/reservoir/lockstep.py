"""Inserts and draws that take turns, so that batches do not depend on speeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Lockstep"]

_SLACK = 1e-6  # sums of decimal ratios are a little off


@dataclass(frozen=True)
class Lockstep:
    """At any moment either an insert or a batch may come, never both.

    With the excess of inserts over draws, counted from the threshold on,

        d = ratio * (inserted - threshold) - drawn

    a batch is drawn when ``d >= batch_size``, and samples come in while it is below. So
    a batch sees the same inserts in every run, if they come in the same order.

    Parameters
    ----------
    ratio : float
        Number of times that a sample is drawn on average.
    batch_size : int

    Examples
    --------
    >>> lockstep = Lockstep(ratio=2.0, batch_size=8)
    >>> lockstep.insertable(inserted=100, drawn=0, threshold=100)
    4
    >>> lockstep.drawable(8, inserted=104, drawn=0, threshold=100)
    True
    >>> lockstep.insertable(inserted=104, drawn=0, threshold=100)
    0
    """

    ratio: float
    batch_size: int

    def insertable(self, inserted: int, drawn: int, threshold: int) -> int:
        """Return how many samples may be inserted now."""
        missing = (self.batch_size + drawn) / self.ratio + threshold - inserted
        return max(math.ceil(missing - _SLACK), 0)

    def drawable(
        self, batch_size: int, inserted: int, drawn: int, threshold: int
    ) -> bool:
        """Return whether a batch may be drawn now."""
        excess = self.ratio * (inserted - threshold) - drawn
        return excess >= batch_size - _SLACK
