"""Why steps were not let in."""

from __future__ import annotations

from enum import Enum

from surrogate_flow.reservoir.counters import Tally
from surrogate_flow.reservoir.population import Members
from surrogate_flow.reservoir.trajectories import Trajectories

__all__ = ["Refusal"]


class Refusal(Enum):
    """What producers wait for."""

    NOTHING = "nothing"
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
