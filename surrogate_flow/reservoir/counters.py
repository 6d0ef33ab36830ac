"""Numbers that say how a store does, and who waited for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

__all__ = ["Clock", "StoreStats", "Tally"]

# Of the dtype of the counts, or numpy takes a path three times as slow.
_ONE = np.int32(1)


@dataclass(frozen=True)
class StoreStats:
    """What a store holds and has done, all at one moment.

    Steps are counted where memory is meant, samples (windows) where training is.
    """

    #: Slots for steps, and their bytes.
    capacity: int
    capacity_bytes: int
    #: Slots in use: steps of samples, of windows to come, and of copies under way.
    steps: int
    #: Simulations that may hold steps for windows to come.
    unfinished: int
    #: Samples held, and those of them that were never drawn.
    population: int
    unseen: int
    #: Samples that came in; that were drawn, repetitions counted; batches drawn.
    inserted: int
    drawn: int
    batches: int
    #: Samples that left to make room, and because they had been drawn.
    evicted: int
    removed: int
    #: Seconds in which steps were refused, and in which somebody waited to draw.
    put_wait: float
    draw_wait: float
    #: ``times_seen[n]``: number of samples drawn `n` times, of those that left and
    #: those held; the last entry counts all that were drawn at least so often.
    times_seen: tuple[int, ...]


class Clock:
    """A stopwatch that may be started when it runs and stopped when it does not."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._total = 0.0

    @property
    def running(self) -> bool:
        """Whether somebody waits."""
        return self._since is not None

    @property
    def lap(self) -> float:
        """Seconds since it was started, 0 if it stands."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def total(self) -> float:
        """Seconds that it ran, up to now."""
        return self._total + self.lap

    def start(self) -> None:
        """Begin to wait."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """Go on."""
        self._total, self._since = self.total, None


class Tally:
    """Counts of what came, was drawn and left, and of the draws of each sample.

    Notes
    -----
    Not thread-safe by itself: a store calls it under its lock.
    """

    #: Samples drawn at least so often are counted together.
    most = 64

    def __init__(self, capacity: int) -> None:
        self.inserted = self.drawn = self.batches = self.evicted = self.removed = 0
        self._last_draw: float | None = None
        self._times = np.zeros(capacity, dtype=np.int32)
        self._left = np.zeros(self.most + 1, dtype=np.int64)

    @property
    def last_draw(self) -> str:
        """How long ago the last batch was drawn, in words."""
        if self._last_draw is None:
            return "no batch drawn yet"
        return f"last batch drawn {seconds(time.monotonic() - self._last_draw)} ago"

    def enter(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Count new samples."""
        self._times[samples] = 0
        self.inserted += len(samples)

    def draw(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Count a batch, in which samples may repeat."""
        np.add.at(self._times, samples, _ONE)
        self.drawn += len(samples)
        self.batches += 1
        self._last_draw = time.monotonic()

    def evict(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Count distinct samples that leave to make room."""
        self._left += self._histogram(samples)
        self.evicted += len(samples)

    def remove(self, samples: Int[np.ndarray, " sample"]) -> None:
        """Count distinct samples that leave since they were drawn."""
        self._left += self._histogram(samples)
        self.removed += len(samples)

    def times(self, samples: Int[np.ndarray, " sample"]) -> Int[np.ndarray, " sample"]:
        """Return how often each was drawn."""
        times: Int[np.ndarray, " sample"] = self._times[samples]
        return times

    @property
    def counts(self) -> tuple[Int[np.ndarray, " 5"], Int[np.ndarray, " times"]]:
        """All totals, and how often the samples were drawn that left."""
        totals = (self.inserted, self.drawn, self.batches, self.evicted, self.removed)
        return np.array(totals), self._left.copy()

    def restore(
        self,
        counts: Int[np.ndarray, " 5"],
        left: Int[np.ndarray, " times"],
        samples: Int[np.ndarray, " sample"],
        times: Int[np.ndarray, " sample"],
    ) -> None:
        """Go on from `counts`, with these samples drawn so many times."""
        (self.inserted, self.drawn, self.batches, self.evicted, self.removed) = (
            int(count) for count in counts
        )
        self._left[:] = left
        self._times[samples] = times

    def lose(self, times: Int[np.ndarray, " sample"]) -> None:
        """Count samples that were drawn so many times, and are held no longer."""
        counted = np.minimum(times[times > 0], self.most)
        self._left += np.bincount(counted, minlength=self.most + 1)

    def times_seen(self, present: Int[np.ndarray, " sample"]) -> tuple[int, ...]:
        """Return the numbers of samples drawn 0, 1, 2, ... times."""
        return tuple((self._left + self._histogram(present)).tolist())

    def _histogram(
        self, samples: Int[np.ndarray, " sample"]
    ) -> Int[np.ndarray, " times"]:
        times = np.minimum(self._times[samples], self.most)
        return np.bincount(times, minlength=self.most + 1)


def seconds(value: float) -> str:
    """Return a duration as people read it.

    Examples
    --------
    >>> seconds(4.23), seconds(61.4)
    ('4.2 s', '61 s')
    """
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
