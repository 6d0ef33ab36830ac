"""Counters of a store, waiting times, and mean and standard deviation of fields."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float, Float64, Int

from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.population import Samples

__all__ = ["Moments", "Stopwatch", "StoreStats", "Tally", "Waits", "seconds"]

_CHANGES = 1000, 2**28  # samples, and bytes of them, that changes are measured on

# Of the dtype of the counts, or numpy takes a path three times as slow.
_ONE = np.int32(1)
_TOTALS = ("inserted", "drawn", "batches", "evicted", "removed")


@dataclass(frozen=True)
class StoreStats:
    """What a store holds and has done, all at one moment.

    Steps are counted where memory is meant, samples where training is.
    """

    #: Slots for steps, and their bytes.
    capacity: int
    capacity_bytes: int
    #: Samples that must have entered before the first batch.
    threshold: int
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
    #: Simulations whose input fields are held, and the bytes of these.
    inputs: int = 0
    input_bytes: int = 0


@final
class Stopwatch:
    """A stopwatch that may be started when it runs and stopped when it does not.

    It may be read while another thread starts or stops it.
    """

    def __init__(self) -> None:
        # Seconds before it was started, and when that was: replaced as one.
        self._state: tuple[float, float | None] = 0.0, None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._state[1] is not None

    @property
    def lap(self) -> float:
        """Seconds since it was started, 0 if it does not run."""
        since = self._state[1]
        return 0.0 if since is None else time.monotonic() - since

    @property
    def total(self) -> float:
        """Seconds that it ran, up to now."""
        before, since = self._state
        return before if since is None else before + time.monotonic() - since

    def start(self) -> None:
        """Run, if it does not."""
        before, since = self._state
        self._state = before, since or time.monotonic()

    def stop(self) -> None:
        """Do not run."""
        self._state = self.total, None


@final
class Tally:
    """Counts of samples that entered, were drawn and left, and of the draws of each.

    Attributes
    ----------
    times : array of int
        How often each sample held was drawn.
    left : array of int
        Number of samples that left after 0, 1, 2, ... draws.
    inserted, drawn, batches, evicted, removed : int
        As `StoreStats`.
    """

    #: Samples drawn at least so often are counted together.
    most = 64

    def __init__(self, capacity: int) -> None:
        self.inserted = self.drawn = self.batches = self.evicted = self.removed = 0
        self.times: Int[np.ndarray, " sample"] = np.zeros(capacity, dtype=np.int32)
        self.left: Int[np.ndarray, " times"] = np.zeros(self.most + 1, dtype=np.int64)
        self._last_draw: float | None = None

    @property
    def last_draw(self) -> str:
        """How long ago the last batch was drawn, as text."""
        if self._last_draw is None:
            return "no batch drawn yet"
        return f"last batch drawn {seconds(time.monotonic() - self._last_draw)} ago"

    def enter(self, samples: Samples) -> None:
        """Count new samples."""
        self.times[samples] = 0
        self.inserted += len(samples)

    def draw(self, samples: Samples) -> None:
        """Count a batch, in which samples may repeat."""
        np.add.at(self.times, samples, _ONE)
        self.drawn += len(samples)
        self.batches += 1
        self._last_draw = time.monotonic()

    def leave(self, samples: Samples) -> None:
        """Count distinct samples that leave."""
        self.left += self.histogram(self.times[samples])

    @property
    def counts(self) -> dict[str, int]:
        """All totals by name."""
        return {name: getattr(self, name) for name in _TOTALS}

    def restore(
        self, counts: Int[np.ndarray, " 5"], left: Int[np.ndarray, " times"]
    ) -> None:
        """Go on from the values of `counts`, and `left`."""
        vars(self).update(zip(_TOTALS, counts.tolist(), strict=True))
        self.left[:] = left

    def times_seen(self, present: Samples) -> tuple[int, ...]:
        """Return the numbers of samples drawn 0, 1, 2, ... times."""
        return tuple((self.left + self.histogram(self.times[present])).tolist())

    def histogram(self, times: Samples) -> Int[np.ndarray, " times"]:
        """Return for how many samples each number of draws is theirs."""
        return np.bincount(np.minimum(times, self.most), minlength=self.most + 1)


@final
class Waits:
    """Simulations that wait, each until it is let in or has ended, and why."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[float, str]] = {}
        self._stopwatch = Stopwatch()

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[int]:
        return iter(self._since)

    @property
    def total(self) -> float:
        """Seconds in which at least one waited, up to now."""
        return self._stopwatch.total

    def add(self, simulation: int, reason: str) -> None:
        """Note why a simulation waits, from now on if it did not already."""
        since, _ = self._since.get(simulation, (time.monotonic(), reason))
        self._since[simulation] = since, reason
        self._stopwatch.start()

    def discard(self, simulation: int) -> None:
        """Note that a simulation waits no longer, if it did."""
        if self._since.pop(simulation, None) and not self._since:
            self._stopwatch.stop()

    def longest(self) -> tuple[str, str]:
        """Return why the one waits that has waited longest, and how long, as text."""
        since, reason = next(iter(self._since.values()))
        lap = time.monotonic() - since
        # Where the trainer keeps up with a full store, each waits for a moment.
        return reason, f", for {seconds(lap)}" if lap >= 1 else ""


