"""Rules that tie the number of draws to the number of samples inserted.

Limiters follow the excess of inserts over draws, counted from the threshold on::

    d = ratio * (inserted - threshold) - drawn
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from surrogate_flow.fields.errors import UserError

__all__ = ["Deterministic", "Limiter", "SamplesPerInsert"]

# Sums of decimal ratios are a little off; without it both sides could wait on a tie.
_SLACK = 1e-6


@final
@dataclass(frozen=True)
class SamplesPerInsert:
    """A band for the excess of inserts over draws: ``-tolerance <= d <= tolerance``.

    An insert waits if it would lift `d` above the band, a
    batch waits if it would push `d` below it. Inserts below the threshold are free.
    Each side waits only while the other can go on: a batch does not wait for samples
    that a full store cannot take, nor an insert for batches that an empty store cannot
    give.

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
        for name, value in (("ratio", self.ratio), ("tolerance", self.tolerance)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(
                    f"SamplesPerInsert.{name}",
                    "a number > 0",
                    value,
                    "Leave the limiter out if draws and inserts are not to be tied.",
                )

    def check(self, batch_size: int) -> None:
        """Refuse a band in which both sides would wait for each other.

        Raises
        ------
        UserError
            If one batch or one insert does not fit into the band.
        """
        least = (self.ratio + batch_size) / 2
        if self.tolerance < least:
            raise UserError(
                "SamplesPerInsert",
                f"tolerance >= (ratio + batch_size) / 2 = {least:g}",
                f"{self.tolerance:g}",
                "Simulations and trainer would wait for each other for ever: raise the "
                f"tolerance ({4 * least:g}, say) or lower batch_size.",
            )

    def insertable(self, inserted: int, drawn: int, threshold: int) -> int:
        room = (self.tolerance + drawn) / self.ratio + threshold - inserted
        return max(math.floor(room + _SLACK), threshold - inserted, 0)

    def drawable(
        self, batch_size: int, inserted: int, drawn: int, threshold: int
    ) -> bool:
        excess = self.ratio * (inserted - threshold) - drawn
        return excess - batch_size >= -self.tolerance - _SLACK


@final
@dataclass(frozen=True)
class Deterministic:
    """Either an insert or a batch is possible, never both.

    A batch is drawn when ``d >= batch_size``, and samples are
    inserted while it is below. So a batch sees the same inserts in every run, if they
    arrive in the same order.

    Parameters
    ----------
    ratio : float
        Number of times that a sample is drawn on average.
    batch_size : int

    Examples
    --------
    >>> limiter = Deterministic(ratio=2.0, batch_size=8)
    >>> limiter.insertable(inserted=100, drawn=0, threshold=100)
    4
    >>> limiter.drawable(8, inserted=104, drawn=0, threshold=100)
    True
    >>> limiter.insertable(inserted=104, drawn=0, threshold=100)
    0
    """

    ratio: float
    batch_size: int

    def insertable(self, inserted: int, drawn: int, threshold: int) -> int:
        missing = (self.batch_size + drawn) / self.ratio + threshold - inserted
        return max(math.ceil(missing - _SLACK), 0)

    def drawable(
        self, batch_size: int, inserted: int, drawn: int, threshold: int
    ) -> bool:
        excess = self.ratio * (inserted - threshold) - drawn
        return excess >= batch_size - _SLACK


Limiter = SamplesPerInsert | Deterministic
