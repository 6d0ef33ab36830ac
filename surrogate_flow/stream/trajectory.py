"""The part of one simulation that has been received."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.stream.sink import Progress, Sink

__all__ = ["Parcel", "Trajectory"]


class Parcel(NamedTuple):
    """Steps of one message that wait for the sink, and whose credit they hold."""

    identity: bytes
    length: int
    first: int
    steps: Float32[np.ndarray, "time channel *space"]


class Trajectory:
    """u_0, ..., u_{next-1} of a live simulation, handed to its sink in order.

    It outlives its connections: `identity` is that of the present one, if any, and what
    an earlier one sent stays in its place.

    Notes
    -----
    Not locked: the inlet's thread owns it.
    """

    def __init__(
        self, number: int, parameters: Float64[np.ndarray, " parameter"], sink: Sink
    ) -> None:
        self.number = number
        self.parameters = parameters
        self.sink = sink
        self.attempt = 0
        self.identity: bytes | None = None
        #: Whether the connection has said that this is all.
        self.ended = False
        #: The step expected next.
        self.next = sink.expected(number)
        #: `time.monotonic` of the last step, of the opening, or when it ceased to wait.
        self.last = time.monotonic()
        #: `time.monotonic` when the present attempt was opened.
        self.opened = self.last
        #: Seconds of it that the attempt has waited for credit.
        self.waited = 0.0
        #: What the sink has not taken.
        self.pending: deque[Parcel] = deque()

    def progress(self, *, waiting: bool) -> Progress:
        """Return how far it is; from any thread."""
        connected = self.identity is not None
        return Progress(
            self.number,
            self.attempt,
            self.next,
            self.last,
            connected,
            waiting,
            self.opened,
            self.waited,
        )

    def add(self, identity: bytes, first: int, payload: memoryview, count: int) -> int:
        """Append the steps of one message that are new and return how many are not.

        There must be no gap: ``first <= next``.
        """
        old = min(self.next - first, count)
        if old < count:
            steps = np.frombuffer(payload, np.float32)
            if not steps.flags.aligned:
                # ZeroMQ hands out small messages at any offset in what it read.
                steps = steps.copy()
            steps.flags.writeable = False
            new = steps.reshape(count, -1)[old:]
            self.pending.append(Parcel(identity, payload.nbytes, first + old, new))
            self.next = first + count
            self.last = time.monotonic()
        return old

    def deliver(self, shape: tuple[int, ...]) -> Iterator[tuple[bytes, int]]:
        """Offer what is pending until the sink takes no more.

        Yields
        ------
        bytes, int
            Connection and length of each message that has entered the sink as a whole.
            A message that has entered in part still holds its memory, hence its credit.
        """
        while self.pending:
            identity, length, first, steps = self.pending[0]
            taken = self.sink.offer(
                self.number, first, steps.reshape(-1, *shape), self.parameters
            )
            if taken < len(steps):
                if taken:
                    rest = Parcel(identity, length, first + taken, steps[taken:])
                    self.pending[0] = rest
                return
            self.pending.popleft()
            yield identity, length
