"""Steps in the order of their simulations, whichever were sent first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from surrogate_flow.ensemble.events import Event, Exhausted, Submitted
from surrogate_flow.reservoir import Store

__all__ = ["Sequencer"]


class Sequencer:
    """A sink that makes batches independent of the speed of solvers and trainer.

    Simulations enter the store one after the other, step by step, in the order in which
    the ensemble submitted them; those ahead of their turn wait. Inserts and draws
    alternate. With the same seeds, two runs draw the same batches, at the price of
    waiting. Of a simulation that failed permanently all steps enter that it had sent.

    Parameters
    ----------
    store : Store
        Served by this sink only. It draws each sample once on average, or as often as
        its limiter says.

    Notes
    -----
    A listener: the ensemble's thread adds turns, and the inlet's thread ends them.
    """

    def __init__(self, store: Store) -> None:
        store.take_turns()
        self._store = store
        self._turns: deque[int] = deque()
        self._closed: dict[int, bool] = {}
        self._wakes: list[Callable[[], None]] = []
        self._ending = False
        store.on_room(self._end_if_due)

    def __call__(self, event: Event) -> None:
        """Give each simulation for training a turn, and let the store drain at the end.

        It drains once the batches that come before have been drawn.
        """
        if isinstance(event, Submitted):
            if event.attempt == 0 and event.simulation.part == "training":
                self._turns.append(event.simulation.number)
        elif isinstance(event, Exhausted):
            self._ending = True
            self._end_if_due()

    @property
    def turn(self) -> int | None:
        """Number of the simulation whose steps come in now."""
        return self._turns[0] if self._turns else None

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        return self._store.open(simulation)

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
        while simulation == self.turn and taken < len(steps):
            step = steps[taken : taken + 1]
            if not self._store.offer(simulation, first + taken, step, parameters):
                break
            taken += 1
        return taken

    def close(self, simulation: int, complete: bool) -> None:
        """Close it in the store at its turn, and let the next ones have theirs."""
        self._closed[simulation] = complete
        before = self.turn
        while (turn := self.turn) is not None and turn in self._closed:
            self._store.close(turn, self._closed.pop(turn))
            self._turns.popleft()
        if self.turn != before:
            for wake in self._wakes:
                wake()

    def priority(self, simulation: int) -> int:
        """Return 1 for the simulation whose turn it is, or 0."""
        return int(simulation == self.turn)

    def waiting(self) -> str:
        """Return what the store waits for, or whose turn it is."""
        turn = f"simulation {self.turn} has its turn (deterministic)"
        return self._store.waiting() or turn

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there may be room, or another turn begins."""
        self._wakes.append(wake)
        self._store.on_room(wake)

    def _end_if_due(self) -> None:
        if self._ending and not self._store.ready:
            # Before the call, which announces room.
            self._ending = False
            self._store.end_reception()
