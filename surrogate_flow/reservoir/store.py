"""The contract of every bounded store, and the trainer's half of it."""

from __future__ import annotations

import math
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Float64, Int

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.counters import Clock, StoreStats, seconds
from surrogate_flow.reservoir.draw import Draw
from surrogate_flow.reservoir.flight import PendingBatches
from surrogate_flow.reservoir.limiter import SamplesPerInsert
from surrogate_flow.reservoir.memory import HostMemory, Memory
from surrogate_flow.reservoir.moments import Moments
from surrogate_flow.reservoir.persistent import Persistent

__all__ = ["Store"]

# Bytes of steps that `moments` looks at in one go.
_CHUNK = 2**23


class Store(Persistent):
    """A bounded set of samples: producers put steps in, a trainer draws batches out.

    A policy says what is drawn (`_take`), when (`_needed`), and what makes room
    (`_evict`). All else is here: memory, windows, waits and their reasons, counters,
    and how a run ends.

    With `s` slots free or about to be, `n` samples held and `u` of them unseen,
    back-pressure is::

        put  waits  <=>  s == 0  and  u == n
        draw waits  <=>  n < needed  and not (s == 0 and u == n and n > 0)

    The last clause matters where windows share steps: many simulations at once can fill
    the store with unfinished windows below the threshold; then the batch takes what
    there is (and may be short) rather than wait for ever. For the same reason a new
    simulation is only let in while ``unfinished * (span - 1) < capacity``, so that
    windows can always be completed: with ``N`` simulations at once choose a capacity
    well above ``N * span``.

    Parameters
    ----------
    spec : FieldSpec
        What the simulations yield.
    window : Window
        Which steps make a sample.
    batch_size : int
        Samples in a batch; the last one may be smaller.
    capacity : int or str
        Number of steps held (samples, if a sample is one step), or a size in bytes such
        as ``"2 GiB"``.
    threshold : int
        Samples needed before a batch is drawn.
    limiter : SamplesPerInsert, optional
        Band for the number of draws per insert.
    memory : class of Memory
        Where the steps lie: `HostMemory`, or `DeviceMemory` of a GPU.

    Raises
    ------
    ValueError
        If trainer and producers would wait for each other for ever.

    Notes
    -----
    Every method may be called from any thread. `put`, `draw` and `wait_threshold`
    block, until a deadline, and say why when it passes; the others never do. One lock
    guards the books only: steps are copied in and out without it, so a trainer that
    draws does not hold up the inlet.
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        *,
        capacity: int | str,
        threshold: int = 1,
        limiter: SamplesPerInsert | None = None,
        memory: Callable[[int, tuple[int, ...], int], Memory] = HostMemory,
    ) -> None:
        super().__init__(
            spec,
            window,
            batch_size,
            capacity=capacity,
            threshold=threshold,
            limiter=limiter,
            memory=memory,
        )
        self._draw_clock = Clock()

    @abstractmethod
    def _needed(self) -> int:
        """Return how many samples have to be held for a batch, while steps come in."""

    @abstractmethod
    def _take(self) -> tuple[Int[np.ndarray, " sample"], bool]:
        """Choose a batch of the members; return it, and whether it left them."""

    @final
    def draw(
        self, timeout: float | None, flight: PendingBatches | None = None
    ) -> Draw | None:
        """Copy out a batch; blocks until one may be drawn.

        Parameters
        ----------
        timeout : float or None
            Seconds; ``None`` waits as long as it takes.
        flight : PendingBatches, optional
            Where the batch is noted until it has been trained.

        Returns
        -------
        Draw or None
            ``None`` when reception has ended and all is drained, or after `stop`.

        Raises
        ------
        TimeoutError
            If it takes longer; it says why.
        """
        with self._changed:
            if not self._wait_to_draw(timeout):
                return None
            number = flight.begin() if flight else 0
            samples, left = self._take()
            slots = self._books.slots(samples)
            labels = self._books.labels(samples)
            reader = self._slab.begin_read()
            self._tally.draw(samples)
            if left:
                self._tally.remove(samples)
                self._books.release(samples)
            self._changed.notify_all()
        try:
            fields = self._slab.memory.batch(slots, len(samples))
            drawn = Draw(fields, *labels)
            if flight:
                flight.land(number, drawn)
        finally:
            self._end_read(reader)
        self._announce()
        return drawn

    @property
    def ready(self) -> bool:
        """Whether a batch may be drawn now."""
        with self._changed:
            return not self._lacking()

    @property
    def held_up(self) -> bool:
        """Whether producers wait until something is drawn."""
        with self._changed:
            return bool(self._refused) and not self._lacking()

    @final
    def wait_threshold(self, timeout: float | None) -> bool:
        """Wait until a batch may be drawn, or none will ever be; blocks.

        Parameters
        ----------
        timeout : float or None
            As `draw`.

        Returns
        -------
        bool
            Whether `draw` would return a batch now.

        Raises
        ------
        TimeoutError
            If it takes longer; it says why.
        """
        with self._changed:
            return self._wait_to_draw(timeout)

    @final
    def end_reception(self) -> None:
        """Let the store drain, as no more steps will be offered; never blocks.

        Threshold and limiter fall, unfinished windows are released, and what is drawn
        leaves. A `put` that waits meanwhile goes on until its steps are in.
        """
        with self._changed:
            self._ended = True
            self._forget_all()
            self._changed.notify_all()
        self._announce()

    @final
    def stop(self) -> None:
        """Wake everybody who waits, and refuse everything from now on; never blocks."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._announce()

    @final
    def moments(
        self,
    ) -> tuple[Float64[np.ndarray, " channel"], Float64[np.ndarray, " channel"]]:
        """Return mean and standard deviation of each channel of the stored samples.

        Each of their steps counts once. Steps are looked at in chunks, between which
        others come and go; call it after `wait_threshold`, before training, to
        normalise the network's inputs.

        Raises
        ------
        RuntimeError
            If there is no sample.
        """
        moments = Moments(len(self.spec.variables))
        size = max(1, _CHUNK // self.spec.step_bytes)
        with self._changed:
            slots = np.unique(self._books.slots(self._members.samples))
        chunk = np.empty((size, *self.spec.step_shape), dtype=np.float32)
        for start in range(0, len(slots), size):
            with self._changed:
                some = self._slab.referenced(slots[start : start + size])
                reader = self._slab.begin_read()
            try:
                self._slab.memory.gather(some, chunk[: len(some)])
            finally:
                self._end_read(reader)
            if len(some):
                moments.update(chunk[: len(some)])
        if not moments.count:
            raise RuntimeError(
                "Store.moments: expected at least one sample, got none. Call "
                "`wait_threshold` first."
            )
        return moments.mean, moments.std

    @final
    def waiting(self) -> str:
        """Return in one line who waits for whom and why; empty if nobody does."""
        with self._changed:
            lines = []
            if self._refused:
                lines.append(self._producers_wait())
            if self._draw_clock.running and (reason := self._lacking()):
                lines.append(self._trainer_waits(reason))
            return "; ".join(lines)

    @final
    def counters(self) -> StoreStats:
        """Return all counters, taken at one moment."""
        with self._changed:
            slab, tally, members = self._slab, self._tally, self._members
            return StoreStats(
                capacity=self.capacity,
                capacity_bytes=slab.memory.nbytes,
                steps=self.capacity - slab.free,
                unfinished=self._books.unfinished,
                population=len(members),
                unseen=members.unseen,
                inserted=tally.inserted,
                drawn=tally.drawn,
                batches=tally.batches,
                evicted=tally.evicted,
                removed=tally.removed,
                put_wait=self._refused.total,
                draw_wait=self._draw_clock.total,
                times_seen=tally.times_seen(members.samples),
            )

    def _end_read(self, reader: int) -> None:
        with self._changed:
            if self._slab.end_read(reader) or self._saving:
                self._changed.notify_all()

    def _wait_to_draw(self, timeout: float | None) -> bool:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not self._stopped:
                if self._ended and not self._arriving and not len(self._members):
                    break
                if not (reason := self._lacking()):
                    return True
                self._draw_clock.start()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(self._trainer_waits(reason))
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return False
        finally:
            self._draw_clock.stop()

    def _lacking(self) -> str:
        """Return what a batch waits for; empty if it may be drawn."""
        count, needed, tally = len(self._members), self._needed(), self._tally
        reason = ""
        if count < needed:
            rule = "batch" if needed > self.threshold else "threshold"
            reason = f"{count} of {needed} samples ({rule})"
        elif self.limiter is not None and not self.limiter.drawable(
            self.batch_size, tally.inserted, tally.drawn, self.threshold
        ):
            reason = f"{tally.drawn} drawn, {tally.inserted} samples inserted (limiter)"
        # Nobody can add to a full store, so it must not be waited for.
        return "" if count and (self._ended or self._full) else reason

    def _trainer_waits(self, reason: str) -> str:
        return f"trainer waits: {reason}, {seconds(self._draw_clock.lap)}"
