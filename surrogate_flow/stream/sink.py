"""Where received steps go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64

__all__ = ["Discard", "Sink"]


class Sink(Protocol):
    """Where steps go; it may be full.

    The inlet's thread calls everything here, and nothing may block. Of each simulation
    it calls `open`, then `offer` until all steps are taken, then `close`. A subclass
    need not override what fits.
    """

    def open(self, simulation: int) -> int:
        """Return the number of the first step that is wanted of a simulation: 0.

        It is another one if an earlier process of the study has received steps.

        Raises
        ------
        NotExpected
            If the simulation has not begun: its outlet is refused.
        AlreadyEnded
            If it has ended: its outlet is stopped.
        """
        return 0

    @abstractmethod
    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float32[np.ndarray, "time channel *space"],
        parameters: Float64[np.ndarray, " parameter"],
        inputs: Float32[np.ndarray, " input *space"] | None = None,
    ) -> int:
        """Take leading steps and return how many.

        The steps of a simulation come in order, each once. The array is the received
        message itself, read-only: copy what is taken. What is not taken is offered
        again after a call of what `on_room` was given. `inputs`, the same with each
        offer, are the simulation's input fields, if the spec has any.
        """
        ...

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Note that no more steps of a simulation come.

        Either it is `complete`: all of its steps were taken. Or it has failed
        permanently; then it may never have been opened. `early`, given only then, is
        why a complete one has fewer steps than the spec.
        """
        return

    def priority(self, simulation: int) -> int:
        """Return 0, or 1 or 2 if its steps are taken while those of others wait.

        Simulations of a higher priority overtake the others.
        """
        return 0

    def waiting(self) -> str:
        """Return who waits for whom, for outlets that wait; "" if nobody waits."""
        return ""

    def on_room(self, wake: Callable[[], None]) -> None:
        """Register what shall be called, from any thread, when there is room again.

        A sink that may take less than it is offered must override this: nothing else
        has the rest offered again.
        """
        return


class Discard(Sink):
    """A sink that takes all steps and keeps none."""

    def offer(
        self,
        simulation: int,
        first: int,
        steps: np.ndarray,
        parameters: np.ndarray,
        inputs: np.ndarray | None = None,
    ) -> int:
        """Take all."""
        return len(steps)
