"""The outlet's end of a connection: handshake, credit, and replies of the inlet."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable

import numpy as np
import zmq
from jaxtyping import Float64

from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.endpoint import Endpoint, Timing
from surrogate_flow.stream.errors import StreamRefused, StreamStopped, StreamTimeout

__all__ = ["Connection"]

REPEAT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 0.5


class Connection:
    """A DEALER socket and its credit; for one thread at a time.

    Parameters
    ----------
    endpoint : Endpoint
    timeout : float
        Seconds without a message from the inlet after which a wait is given up.

    Raises
    ------
    StreamRefused, StreamStopped, StreamTimeout
        From every method that receives.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._sent = self._granted = 0
        self._asked = -REPEAT_SECONDS
        self._kept_alive = time.monotonic()
        #: Why the inlet has one wait.
        self.reason = ""
        #: What the inlet has replied, and when it was last heard.
        self.welcome: msg.Welcome | None = None
        self.done = False
        self.heard = time.monotonic()
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket = socket
        # ZeroMQ reconnects under the same name, so that the inlet notices a loss.
        socket.routing_id = b"o" + os.urandom(16)
        Timing().apply(socket)
        socket.sndtimeo = int(timeout * 1000)
        if endpoint.keys is not None:
            socket.curve_serverkey = endpoint.keys.server
            socket.curve_publickey = endpoint.keys.public
            socket.curve_secretkey = endpoint.keys.secret
        socket.ipv6 = "[" in endpoint.address
        socket.connect(endpoint.address)

    def open(
        self,
        simulation: int,
        attempt: int,
        parameters: Float64[np.ndarray, " parameter"],
    ) -> msg.Welcome:
        """Announce an attempt; return the reply: where to begin."""
        frames = self.opening(simulation, attempt, parameters)
        self._wait(lambda: self.welcome is not None, frames)
        assert self.welcome is not None
        return self.welcome

    def opening(
        self,
        simulation: int,
        attempt: int,
        parameters: Float64[np.ndarray, " parameter"],
    ) -> list[bytes]:
        """Return what announces an attempt."""
        study, spec = self.endpoint.study, self.endpoint.spec
        opening = msg.Open(study, spec, simulation, attempt, parameters.nbytes)
        return [msg.encode(opening), parameters.tobytes()]

    def acquire(self, need: int) -> None:
        """Wait until `need` bytes may be sent."""
        if self.socket.poll(0):
            self.receive()
        if self._granted - self._sent < need:
            question = [msg.encode(msg.Ask(need, self._sent))]
            self._wait(lambda: self._granted - self._sent >= need, question)

    def request(self, need: int) -> int:
        """Return how many of `need` bytes may be sent now; ask for the others."""
        if not need:
            return 0
        allowed = min(need, self._granted - self._sent)
        if allowed < need and not self.repeat([msg.encode(msg.Ask(need, self._sent))]):
            return 0
        return allowed if self.socket.poll(0, zmq.POLLOUT) else 0

    def repeat(self, request: list[bytes]) -> bool:
        """Send a request, every 5 s, without waiting; return whether one can."""
        now = time.monotonic()
        if now - self._asked >= REPEAT_SECONDS:
            try:
                self.socket.send_multipart(request, zmq.NOBLOCK)
            except zmq.Again:
                # The queue is full, without a connection: the next wait times out.
                return False
            self._asked = now
        return True

    def transmit(
        self, message: msg.Inputs | msg.Steps, payload: memoryview
    ) -> zmq.MessageTracker:
        """Send fields for which credit was acquired.

        They are not copied: do not change them until the tracker is done.
        """
        try:
            self.socket.send(msg.encode(message), zmq.SNDMORE)
            tracker = self.socket.send(payload, copy=False, track=True)
        except zmq.Again:
            raise self.timed_out() from None
        self._sent += message.length
        assert isinstance(tracker, zmq.MessageTracker)
        return tracker

    def keep_alive(self) -> None:
        """Send a sign of life, at most every half second."""
        now = time.monotonic()
        if now - self._kept_alive > KEEP_ALIVE_SECONDS:
            self._kept_alive = now
            self.receive()
            self.socket.send(msg.encode(msg.Ask(0, self._sent)))

    def end(self, simulation: int, steps: int, early: str = "") -> None:
        """Announce that all steps were sent; wait until the sink has them."""
        self._wait(lambda: self.done, [msg.encode(msg.End(simulation, steps, early))])

    def abort(self, reason: str) -> None:
        """Announce that this attempt has failed; neither blocks nor raises."""
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send(msg.encode(msg.Abort(reason)), zmq.NOBLOCK)

    def abort_and_wait(self, reason: str) -> None:
        """Announce a failure; wait until the inlet has received all that was sent."""
        with contextlib.suppress(StreamStopped):
            self._wait(lambda: False, [msg.encode(msg.Abort(reason))])

    def receive(self) -> None:
        """Handle what the inlet has sent, without waiting."""
        while True:
            try:
                header = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.heard = time.monotonic()
            self._handle(header)

    def close(self) -> None:
        """Close the socket; may be called again."""
        self.socket.close()

    def _wait(self, ready: Callable[[], bool], request: list[bytes]) -> None:
        """Repeat the request until `ready`, as long as the inlet sends anything."""
        now = repeat = self.heard = time.monotonic()
        while not ready():
            if now - self.heard >= self.timeout:
                raise self.timed_out()
            if now >= repeat:
                self.socket.send_multipart(request)
                repeat = now + REPEAT_SECONDS
            pause = min(repeat, self.heard + self.timeout) - now
            if self.socket.poll(math.ceil(1000 * pause)):
                self.receive()
            now = time.monotonic()

    def _handle(self, header: bytes) -> None:
        message, _ = msg.decode([header])
        if isinstance(message, msg.Credit):
            self._granted = max(self._granted, message.granted)
            self._asked = -REPEAT_SECONDS
        elif isinstance(message, msg.Wait):
            self.reason = message.reason
        elif isinstance(message, msg.Welcome):
            self.welcome = message
            self._granted = max(self._granted, message.credit)
            self._asked = -REPEAT_SECONDS
        elif isinstance(message, msg.Done):
            self.done = True
        elif isinstance(message, msg.Stop):
            raise StreamStopped(message.reason)
        elif isinstance(message, msg.Refused):
            raise StreamRefused(message.reason)

    def timed_out(self) -> StreamTimeout:
        """Return the error of an inlet that was not heard in time."""
        if self.welcome is None:
            cause = (
                "It never answered. Usual cause: the trainer has ended, a firewall is "
                "in between, or the keys are of another study."
            )
        else:
            last = self.reason or "none"
            cause = f"Its last reason to wait: {last}. The trainer has died or hangs."
        return StreamTimeout(
            f"No message from the inlet at {self.endpoint.address} for "
            f"{self.timeout:g} s. {cause}"
        )
