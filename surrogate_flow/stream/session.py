"""The received steps of a live simulation, and their delivery to the sink."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.errors import ProtocolError
from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.stats import SimulationProgress

__all__ = ["Session"]

# ZeroMQ reads so many bytes at once: a small message that is kept keeps all of them.
BLOCK = 8192

Inputs = Float32[np.ndarray, " input *space"]


@dataclass(slots=True)
class PendingSteps:
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
    earlier connections sent is kept. Only for the inlet's thread, except `progress`.
    """

    def __init__(
        self,
        spec: FieldSpec,
        simulation: int,
        parameters: Float64[np.ndarray, " parameter"],
        first: int,
    ) -> None:
        self.simulation = simulation
        self.parameters = parameters
        #: Its input fields, once they are there; none of a spec without any.
        self.inputs: Inputs | None = None
        self._input_shape = spec.input_shape if spec.inputs else None
        self.attempt = 0
        self.identity: bytes | None = None
        #: Whether the connection has announced the end.
        self.ended = False
        #: Why it has ended before its last step; "" if it has not.
        self.early = ""
        #: The step expected next.
        self.next = first
        #: As in `SimulationProgress`.
        self.last = self.opened = time.monotonic()
        self.waited = 0.0
        #: What the sink has not taken.
        self.pending: deque[PendingSteps] = deque()
        self._steps = spec.steps
        self._shape = spec.step_shape
        self._step_bytes = spec.step_bytes

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

    def take_inputs(self, message: msg.Inputs, payload: memoryview) -> None:
        """Keep the input fields, or refuse others than those that are there."""
        self._check_attempt(message)
        length = 4 * math.prod(self._input_shape or (0,))
        if message.length != length:
            got = f"expected {length} bytes of input fields, got {message.length}"
            raise ProtocolError("inputs", got)
        # A copy: small messages share the memory that ZeroMQ has read, at any offset.
        fields = np.frombuffer(bytes(payload), np.float32)
        given: Inputs = fields.reshape(self._input_shape or (0,))
        if self.inputs is None:
            self.inputs = given
        elif not np.array_equal(self.inputs, given):
            reason = f"simulation {self.simulation} began with other input fields"
            raise ProtocolError("inputs", f"{reason}: a retry must keep them")

    def _check_attempt(self, message: msg.Inputs | msg.Steps) -> None:
        ours = self.simulation, self.attempt
        if (theirs := (message.simulation, message.attempt)) != ours:
            got = f"this connection serves (simulation, attempt) {ours}, got {theirs}"
            raise ProtocolError("simulation", got)

    def check_steps(self, message: msg.Steps) -> None:
        """Refuse steps that are not of this attempt, or leave a gap."""
        first, count, length = message.first, message.count, message.length
        self._check_attempt(message)
        if self._input_shape is not None and self.inputs is None:
            raise ProtocolError("inputs", "expected the input fields before any step")
        if not 0 < count <= self._steps - first:
            got = f"expected steps below {self._steps}, got {count} from {first}"
            raise ProtocolError("steps", got)
        if length != count * self._step_bytes:
            got = f"expected {self._step_bytes} bytes a step, got {length} for {count}"
            raise ProtocolError("steps", got)
        if first > self.next:
            got = f"expected step {self.next}, got {first}"
            raise ProtocolError("gap", f"{got}: the connection was cut and restored")

    def check_end(self, message: msg.End) -> None:
        """Refuse the end of a simulation whose steps are not all there.

        An early end says why, and is that of one step at least.
        """
        early = bool(message.early) and 0 < message.steps < self._steps
        if message.steps != self.next or not (early or self.next == self._steps):
            raise ProtocolError(
                "end",
                f"simulation {self.simulation} ended after {message.steps} steps, "
                f"received {self.next} of {self._steps}",
            )

    def add(self, identity: bytes, first: int, payload: memoryview, count: int) -> int:
        """Append the new steps of one checked message; return how many are not new."""
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
            # The first may be taken in part; memory that is offered cannot grow.
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
        pending.append(PendingSteps(identity, length, self.next, data))

    def deliver(self, sink: Sink) -> Iterator[tuple[bytes, int]]:
        """Offer what is pending until the sink takes no more.

        Yields
        ------
        bytes, int
            Connection and length of each message of which the sink has every step. A
            message that was taken in part still holds its memory, hence its credit.
        """
        while self.pending:
            oldest = self.pending[0]
            data = oldest.data
            values = np.frombuffer(data, "f") if isinstance(data, bytearray) else data
            steps = values.reshape(-1, *self._shape)
            steps.flags.writeable = False
            given = () if self.inputs is None else (self.inputs,)
            taken = sink.offer(
                self.simulation, oldest.first, steps, self.parameters, *given
            )
            if taken < len(steps):
                if taken or not isinstance(data, bytearray):
                    rest = values[steps[:taken].size :]
                    oldest.data = bytearray(rest) if rest.nbytes <= BLOCK else rest
                    oldest.first += taken
                return
            self.pending.popleft()
            yield oldest.identity, oldest.length
