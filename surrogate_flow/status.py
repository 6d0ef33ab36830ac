"""The state of a study at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from surrogate_flow.reservoir import Counters
from surrogate_flow.stream import InletCounters

__all__ = ["Progress", "Status"]


@dataclass(frozen=True)
class Progress:
    """Simulations by state, at one moment."""

    done: int
    running: int
    failed: int
    retried: int
    workers: int


@dataclass(frozen=True)
class Status:
    """What a person wants to see of a study, at one moment."""

    simulations: Progress
    reservoir: Counters | None
    stream: InletCounters
    held_out: str
    waiting: str
