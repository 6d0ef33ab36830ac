"""Where received steps go, and what is known of the reception."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Float64

__all__ = ["Discard", "SimulationProgress", "Sink", "StreamStats"]


class Sink(Protocol):
    """Where steps go; it may be full.

    The inlet's thread calls everything here, and nothing may block. Of each simulation
    it calls `open`, then `offer` until all steps are taken, then `close`.
    """

    def open(self, simulation: int) -> int:
        """Return the number of the first step that is wanted of a simulation.

        That is not 0 for a simulation that an earlier process of the study had begun.

        Raises
        ------
        NotExpected
            If the simulation has not begun: its outlet is refused.
        """
        ...

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float32[np.ndarray, "time channel *space"],
        parameters: Float64[np.ndarray, " parameter"],
    ) -> int:
        """Take leading steps and return how many.

        The steps of a simulation come in order, each once. The array is the received
        message itself, read-only: copy what is taken. What is not taken is offered
        again after a call of what `on_room` was given.
        """
        ...

    def close(self, simulation: int, complete: bool) -> None:
        """Note that no more steps of a simulation come.

        Either it is `complete`: all of its steps were taken. Or it has failed
        permanently; then it may never have been opened.
        """
        ...

    def priority(self, simulation: int) -> int:
        """Return 0, or 1 or 2 if its steps are taken while those of others wait.

        Simulations of a higher priority overtake the others.
        """
        ...

    def waiting(self) -> str:
        """Return who waits for whom, for outlets that wait; "" if nobody waits."""
        ...

    def on_room(self, wake: Callable[[], None]) -> None:
        """Register what shall be called, from any thread, when there is room again."""
        ...


class Discard:
    """A sink that takes all steps and keeps none."""

    def open(self, simulation: int) -> int:
        """Begin with the first step."""
        return 0

    def offer(
        self, simulation: int, first: int, steps: np.ndarray, parameters: np.ndarray
    ) -> int:
        """Take all."""
        return len(steps)

    def close(self, simulation: int, complete: bool) -> None:
        """Do nothing: nothing is kept."""

    def priority(self, simulation: int) -> int:
        """Return 0: all simulations are equal."""
        return 0

    def waiting(self) -> str:
        """Return "": nobody waits."""
        return ""

    def on_room(self, wake: Callable[[], None]) -> None:
        """Do nothing: there is always room."""


@dataclass(frozen=True)
class StreamStats:
    """What an inlet has seen so far.

    Attributes
    ----------
    bytes, steps, messages : int
        Received, without duplicates.
    duplicates : int
        Steps that came again and were dropped.
    refusals : int
        Openings and messages that were refused.
    refused : mapping of str to int
        The same by cause, such as ``"study"`` or ``"length"``.
    connections, simulations : int
        Open now; of these simulations, unfinished and not given up.
    finished : int
        Simulations that are in the sink as a whole.
    pending : int
        Bytes that the sink has not taken yet.
    outstanding : int
        Bytes that are granted or pending; never above the budget and its reserve.
    waiting : int
        Outlets that wait for credit or for the sink.
    waiting_since : float or None
        `time.monotonic` when the one that waits longest began to.
    longest : float
        Seconds from opening to end of the longest of the last 32 simulations, without
        waiting for room.
    worked : float
        The same seconds of all simulations that have finished, together: what their
        last attempts took.
    """

    bytes: int
    steps: int
    messages: int
    duplicates: int
    refusals: int
    refused: Mapping[str, int]
    connections: int
    simulations: int
    finished: int
    pending: int
    outstanding: int
    waiting: int
    waiting_since: float | None
    longest: float
    worked: float


class SimulationProgress(NamedTuple):
    """How far a live simulation is.

    `last` is `time.monotonic` at its last step, at its opening, or when room was made
    for it, whichever came last; `opened` that at its opening, and `waited` the seconds
    since then for which it waited for room.
    """

    simulation: int
    attempt: int
    next_step: int
    last: float
    connected: bool
    waiting: bool
    opened: float
    waited: float
