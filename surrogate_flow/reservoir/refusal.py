"""Why steps were not let in, and whose."""

from __future__ import annotations

import time
from collections.abc import Collection
from enum import Enum

from surrogate_flow.reservoir.counters import Clock, Tally, seconds
from surrogate_flow.reservoir.population import Members
from surrogate_flow.reservoir.trajectories import Trajectories

__all__ = ["Refusal", "Refused"]


class Refusal(Enum):
    """What producers wait for."""

    #: No slot is free, and nothing that was seen can go.
    FULL = "full"
    #: The limiter waits for batches.
    LIMITER = "limiter"
    #: Too many simulations hold steps for their next windows.
    CROWDED = "crowded"
    #: A block of the same simulation is being copied in by another thread.
    BUSY = "busy"
    #: The books are being copied for a checkpoint.
    SAVING = "saving"

    def reason(self, books: Trajectories, members: Members, tally: Tally) -> str:
        """Return it in words, with the numbers of this moment."""
        match self:
            case Refusal.LIMITER:
                return (
                    f"{tally.inserted} samples inserted, {tally.drawn} drawn "
                    f"(limiter), {tally.last_draw}"
                )
            case Refusal.CROWDED:
                return (
                    f"{books.unfinished} unfinished simulations may hold "
                    f"{books.plan.span - 1} steps each for their next windows, of "
                    f"{books.slab.capacity}; raise capacity, run fewer at once, or "
                    "`forget` those that ended"
                )
            case Refusal.BUSY:
                return "another thread copies steps of the same simulation"
            case Refusal.SAVING:
                return "a checkpoint is being written"
            case _:
                shared = ""
                if books.plan.span > 1:
                    held = books.slab.capacity - books.slab.free
                    shared = f" in {held} steps, which they share"
                return (
                    f"{members.unseen} of {len(members)} samples unseen{shared}, "
                    f"{tally.last_draw}"
                )


class Refused:
    """Simulations whose steps were not let in: each waits until it is let in or gone.

    Notes
    -----
    Not thread-safe by itself: a store calls it under its lock.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, Refusal]] = {}
        self._clock = Clock()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def total(self) -> float:
        """Seconds in which at least one waited, up to now."""
        return self._clock.total

    def add(self, simulation: int, refusal: Refusal) -> None:
        """Note why a simulation waits, from now on if it did not already."""
        now = time.monotonic()
        since, _ = self._waiting.get(simulation, (now, refusal))
        self._waiting[simulation] = since, refusal
        self._clock.start()

    def of(self, simulation: int) -> Refusal | None:
        """Return what a simulation waits for, if it does."""
        _, refusal = self._waiting.get(simulation, (0.0, None))
        return refusal

    def discard(self, simulation: int) -> None:
        """Note that a simulation waits no longer, if it did."""
        if self._waiting.pop(simulation, None) and not self._waiting:
            self._clock.stop()

    def retain(self, simulations: Collection[int]) -> None:
        """Note that all but these are gone."""
        for simulation in [n for n in self._waiting if n not in simulations]:
            self.discard(simulation)

    def reason(self, books: Trajectories, members: Members, tally: Tally) -> str:
        """Return in words what the one waits for that has waited longest, and since."""
        since, refusal = next(iter(self._waiting.values()))
        lap = time.monotonic() - since
        what = refusal.reason(books, members, tally)
        # Where the trainer keeps up with a full store, each waits for a moment.
        return f"producers wait: {what}" + (f", for {seconds(lap)}" if lap >= 1 else "")
