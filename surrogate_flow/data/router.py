"""Where the steps of each simulation go."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.cluster.batch import Load
from surrogate_flow.data.sequencer import Sequencer
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.events import Event, Exhausted
from surrogate_flow.reservoir import Store
from surrogate_flow.stream import Sink

__all__ = ["Router"]

_STALE = 0.05  # of the samples held, fewer of which are new


class Router:
    """Route the steps of each simulation: validation set or reservoir.

    A sink and a listener: the store drains when no simulation is left.

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
        self._validation = validation
        self._store = store
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
        return "" if self._training is None else self._training.waiting()

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when there may be room for training simulations."""
        if self._training is not None:
            self._training.on_room(wake)

    @property
    def held_up(self) -> bool:
        """Whether simulations wait until the trainer draws."""
        return self._store is not None and self._store.held_up

    def load(self, trainer: float | None) -> Load:
        """Return who has waited for whom since the beginning.

        Parameters
        ----------
        trainer : float or None
            Seconds that the trainer waited for batches; None before it takes any: it
            waits for the held-out set, or for the first samples.
        """
        waited = time.monotonic() if trainer is None else trainer
        if self._store is None:
            return Load(waited)
        counters = self._store.stats()
        stale = counters.unseen < _STALE * counters.population
        return Load(waited, counters.put_wait, stale and trainer is not None)

    def _sink(self, simulation: int) -> Sink:
        if simulation in self._validation:
            return self._validation
        assert self._training is not None, "only a fit has training simulations"
        return self._training
