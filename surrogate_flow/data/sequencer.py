"""Steps in the order of their simulations' numbers, whichever came first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from surrogate_flow.reservoir import Store

__all__ = ["Sequencer"]


class Sequencer:
    """A sink that makes batches independent of the speed of solvers and trainer.

    Simulations enter the store one after the other, step by step; those ahead of their
    turn wait. Inserts and draws take turns. With the same seeds, two runs draw the same
    batches, at the price of waiting. Of a simulation that failed for good all steps
    enter that came before it failed.

    Parameters
    ----------
    store : Store
        Empty, and served by this sink only. It draws each sample once on average, or as
        often as its limiter says.
    first : int
        Number of the first simulation for training.
    ended : callable
        Says of a simulation whether it finished or failed in an earlier process.
    received : callable
        How many steps of a simulation have come, be they in the store or not.
    give_up : callable
        Told of each simulation that failed for good, when its turn is over.
    """

    def __init__(
        self,
        store: Store,
        first: int,
        ended: Callable[[int], bool],
        *,
        received: Callable[[int], int],
        give_up: Callable[[int], None],
    ) -> None:
        store.take_turns()
        self._store = store
        self._ended = ended
        self._turn = first
        self._received = received
        self._give_up = give_up
        self._over: set[int] = set()
        self._aside: set[int] = set()
        self._callbacks: list[Callable[[], None]] = []
        self._ending = False
        self._skip()
        store.on_room(self._end_if_due)

    @property
    def turn(self) -> int:
        """Number of the simulation whose steps come in now."""
        return self._turn

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float[np.ndarray, "time channel *space"],
        parameters: Float[np.ndarray, " parameter"],
    ) -> int:
        """Store leading steps one by one, if it is the simulation's turn."""
        taken = 0
        # The choice of what makes room must not depend on how steps were sent.
        while simulation == self._turn and taken < len(steps):
            step = steps[taken : taken + 1]
            if not self._store.offer(simulation, first + taken, step, parameters):
                break
            taken += 1
        if taken and simulation in self._aside:
            self._go_on()
        return taken

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        return self._store.open(simulation)

    def priority(self, simulation: int) -> int:
        """Return 1 for the simulation whose turn it is, or 0."""
        return int(simulation == self._turn)

    def waiting(self) -> str:
        """Return what the store waits for, or whose turn it is."""
        turn = f"simulation {self._turn} has its turn (deterministic)"
        return self._store.waiting() or turn

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there may be room, or the turn goes on."""
        self._callbacks.append(wake)
        self._store.on_room(wake)

    def close(self, simulation: int, complete: bool) -> None:
        """Let the next simulation have its turn, if it was this one's."""
        self._store.close(simulation, complete)
        if simulation >= self._turn:
            self._over.add(simulation)
        self._go_on()

    def set_aside(self, simulation: int) -> None:
        """Do not wait for more steps of a simulation than have come."""
        if simulation >= self._turn:
            self._aside.add(simulation)
        self._go_on()

    def _go_on(self) -> None:
        before = self._turn
        self._skip()
        if self._turn != before:
            for callback in self._callbacks:
                callback()
            self._end_if_due()

    def end_reception(self) -> None:
        """Let the store drain, once the batches that come before were drawn."""
        self._ending = True
        self._end_if_due()

    def _skip(self) -> None:
        while (turn := self._turn) in self._over | self._aside or self._ended(turn):
            if turn in self._aside:
                if self._received(turn) > self._store.open(turn):
                    return
                # Noted before it is forgotten: a checkpoint between finds it live.
                self._give_up(turn)
                self._store.close(turn, complete=False)
                self._aside.discard(turn)
            self._over.discard(turn)
            self._turn += 1

    def _end_if_due(self) -> None:
        if self._ending and not self._aside and not self._store.ready:
            self._ending = False
            self._store.end_reception()
