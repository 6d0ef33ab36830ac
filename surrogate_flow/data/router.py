"""Where the steps of each simulation go, and in which order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.cluster.batch import Load
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.events import Event, Exhausted, Submitted
from surrogate_flow.reservoir import Store
from surrogate_flow.stream import Sink

__all__ = ["Router"]

_STALE = 0.05  # of the samples held, fewer of which are new

Steps = Float32[np.ndarray, "time channel *space"]
Parameters = Float64[np.ndarray, " parameter"]
Inputs = Float32[np.ndarray, " input *space"]


class Router:
    """Route the steps of each simulation: validation set or reservoir.

    A sink, and a listener: the store drains when no simulation is left.

    Parameters
    ----------
    validation : ValidationSet
        Of the simulations that are held out.
    store : Store, optional
        Of those for training.
    deterministic : bool
        Whether these enter the store in the order in which they were submitted.
    """

    def __init__(
        self,
        validation: ValidationSet,
        store: Store | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        self._validation, self._store = validation, store
        self._sequencer = Sequencer(store) if store and deterministic else None
        self._training: Sink | None = self._sequencer or store

    def __call__(self, event: Event) -> None:
        """Let the store drain when the ensemble has ended."""
        if self._sequencer is not None:
            self._sequencer(event)
        elif self._store is not None and isinstance(event, Exhausted):
            self._store.end_reception()

    def open(self, simulation: int) -> int:
        """Return the first step that is wanted of a simulation."""
        return self._sink(simulation).open(simulation)

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Steps,
        parameters: Parameters,
        inputs: Inputs | None = None,
    ) -> int:
        """Take leading steps and return how many."""
        sink = self._sink(simulation)
        return sink.offer(simulation, first, steps, parameters, inputs)

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Note that no more steps of a simulation come."""
        self._sink(simulation).close(simulation, complete, early)

    def priority(self, simulation: int) -> int:
        """Return how far a simulation goes before others."""
        return self._sink(simulation).priority(simulation)

    def waiting(self) -> str:
        """Return what the simulations for training wait for."""
        return "" if self._training is None else self._training.waiting()

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there may be room for training simulations."""
        if self._training is not None:
            self._training.on_room(wake)

    @property
    def held_up(self) -> bool:
        """Whether simulations wait until the trainer draws."""
        return self._store is not None and self._store.held_up

    def load(self, waited: float | None) -> Load:
        """Return who has waited for whom since the beginning.

        The trainer has waited for batches for `waited` seconds. It is None before it
        takes any: it waits for the held-out set, or for the first samples.
        """
        trainer = time.monotonic() if waited is None else waited
        if self._store is None:
            return Load(trainer)
        stats = self._store.stats()
        stale = stats.unseen < _STALE * stats.population
        return Load(trainer, stats.put_wait, stale and waited is not None)

    def _sink(self, simulation: int) -> Sink:
        if simulation in self._validation:
            return self._validation
        assert self._training is not None, "only a fit has training simulations"
        return self._training


class Sequencer:
    """A sink that makes batches independent of the speed of solvers and trainer.

    Simulations enter the store one after the other, step by step, in the order in which
    the ensemble submitted them; those ahead of their turn wait. Inserts and draws
    alternate. With the same seeds, two runs draw the same batches, at the price of
    waiting. Of a simulation that failed permanently all steps enter that it had sent.

    A listener, too: the ensemble's thread adds turns, and the inlet's thread ends them.

    Parameters
    ----------
    store : Store
        Served by this sink only. It draws each sample once on average, or as often as
        its limiter says.
    """

    def __init__(self, store: Store) -> None:
        store.take_turns()
        self._store = store
        self._turns: deque[int] = deque()
        self._closed: dict[int, tuple[bool, str]] = {}
        self._wakes: list[Callable[[], None]] = []
        self._ending = False
        store.on_room(self._end_if_due)

    def __call__(self, event: Event) -> None:
        """Give each simulation for training a turn, and let the store drain at the end.

        It drains once the batches before have been drawn.
        """
        if isinstance(event, Submitted):
            if event.attempt == 0 and event.simulation.part == "training":
                self._turns.append(event.simulation.number)
        elif isinstance(event, Exhausted):
            self._ending = True
            self._end_if_due()

    @property
    def _turn(self) -> int | None:
        """Number of the simulation whose steps come in now."""
        return self._turns[0] if self._turns else None

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        return self._store.open(simulation)

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Steps,
        parameters: Parameters,
        inputs: Inputs | None = None,
    ) -> int:
        """Store leading steps one by one, if it is the simulation's turn."""
        taken = 0
        # The choice of what makes room must not depend on how steps were sent.
        while simulation == self._turn and taken < len(steps):
            step = steps[taken : taken + 1]
            number = first + taken
            if not self._store.offer(simulation, number, step, parameters, inputs):
                break
            taken += 1
        return taken

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Close it in the store at its turn, and let the next ones have theirs."""
        self._closed[simulation] = complete, early
        before = self._turn
        while (turn := self._turn) is not None and turn in self._closed:
            self._store.close(turn, *self._closed.pop(turn))
            self._turns.popleft()
        if self._turn != before:
            for wake in self._wakes:
                wake()

    def priority(self, simulation: int) -> int:
        """Return 1 for the simulation whose turn it is, or 0."""
        return int(simulation == self._turn)

    def waiting(self) -> str:
        """Return what the store waits for, or whose turn it is."""
        turn = f"simulation {self._turn} has its turn (deterministic)"
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