@final
class Moments:
    """Mean and variance of each channel, updated with chunk after chunk in float64.

    NaN is left out.

    Of two parts::

        n     = n_a + n_b
        mean  = mean_a + (mean_b - mean_a) n_b / n
        M     = M_a + M_b + (mean_b - mean_a)^2 n_a n_b / n,    std = sqrt(M / n)

    References
    ----------
    Chan, Golub, LeVeque, *Algorithms for Computing the Sample Variance*, The American
    Statistician 37(3), 1983, https://doi.org/10.1080/00031305.1983.10483115

    Examples
    --------
    >>> moments = Moments(1)
    >>> moments.update(np.array([[[1.0, 2.0]]]))
    >>> moments.update(np.array([[[3.0, 6.0]]]))
    >>> moments.mean.tolist(), moments.std.round(4).tolist()
    ([3.0], [1.8708])
    """

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros(channels)
        self.mean = self._squares = np.zeros(channels)

    @property
    def count(self) -> int:
        """Numbers taken into account, of the channel that has most."""
        return int(self._counts.max(initial=0))

    @property
    def std(self) -> Float64[np.ndarray, " channel"]:
        """Standard deviation of the population."""
        std: Float64[np.ndarray, " channel"] = np.sqrt(
            self._squares / np.maximum(self._counts, 1)
        )
        return std

    def update(self, steps: Float[np.ndarray, "time channel *space"]) -> None:
        """Take a chunk of steps into account."""
        values = steps.reshape(*steps.shape[:2], -1).astype(np.float64)
        count: Any = values.shape[0] * values.shape[2]
        mean, std = values.mean(axis=(0, 2)), values.std(axis=(0, 2))
        if np.isnan(mean).any():
            known = ~np.isnan(values)
            count = known.sum(axis=(0, 2))
            mean = np.where(known, values, 0).sum(axis=(0, 2)) / np.maximum(count, 1)
            away = np.where(known, values - mean[:, None], 0)
            std = np.sqrt(np.square(away).sum(axis=(0, 2)) / np.maximum(count, 1))
        self.join(count, mean, std)

    def beside(self, other: Moments) -> Moments:
        """Return those of both their channels."""
        both = Moments(0)
        for name in ("_counts", "mean", "_squares"):
            joined = np.concatenate([getattr(self, name), getattr(other, name)])
            setattr(both, name, joined)
        return both

    @property
    def rms(self) -> Float64[np.ndarray, " channel"]:
        """Root mean square."""
        rms: Float64[np.ndarray, " channel"] = np.hypot(self.mean, self.std)
        return rms

    @staticmethod
    def samples_of_changes(sample_bytes: int) -> int:
        """Return on how many samples of that size changes are measured."""
        most, size = _CHANGES
        return max(1, min(most, size // sample_bytes))

    def update_changes(
        self, windows: Float[np.ndarray, "window span channel *space"], window: Window
    ) -> None:
        """Take u_{k+1} - u_k, ..., u_{k+outputs} - u_k of windows into account.

        u_k is the last input of a window; those of each output are channels of their
        own.
        """
        last, end = window.inputs - 1, window.inputs + window.outputs
        change = windows[:, last + 1 : end] - windows[:, last : last + 1]
        self.update(change.reshape(len(change), -1, *windows.shape[3:]))

    def join(
        self,
        count: int | Int[np.ndarray, " channel"],
        mean: Float64[np.ndarray, " channel"],
        std: Float64[np.ndarray, " channel"],
    ) -> None:
        """Take the moments of `count` other numbers, of each channel, into account."""
        both, shift = self._counts + count, mean - self.mean
        part = count / np.maximum(both, 1)
        self._squares = self._squares + count * std**2 + shift**2 * self._counts * part
        self.mean = self.mean + shift * part
        self._counts = both


def seconds(value: float) -> str:
    """Return a duration as people read it.

    Examples
    --------
    >>> seconds(4.23), seconds(61.4)
    ('4.2 s', '61 s')
    """
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
