"""The received steps of a live simulation, and their delivery to the sink."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.stats import SimulationProgress

__all__ = ["Parcel", "Session"]

# ZeroMQ reads so many bytes at once: a small message that is kept keeps all of them.
BLOCK = 8192


@dataclass(slots=True)
class Parcel:
    """Steps that wait for the sink, and how much credit of which connection they hold.

    `data` is float32, in order, from the step `first` on: either the received message
    itself, or a copy of several small messages.
    """

    identity: bytes
    length: int
    first: int
    data: Float32[np.ndarray, " value"] | bytearray


class Session:
    """The reception of one simulation: steps 0, ..., next - 1 were received, in order.

    It outlives its connections: `identity` is that of the present one, if any. What
    earlier connections sent stays in its place. Only for the inlet's thread, except for
    `progress`.
    """

    def __init__(
        self, simulation: int, parameters: Float64[np.ndarray, " parameter"], first: int
    ) -> None:
        self.simulation = simulation
        self.parameters = parameters
        self.attempt = 0
        self.identity: bytes | None = None
        #: Whether the connection has announced the end.
        self.ended = False
        #: The step expected next.
        self.next = first
        #: As in `SimulationProgress`.
        self.last = self.opened = time.monotonic()
        self.waited = 0.0
        #: What the sink has not taken.
        self.pending: deque[Parcel] = deque()

    def connect(self, identity: bytes, attempt: int) -> None:
        """Note that an attempt was opened on a connection."""
        self.identity = identity
        self.attempt = attempt
        self.opened = self.last = time.monotonic()
        self.waited = 0.0

    def progress(self, *, waiting: bool) -> SimulationProgress:
        """Return how far it is; from any thread."""
        return SimulationProgress(
            self.simulation,
            self.attempt,
            self.next,
            self.last,
            self.identity is not None,
            waiting,
            self.opened,
            self.waited,
        )

    def add(self, identity: bytes, first: int, payload: memoryview, count: int) -> int:
        """Append the steps of one message that are new; return how many are not.

        There must be no gap: ``first <= next``.
        """
        old = min(self.next - first, count)
        if old < count:
            length = payload.nbytes
            self._append(identity, length, payload[old * (length // count) :])
            self.next = first + count
            self.last = time.monotonic()
        return old

    def _append(self, identity: bytes, length: int, new: memoryview) -> None:
        pending = self.pending
        if pending and length <= BLOCK:
            last = pending[-1]
            # The first parcel may be half taken; one that is offered cannot grow.
            if (
                len(pending) > 1
                and last.identity == identity
                and isinstance(last.data, bytearray)
                and last.length + length <= BLOCK
            ):
                last.data += new
                last.length += length
                return
        values = np.frombuffer(new, np.float32)
        # ZeroMQ returns small messages at any offset in what it has read.
        copied = (pending and length <= BLOCK) or not values.flags.aligned
        data = bytearray(new) if copied else values
        pending.append(Parcel(identity, length, self.next, data))

    def deliver(
        self, sink: Sink, shape: tuple[int, ...]
    ) -> Iterator[tuple[bytes, int]]:
        """Offer what is pending until the sink takes no more.

        Yields
        ------
        bytes, int
            Connection and length of each message of which the sink has every step. A
            message that was taken in part still holds its memory, hence its credit.
        """
        while self.pending:
            parcel = self.pending[0]
            data = parcel.data
            values = np.frombuffer(data, "f") if isinstance(data, bytearray) else data
            steps = values.reshape(-1, *shape)
            steps.flags.writeable = False
            taken = sink.offer(self.simulation, parcel.first, steps, self.parameters)
            if taken < len(steps):
                self._keep(parcel, values[steps[:taken].size :], taken)
                return
            self.pending.popleft()
            yield parcel.identity, parcel.length

    def _keep(self, parcel: Parcel, rest: np.ndarray, taken: int) -> None:
        """Keep what the sink has not taken of the first parcel."""
        if not taken and isinstance(parcel.data, bytearray):
            return
        data = bytearray(rest) if rest.nbytes <= BLOCK else rest
        first = parcel.first + taken
        self.pending[0] = Parcel(parcel.identity, parcel.length, first, data)
