"""The state of a study at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from surrogate_flow.ensemble import Progress
from surrogate_flow.reservoir import Counters
from surrogate_flow.stream import InletCounters

__all__ = ["Status"]


@dataclass(frozen=True)
class Status:
    """What a person wants to see of a study, at one moment."""

    simulations: Progress
    reservoir: Counters | None
    stream: InletCounters
    held_out: str
    waiting: str
