"""Which messages of outlets an inlet accepts."""

from __future__ import annotations

import math
import time

import numpy as np
from jaxtyping import Float64

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream.errors import Refusal
from surrogate_flow.stream.protocol import Ask, End, Open, Steps
from surrogate_flow.stream.session import Session

__all__ = ["ProtocolChecks", "RecentlyClosed"]

CLOSED = 1024
TRANSIT_SECONDS = 4.0
_CUT = "Usual cause: a connection that was cut and restored"


class ProtocolChecks:
    """Checks messages against the study and its spec; each raises `Refusal`."""

    def __init__(self, spec: FieldSpec, study: str) -> None:
        self.spec = spec
        self.study = study
        self.digest = spec.digest()
        self.step_bytes = spec.step_bytes

    def check_opening(
        self, message: Open, payload: memoryview
    ) -> Float64[np.ndarray, " parameter"]:
        """Check that an outlet is of this study and spec; return its parameters."""
        if message.study != self.study:
            got = f"expected study {self.study!r}, got {message.study[:40]!r}"
            raise Refusal("study", f"{got}: this outlet is left over from another run")
        if message.spec != self.digest:
            raise Refusal(
                "spec",
                f"expected the spec {self.digest}, got {message.spec[:40]!r}: the "
                "solver on the worker differs from the trainer's. Usual cause: another "
                "version of its code, or other arguments",
            )
        if message.length != 8 * (count := len(self.spec.parameters)):
            got = f"expected {count} parameters in float64, got {message.length} bytes"
            raise Refusal("parameters", got)
        parameters = np.frombuffer(payload, np.float64).copy()
        if not np.isfinite(parameters).all():
            got = f"expected finite parameters, got {parameters.tolist()}"
            raise Refusal("parameters", got)
        return parameters

    def check_retry(
        self, session: Session, parameters: Float64[np.ndarray, " parameter"]
    ) -> None:
        """Check that an attempt solves the same problem as the one before."""
        if not np.array_equal(session.parameters, parameters):
            raise Refusal(
                "parameters",
                f"simulation {session.simulation} began with the parameters "
                f"{session.parameters.tolist()}, got {parameters.tolist()}: a retry "
                "must keep them",
            )

    def check_steps(self, session: Session, message: Steps) -> None:
        """Check that steps belong to the connection's simulation and leave no gap."""
        first, count, length = message.first, message.count, message.length
        ours = session.simulation, session.attempt
        if (theirs := (message.simulation, message.attempt)) != ours:
            want = f"this connection serves (simulation, attempt) {ours}"
            raise Refusal("simulation", f"{want}, got {theirs}")
        if not 0 < count <= self.spec.steps - first:
            want = f"expected steps below {self.spec.steps}"
            raise Refusal("steps", f"{want}, got {count} from {first}")
        if length != count * self.step_bytes:
            want = f"expected {self.step_bytes} bytes a step"
            raise Refusal("steps", f"{want}, got {length} for {count} steps")
        if first > session.next:
            got = f"expected step {session.next}, got {first}"
            raise Refusal("gap", f"{got}: the steps between were lost. {_CUT}")

    def check_ask(self, message: Ask, received: int, largest: int) -> None:
        """Check that nothing was lost, and that so much credit can be granted."""
        if message.sent != received:
            got = f"received {received} of {message.sent} bytes"
            raise Refusal("lost", f"{got}: some were lost. {_CUT}")
        if message.need > largest:
            want = f"expected messages of at most {largest} bytes"
            raise Refusal("credit", f"{want}, got one of {message.need}")

    def check_end(self, session: Session, message: End) -> None:
        """Check that every step of the spec was received."""
        if not message.steps == session.next == self.spec.steps:
            raise Refusal(
                "end",
                f"simulation {session.simulation} ended after {message.steps} steps, "
                f"received {session.next} of {self.spec.steps}",
            )


class RecentlyClosed:
    """The last 1,024 closed connections; only for the inlet's thread.

    Messages in transit from them are ignored for 4 s instead of being refused. Later
    ones are refused, so that an outlet whose connection was cut and restored does not
    wait for a reply forever.
    """

    def __init__(self) -> None:
        self._closed: dict[bytes, float] = {}

    def add(self, identity: bytes) -> None:
        """Note that a connection was closed just now."""
        self._closed[identity] = time.monotonic()
        if len(self._closed) > CLOSED:
            del self._closed[next(iter(self._closed))]

    def expire(self, identity: bytes) -> None:
        """Refuse the next message of a closed connection, however soon it arrives."""
        if identity in self._closed:
            self._closed[identity] = -math.inf

    def discard(self, identity: bytes) -> None:
        """Note that a connection is open again."""
        self._closed.pop(identity, None)

    def check_late(self, identity: bytes) -> None:
        """Check that a message without an opening was in transit at the closing.

        Raises
        ------
        Refusal
            If it was not.
        """
        if identity not in self._closed:
            raise Refusal("stranger", "expected an opening first")
        if time.monotonic() - self._closed[identity] > TRANSIT_SECONDS:
            raise Refusal("lost", f"another attempt must go on from here. {_CUT}")
