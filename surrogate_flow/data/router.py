"""Where the steps of each simulation go, and which simulations have to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.cluster.batch import Load
from surrogate_flow.data.checkpoint import StudyCheckpoint
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.sequencer import Sequencer
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.reservoir import Store
from surrogate_flow.sampling import Design
from surrogate_flow.stream import Inlet, Sink

__all__ = ["Router"]

_STALE = 0.05  # of the samples held, fewer of which are new


class Router:
    """The sink of a study: held-out simulations go into memory, others into the store.

    Parameters
    ----------
    held_out : ValidationSet
        This rank's share of the held-out simulations.
    count : int
        Number of all held-out simulations, 0, ..., count - 1.
    ranks : Ranks
        Simulations are dealt to them.
    store : Store, optional
        Of all others.
    memory : StudyCheckpoint, optional
        What is known of simulations that ended in earlier processes.
    deterministic : bool
        Whether training simulations enter the store in the order of their numbers.
    """

    def __init__(
        self,
        held_out: ValidationSet,
        count: int,
        ranks: Ranks,
        store: Store | None = None,
        memory: StudyCheckpoint | None = None,
        *,
        deterministic: bool = False,
    ) -> None:
        self.held_out = held_out
        self.count = count
        self.ranks = ranks
        self.store = store
        self.memory = memory
        self.order: Sequencer | None = None
        self._deterministic = deterministic
        self._wakes: list[Callable[[], None]] = []

    def check_threshold(self, simulations: int | None) -> None:
        """Refuse a threshold that so many simulations can never fill.

        Raises
        ------
        ValueError
        """
        store = self.store
        if store is None or simulations is None:
            return
        numbers = range(self.count, self.count + simulations)
        mine = sum(self.ranks.mine(number) for number in numbers)
        each = store.window.samples(store.spec.steps)
        if mine * each < store.threshold:
            raise ValueError(
                f"The threshold can never be reached: expected at most {mine * each} "
                f"samples ({mine} simulations of {each}), got a threshold of "
                f"{store.threshold}. Lower it, or run more simulations."
            )

    def start(self, inlet: Inlet) -> None:
        """Fix the order, after what a checkpoint held has been restored."""
        memory = self.memory
        if self._deterministic and self.store and memory and self.order is None:
            ended, mine = memory.ended(), self.ranks.mine

            def give_up(simulation: int) -> None:
                memory.set_aside(simulation)
                inlet.give_up(simulation)

            self.order = Sequencer(
                self.store,
                self.count,
                lambda n: not mine(n) or ended(n),
                received=inlet.received,
                give_up=give_up,
            )
            for wake in self._wakes:
                self.order.on_room(wake)

    def left(self, design: Design) -> Iterator[Simulation]:
        """Yield the simulations of a design that no earlier process has ended."""
        design.skip({self.held_out.number(row) for row in self.held_out.finished})
        if self.memory is not None and self.store is not None:
            design.skip(self.store.finished)
            design.skip(self.memory.failed)
        yield from design

    def open(self, simulation: int) -> int:
        """Return the first step that is wanted of a simulation."""
        return self._sink(simulation).open(simulation)

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float32[np.ndarray, "time channel *space"],
        parameters: Float64[np.ndarray, " parameter"],
    ) -> int:
        """Take leading steps and return how many."""
        return self._sink(simulation).offer(simulation, first, steps, parameters)

    def close(self, simulation: int, complete: bool) -> None:
        """Note that no more steps of a simulation come."""
        self._sink(simulation).close(simulation, complete)

    def priority(self, simulation: int) -> int:
        """Return how far a simulation goes before others."""
        return self._sink(simulation).priority(simulation)

    def waiting(self) -> str:
        """Return what the simulations for training wait for."""
        sink = self.order or self.store
        return "" if sink is None else sink.waiting()

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there may be room for training simulations."""
        self._wakes.append(wake)
        if (sink := self.order or self.store) is not None:
            sink.on_room(wake)

    def _sink(self, simulation: int) -> Sink:
        if simulation < self.count:
            return self.held_out
        sink = self.order or self.store
        assert sink is not None, "only a fit has training simulations"
        return sink

    def set_aside(self, simulation: int, inlet: Inlet) -> None:
        """Wait no longer for a simulation that failed for good."""
        if simulation < self.count:
            inlet.give_up(simulation)
        elif (order := self.order) is not None:
            inlet.call(lambda: order.set_aside(simulation))
        else:
            if self.memory is not None:
                self.memory.set_aside(simulation)
            inlet.give_up(simulation)

    def end(self) -> None:
        """Let the store drain: all simulations have ended."""
        end = self.order or self.store
        if end is not None:
            end.end_reception()

    def trainer_waits(self) -> str:
        """Say who waits for whom, as a person at the trainer sees it."""
        if not self.held_out.complete:
            progress = self.held_out.progress
            return f"trainer waits for held-out simulations: {progress}"
        return "" if self.store is None else self.store.waiting()

    def waits(self, trainer: float | None) -> Load:
        """Return who has waited for whom since the beginning.

        Parameters
        ----------
        trainer : float or None
            Seconds that the trainer waited for batches; None before it takes any: it
            waits for the held-out set, or for the first samples.
        """
        waited = time.monotonic() if trainer is None else trainer
        if self.store is None:
            return Load(waited)
        counters = self.store.stats()
        stale = counters.unseen < _STALE * counters.population
        return Load(waited, counters.put_wait, stale and trainer is not None)

    def blocked(self) -> bool:
        """Whether simulations that wait do so for the trainer, not for each other."""
        return self.order is None or self.store is None or self.store.ready
