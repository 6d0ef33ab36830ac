"""What happens to the simulations of a study, and who wants to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from surrogate_flow.fields.quantities import Simulation

__all__ = [
    "Event",
    "Exhausted",
    "Failed",
    "Finished",
    "Listener",
    "Retried",
    "Submitted",
]


@dataclass(frozen=True)
class Submitted:
    """A worker will make this attempt; the first one has number 0."""

    simulation: Simulation
    attempt: int


@dataclass(frozen=True)
class Finished:
    """Every step of a simulation has arrived, and the attempt's task has ended."""

    simulation: Simulation
    attempt: int


@dataclass(frozen=True)
class Retried:
    """This attempt failed; another one follows."""

    simulation: Simulation
    attempt: int
    error: BaseException


@dataclass(frozen=True)
class Failed:
    """This attempt failed and was the last: the simulation has failed permanently."""

    simulation: Simulation
    attempt: int
    error: BaseException


@dataclass(frozen=True)
class Exhausted:
    """Every simulation of the design is complete or has failed permanently."""


Event = Submitted | Finished | Retried | Failed | Exhausted


class Listener(Protocol):
    """What is called with every event of a study."""

    def __call__(self, event: Event) -> None:
        """Take note of an event.

        The ensemble's thread calls it, in the order in which things happen: it must
        not block. What it raises ends the study.
        """
        ...
