"""The part of one simulation that has been received."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.stream.sink import SimulationProgress, Sink

__all__ = ["Parcel", "Trajectory"]

# ZeroMQ reads so much at once: a smaller message that is kept keeps all of that.
BLOCK = 8192


@dataclass(slots=True)
class Parcel:
    """Steps that wait for the sink, and how much credit of which connection they hold.

    `data` is float32, in order, from the step `first` on: what was received itself, or
    bytes of ours, which hold as many messages as came.
    """

    identity: bytes
    length: int
    first: int
    data: Float32[np.ndarray, " value"] | bytearray


class Trajectory:
    """u_0, ..., u_{next-1} of a live simulation, handed to the sink in order.

    It outlives its connections: `identity` is that of the present one, if any, and what
    an earlier one sent stays in its place.

    Notes
    -----
    Not locked: the inlet's thread owns it.
    """

    def __init__(
        self, number: int, parameters: Float64[np.ndarray, " parameter"], first: int
    ) -> None:
        self.number = number
        self.parameters = parameters
        self.attempt = 0
        self.identity: bytes | None = None
        #: Whether the connection has said that this is all.
        self.ended = False
        #: The step expected next.
        self.next = first
        #: `time.monotonic` of the last step, of the opening, or when it ceased to wait.
        self.last = time.monotonic()
        #: `time.monotonic` when the present attempt was opened.
        self.opened = self.last
        #: Seconds of it that the attempt has waited for credit.
        self.waited = 0.0
        #: What the sink has not taken.
        self.pending: deque[Parcel] = deque()

    def progress(self, *, waiting: bool) -> SimulationProgress:
        """Return how far it is; from any thread."""
        connected = self.identity is not None
        return SimulationProgress(
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
            length = payload.nbytes
            self._append(identity, length, payload[old * (length // count) :])
            self.next = first + count
            self.last = time.monotonic()
        return old

    def _append(self, identity: bytes, length: int, new: memoryview) -> None:
        pending = self.pending
        if pending and length <= BLOCK:
            last = pending[-1]
            # The first one may be half taken; one that is offered cannot grow.
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
        # ZeroMQ hands out small messages at any offset in what it read.
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
            Connection and length of each message that has entered the sink as a whole.
            A message that has entered in part still holds its memory, hence its credit.
        """
        while self.pending:
            parcel = self.pending[0]
            data = parcel.data
            values = np.frombuffer(data, "f") if isinstance(data, bytearray) else data
            steps = values.reshape(-1, *shape)
            steps.flags.writeable = False
            taken = sink.offer(self.number, parcel.first, steps, self.parameters)
            if taken < len(steps):
                self._keep(parcel, values[steps[:taken].size :], taken)
                return
            self.pending.popleft()
            yield parcel.identity, parcel.length

    def _keep(self, parcel: Parcel, rest: np.ndarray, taken: int) -> None:
        """Let the rest of the first parcel wait."""
        if not taken and isinstance(parcel.data, bytearray):
            return
        data = bytearray(rest) if rest.nbytes <= BLOCK else rest
        first = parcel.first + taken
        self.pending[0] = Parcel(parcel.identity, parcel.length, first, data)
