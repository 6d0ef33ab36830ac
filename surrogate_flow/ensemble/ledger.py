"""Which simulations of a study run, are complete, or have failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from surrogate_flow.fields.errors import kind_of
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.quantities import Simulation, counted
from surrogate_flow.stream import AlreadyEnded, NotExpected, Sink

__all__ = ["Counts", "Ledger", "RecordingSink", "SimulationState", "ended_early"]

logger = logging.getLogger(__name__)

_KINDS = 20  # of reasons for an early end that are told apart


class SimulationState(Enum):
    """Where a simulation is in its life; it only ever moves to a later state."""

    #: Not begun: its number may still be any.
    PLANNED = "planned"
    #: Submitted for the first time; attempts may fail meanwhile.
    RUNNING = "running"
    #: Every step has entered the sink; those until its end, if that was an early one.
    COMPLETE = "complete"
    #: It has failed permanently, and no step enters the sink any more.
    FAILED = "failed"


def ended_early(early: Mapping[str, int]) -> str:
    """Return how many simulations have ended early, and why; "" if none has.

    Examples
    --------
    >>> ended_early({"steady state": 2, "breakdown": 1})
    '3 simulations ended early: steady state (2), breakdown (1).'
    """
    if not early:
        return ""
    kinds = (f"{kind} ({count})" for kind, count in early.items())
    return f"{counted(sum(early.values()), 'simulation')} ended early: " + (
        f"{', '.join(kinds)}."
    )


class Counts(NamedTuple):
    """Number of simulations by state; those not begun are not counted."""

    running: int
    complete: int
    failed: int


class Ledger:
    """number -> planned, running, complete or failed, with parameters while it runs.

    The ensemble begins simulations; the inlet records that one is complete, when its
    last step is in the sink, or that it has failed. All others ask here. Of those that
    have ended a bit each is kept: a million take 0.2 MB.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.begin(Simulation(0, "training", {"diffusivity": 0.1}))
    >>> ledger.complete(0)
    >>> ledger.state(0), ledger.state(1), ledger.to_plain()
    (<SimulationState.COMPLETE: 'complete'>, <SimulationState.PLANNED: 'planned'>, \
{'complete': [(0, 1)], 'failed': []})

    Notes
    -----
    Thread-safe. The lock is taken when a simulation begins or ends, or is asked about,
    never for a step.
    """

    def __init__(self) -> None:
        self._running: dict[int, Simulation] = {}
        self._complete, self._failed = IntSet(), IntSet()
        self._early: dict[str, IntSet] = {}
        self._lock = threading.Condition()

    def begin(self, simulation: Simulation) -> None:
        """Record that a simulation runs from now on."""
        number = simulation.number
        with self._lock:
            self._require(number, SimulationState.PLANNED)
            self._running[number] = simulation

    def complete(self, number: int, early: str = "") -> None:
        """Record that every step of a running simulation has entered the sink.

        The first one that ends `early` for a reason is logged.
        """
        kind, new = " ".join(kind_of(early).split()), False
        kind = kind if kind.strip(". ") else early
        with self._lock:
            if early:
                if kind not in self._early and len(self._early) >= _KINDS:
                    kind = "other reasons"
                new = kind not in self._early
                self._early.setdefault(kind, IntSet()).add(number)
        if new:
            logger.info(
                "Simulation %d has ended early, as others may: %s", number, early
            )
        self._end(number, self._complete)

    def early(self) -> dict[str, list[tuple[int, int]]]:
        """Return the complete simulations that have ended early, by reason, as ranges.

        Reasons that differ in numbers alone are one.
        """
        with self._lock:
            return {kind: numbers.ranges for kind, numbers in self._early.items()}

    def fail(self, number: int) -> None:
        """Record that a running simulation has failed permanently."""
        self._end(number, self._failed)

    def state(self, number: int) -> SimulationState:
        """Return the state of a simulation, known or not."""
        with self._lock:
            return self._state(number)

    def __contains__(self, number: object) -> bool:
        """Whether a simulation has ended: it is complete, or has failed permanently."""
        ended = (SimulationState.COMPLETE, SimulationState.FAILED)
        return isinstance(number, int) and self.state(number) in ended

    def counts_early(self) -> dict[str, int]:
        """Return how many of the complete simulations have ended early, by reason."""
        with self._lock:
            return {kind: len(numbers) for kind, numbers in self._early.items()}

    def running(self) -> list[Simulation]:
        """Return the simulations that run, in the order in which they began."""
        with self._lock:
            return list(self._running.values())

    def counts(self) -> Counts:
        """Return how many simulations are in each state, at one moment."""
        with self._lock:
            return Counts(len(self._running), len(self._complete), len(self._failed))

    def wait(self, timeout: float) -> bool:
        """Block until no simulation runs, `timeout` seconds at most; return whether."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._running, timeout)

    def to_plain(self) -> dict[str, list[tuple[int, int]]]:
        """Return the simulations that have ended, as ranges ``[start, end)``."""
        with self._lock:
            return {"complete": self._complete.ranges, "failed": self._failed.ranges}

    def restore(
        self,
        plain: Mapping[str, Iterable[tuple[int, int]]],
        early: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    ) -> None:
        """Go on from what `to_plain` and `early` returned, before any has begun.

        Those that are not complete run again, and are not counted.

        Raises
        ------
        ValueError
            If simulations have begun, or one would be complete and failed.
        """
        complete, failed = IntSet(plain["complete"]), IntSet(plain["failed"])
        if both := [number for number in failed if number in complete]:
            raise ValueError(f"Simulations are complete and failed: {both[:9]}.")
        with self._lock:
            if self._running or self._complete or self._failed:
                raise ValueError("The ledger is in use: restore a new one.")
            self._complete, self._failed = complete, failed
            for kind, ranges in (early or {}).items():
                again = IntSet(ranges) - complete
                self._early[kind] = IntSet(ranges) - again

    def _end(self, number: int, ended: IntSet) -> None:
        with self._lock:
            self._require(number, SimulationState.RUNNING)
            ended.add(number)
            del self._running[number]
            self._lock.notify_all()

    def _require(self, number: int, expected: SimulationState) -> None:
        if (state := self._state(number)) is not expected:
            raise RuntimeError(
                f"Simulation {number}: expected it to be {expected.value}, but it is "
                f"{state.value}."
            )

    def _state(self, number: int) -> SimulationState:
        if number in self._running:
            return SimulationState.RUNNING
        if number in self._complete:
            return SimulationState.COMPLETE
        return (
            SimulationState.FAILED
            if number in self._failed
            else SimulationState.PLANNED
        )


class RecordingSink:
    """A sink that records in a ledger which simulations have ended."""

    def __init__(self, ledger: Ledger, sink: Sink) -> None:
        self._ledger = ledger
        self._sink = sink
        self.offer, self.priority = sink.offer, sink.priority
        self.waiting, self.on_room = sink.waiting, sink.on_room

    def open(self, simulation: int) -> int:
        """Return the first step that is wanted of a simulation that runs.

        Raises
        ------
        NotExpected
            If it has not begun.
        AlreadyEnded
            If it has ended.
        """
        state = self._ledger.state(simulation)
        if state is not SimulationState.RUNNING:
            planned = state is SimulationState.PLANNED
            kind = NotExpected if planned else AlreadyEnded
            raise kind(f"simulation {simulation} is {state.value}")
        return self._sink.open(simulation)

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Close it in the sink, and record that it is complete or has failed."""
        if not complete:
            # Before the sink lets go of it: a checkpoint between would run it again.
            self._ledger.fail(simulation)
        self._sink.close(simulation, complete, *((early,) if early else ()))
        if complete:
            self._ledger.complete(simulation, early)
