"""A band around the number of draws for each sample inserted."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SamplesPerInsert"]

# Sums of decimal ratios are a little off; without it both sides could wait on a tie.
_SLACK = 1e-6


@dataclass(frozen=True)
class SamplesPerInsert:
    """Draws and inserts that keep step with each other.

    With the excess of inserts over draws, counted from the threshold on,

        d = ratio * (inserted - threshold) - drawn

    the band is ``-tolerance <= d <= tolerance``: an insert waits if it would lift `d`
    above it, a batch waits if it would push `d` below it. Inserts below the threshold
    are free. Each side waits only while the other can go on: a batch does not wait for
    samples that a full store cannot take, nor an insert for batches that an empty store
    cannot give.

    Parameters
    ----------
    ratio : float
        Number of times that a sample shall be drawn on average.
    tolerance : float
        Half the width of the band, in samples drawn. Both sides would wait for each
        other if ``2 * tolerance < ratio + batch_size``; such a band is refused by the
        store.

    References
    ----------
    Cassirer et al., *Reverb: A Framework For Experience Replay*, 2021,
    https://arxiv.org/abs/2102.04736 (there ``SampleToInsertRatio``).

    Examples
    --------
    >>> limiter = SamplesPerInsert(ratio=4.0, tolerance=64.0)
    >>> limiter.insertable(inserted=100, drawn=0, threshold=100)
    16
    >>> limiter.drawable(32, inserted=100, drawn=32, threshold=100)
    True
    >>> limiter.drawable(32, inserted=100, drawn=64, threshold=100)
    False
    """

    ratio: float
    tolerance: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise ValueError(
                f"SamplesPerInsert: expected a ratio > 0, got {self.ratio}. It is the "
                "number of times that a sample shall be drawn on average."
            )
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise ValueError(
                f"SamplesPerInsert: expected a tolerance > 0, got {self.tolerance}. "
                "Leave the limiter out if draws and inserts need not keep step."
            )

    def check(self, batch_size: int) -> None:
        """Refuse a band in which both sides would wait for each other.

        Raises
        ------
        ValueError
            If one batch or one insert does not fit into the band.
        """
        least = (self.ratio + batch_size) / 2
        if self.tolerance < least:
            raise ValueError(
                f"SamplesPerInsert: expected tolerance >= (ratio + batch_size) / 2 = "
                f"{least:g}, got {self.tolerance:g}: producers and trainer would "
                "wait for each other for ever. One batch must fit into the band: "
                f"raise the tolerance (several batches, say {4 * least:g}, is usual) "
                "or lower batch_size."
            )

    def insertable(self, inserted: int, drawn: int, threshold: int) -> int:
        """Return how many samples may be inserted now."""
        room = (self.tolerance + drawn) / self.ratio + threshold - inserted
        return max(math.floor(room + _SLACK), threshold - inserted, 0)

    def drawable(
        self, batch_size: int, inserted: int, drawn: int, threshold: int
    ) -> bool:
        """Return whether a batch may be drawn now."""
        excess = self.ratio * (inserted - threshold) - drawn
        return excess - batch_size >= -self.tolerance - _SLACK
