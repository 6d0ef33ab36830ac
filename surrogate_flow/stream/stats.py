"""What an inlet has received and refused, in numbers."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from surrogate_flow.stream.errors import ProtocolError

__all__ = ["RefusalLog", "SimulationProgress", "StreamCounters", "StreamStats"]

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
LOG_CHARACTERS = 500
REPLIES = 64
PEERS = 1024
RECENT = 32


@dataclass(frozen=True)
class StreamStats:
    """What an inlet has received so far.

    Attributes
    ----------
    bytes, steps, messages : int
        Received, without duplicates.
    duplicates : int
        Steps that were received again and dropped.
    refusals : int
        Messages that were refused.
    refused : mapping of str to int
        Their number by cause, such as ``"study"`` or ``"length"``.
    connections, simulations : int
        Open now; of these simulations, neither complete nor given up.
    finished : int
        Simulations of which the sink has every step.
    pending : int
        Bytes that the sink has not taken yet.
    outstanding : int
        Bytes that are granted or pending; at most the budget and its reserve.
    waiting : int
        Outlets that wait for credit or for the sink.
    longest : float
        Longest duration among the last 32 complete simulations, in seconds from opening
        to end without waiting for room.
    worked : float
        Sum of these durations over all complete simulations (their last attempts).
    quickest : float
        Shortest of these durations, of the simulations that made all their steps;
        infinite before the first.
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
    longest: float
    worked: float
    quickest: float


class SimulationProgress(NamedTuple):
    """Progress of a live simulation.

    `last` is `time.monotonic` at its last step, at its opening, or when it ceased to
    wait for room, whichever is latest; `opened` is that at its opening, and `waited`
    the seconds since then for which it waited for room.
    """

    simulation: int
    attempt: int
    next_step: int
    last: float
    connected: bool
    waiting: bool
    opened: float
    waited: float


class StreamCounters:
    """Running counts, with the attribute names of `StreamStats`."""

    def __init__(self) -> None:
        self.steps = self.messages = self.duplicates = 0
        self.worked, self.quickest = 0.0, math.inf
        self._durations: deque[float] = deque(maxlen=RECENT)

    def receive(self, new: int, old: int) -> None:
        """Count the new steps of one message, and its duplicates."""
        self.duplicates += old
        if new:
            self.steps += new
            self.messages += 1

    def finish(self, seconds: float, *, early: bool) -> None:
        """Count a complete simulation, whose last attempt took so many seconds."""
        self.worked += seconds
        if not early:
            self.quickest = min(self.quickest, seconds)
        self._durations.append(seconds)

    @property
    def longest(self) -> float:
        """Seconds of the longest of the last simulations; 0 before the first."""
        return max(tuple(self._durations), default=0.0)


class RefusalLog:
    """Counts refused messages, and logs a summary at most every ten seconds.

    Only for the inlet's thread, except `counts`.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._logged = -LOG_SECONDS
        self._last = ""
        self._peers: dict[bytes, int] = {}

    def counts(self) -> dict[str, int]:
        """Return how often each cause has occurred; from any thread."""
        return dict(self._counts)

    def add(self, identity: bytes, error: ProtocolError) -> bool:
        """Count a refused message; return whether to reply.

        Replies to a peer that never reads would accumulate.
        """
        self._counts[error.cause] += 1
        self._last = f"connection {identity[:6].hex()}: {error}"[:LOG_CHARACTERS]
        self.report()
        times = self._peers.pop(identity, 0) + 1
        self._peers[identity] = times
        if len(self._peers) > PEERS:
            del self._peers[next(iter(self._peers))]
        return times <= REPLIES

    def report(self, at_once: bool = False) -> None:
        """Log what was not logged yet, if ten seconds have passed or `at_once`."""
        now = time.monotonic()
        due = at_once or now - self._logged >= LOG_SECONDS
        if not due or not (new := self._counts - self._reported):
            return
        logger.warning(
            "Refused %d messages (%s), %d in all; the last of %s",
            new.total(),
            ", ".join(f"{count} {cause}" for cause, count in new.most_common()),
            self._counts.total(),
            self._last,
        )
        self._reported = self._counts.copy()
        self._logged = now
