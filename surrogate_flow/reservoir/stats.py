"""Counters of a store, and the simulations that wait for it to take their steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import final

import numpy as np
from jaxtyping import Int

from surrogate_flow.reservoir.index import Index
from surrogate_flow.reservoir.population import Population, Samples

__all__ = ["Refusal", "Stopwatch", "StoreStats", "Tally", "WaitingSimulations"]

# Of the dtype of the counts, or numpy takes a path three times as slow.
_ONE = np.int32(1)


@dataclass(frozen=True)
class StoreStats:
    """What a store holds and has done, all at one moment.

    Steps are counted where memory is meant, samples where training is.
    """

    #: Slots for steps, and their bytes.
    capacity: int
    capacity_bytes: int
    #: Slots in use: steps of samples, of incomplete ones, and of copies under way.
    steps: int
    #: Simulations that may hold steps of incomplete samples.
    unfinished: int
    #: Samples held, and those of them that were never drawn.
    population: int
    unseen: int
    #: Samples that entered; that were drawn, repetitions counted; batches drawn.
    inserted: int
    drawn: int
    batches: int
    #: Samples that left to make room, and because they had been drawn.
    evicted: int
    removed: int
    #: Seconds in which a simulation waited for room, and in which the trainer waited.
    put_wait: float
    draw_wait: float
    #: ``times_seen[n]``: number of samples drawn `n` times, of those that left and
    #: those held; the last entry counts all that were drawn at least so often.
    times_seen: tuple[int, ...]


@final
class Stopwatch:
    """A stopwatch that may be started when it runs and stopped when it does not."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._total = 0.0

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._since is not None

    @property
    def lap(self) -> float:
        """Seconds since it was started, 0 if it does not run."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def total(self) -> float:
        """Seconds that it ran, up to now."""
        return self._total + self.lap

    def start(self) -> None:
        """Run, if it does not."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """Do not run."""
        self._total, self._since = self.total, None


@final
class Tally:
    """Counts of samples that entered, were drawn and left, and of the draws of each.

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

    def enter(self, samples: Samples) -> None:
        """Count new samples."""
        self._times[samples] = 0
        self.inserted += len(samples)

    def draw(self, samples: Samples) -> None:
        """Count a batch, in which samples may repeat."""
        np.add.at(self._times, samples, _ONE)
        self.drawn += len(samples)
        self.batches += 1
        self._last_draw = time.monotonic()

    def evict(self, samples: Samples) -> None:
        """Count distinct samples that leave to make room."""
        self._left += self._histogram(self._times[samples])
        self.evicted += len(samples)

    def remove(self, samples: Samples) -> None:
        """Count distinct samples that leave because they were drawn."""
        self._left += self._histogram(self._times[samples])
        self.removed += len(samples)

    def times(self, samples: Samples) -> Samples:
        """Return how often each was drawn."""
        times: Samples = self._times[samples]
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
        samples: Samples,
        times: Samples,
    ) -> None:
        """Go on from `counts`, with these samples drawn so many times."""
        (self.inserted, self.drawn, self.batches, self.evicted, self.removed) = (
            int(count) for count in counts
        )
        self._left[:] = left
        self._times[samples] = times

    def lose(self, times: Samples) -> None:
        """Count samples that were drawn so many times, and are held no longer."""
        self._left += self._histogram(times[times > 0])

    def times_seen(self, present: Samples) -> tuple[int, ...]:
        """Return the numbers of samples drawn 0, 1, 2, ... times."""
        return tuple((self._left + self._histogram(self._times[present])).tolist())

    def _histogram(self, times: Samples) -> Int[np.ndarray, " times"]:
        return np.bincount(np.minimum(times, self.most), minlength=self.most + 1)


class Refusal(Enum):
    """Why a store does not take the steps of a simulation now."""

    #: No slot is free, and nothing that was seen can be evicted.
    FULL = "full"
    #: The limiter waits for batches.
    LIMITER = "limiter"
    #: Too many simulations hold steps of incomplete samples.
    CROWDED = "crowded"
    #: A block of the same simulation is being copied in by another thread.
    BUSY = "busy"
    #: A checkpoint is being made.
    SAVING = "saving"

    def describe(self, index: Index, population: Population, tally: Tally) -> str:
        """Return it in words, with the numbers of this moment."""
        capacity, span = index.slab.capacity, index.layout.span
        match self:
            case Refusal.LIMITER:
                return (
                    f"{tally.inserted} samples inserted, {tally.drawn} drawn "
                    f"(limiter), {tally.last_draw}"
                )
            case Refusal.CROWDED:
                return (
                    f"the reservoir is too small for {index.unfinished + 1} "
                    f"simulations at once: {index.unfinished} unfinished simulations "
                    f"hold up to {span - 1} steps each of an incomplete sample, of "
                    f"{capacity}; raise capacity, or run fewer at once"
                )
            case Refusal.BUSY:
                return "another thread copies steps of the same simulation"
            case Refusal.SAVING:
                return "a checkpoint is being written"
            case Refusal.FULL:
                shared = ""
                if span > 1:
                    shared = f" in {capacity - index.slab.free} steps, which they share"
                return (
                    f"{population.unseen} of {len(population)} samples unseen{shared}, "
                    f"{tally.last_draw}"
                )


@final
class WaitingSimulations:
    """Simulations whose steps were refused, each until it is let in or has ended.

    Notes
    -----
    Not thread-safe by itself: a store calls it under its lock.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, Refusal]] = {}
        self._stopwatch = Stopwatch()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def total(self) -> float:
        """Seconds in which at least one waited, up to now."""
        return self._stopwatch.total

    def add(self, simulation: int, refusal: Refusal) -> None:
        """Note why a simulation waits, from now on if it did not already."""
        now = time.monotonic()
        since, _ = self._waiting.get(simulation, (now, refusal))
        self._waiting[simulation] = since, refusal
        self._stopwatch.start()

    def discard(self, simulation: int) -> None:
        """Note that a simulation waits no longer, if it did."""
        if self._waiting.pop(simulation, None) and not self._waiting:
            self._stopwatch.stop()

    def clear(self) -> None:
        """Note that none waits."""
        for simulation in list(self._waiting):
            self.discard(simulation)

    def describe(self, index: Index, population: Population, tally: Tally) -> str:
        """Return for what the one waits that has waited longest, and how long."""
        since, refusal = next(iter(self._waiting.values()))
        lap = time.monotonic() - since
        what = refusal.describe(index, population, tally)
        # Where the trainer keeps up with a full store, each waits for a moment.
        return f"simulations wait: {what}" + (
            f", for {seconds(lap)}" if lap >= 1 else ""
        )


def seconds(value: float) -> str:
    """Return a duration as people read it.

    Examples
    --------
    >>> seconds(4.23), seconds(61.4)
    ('4.2 s', '61 s')
    """
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
