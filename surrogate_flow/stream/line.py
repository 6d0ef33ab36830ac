"""The outlet's end of the connection: handshake, credit, and the inlet's words."""

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
from surrogate_flow.stream.errors import StreamRefused, StreamStopped, StreamTimeout
from surrogate_flow.stream.keys import Endpoint

__all__ = ["Line"]

LINGER = 2000
REPEAT_SECONDS = 5.0
LIVE_SECONDS = 0.5
HEARTBEAT = 5000
HEARTBEAT_TIMEOUT = 30_000


class Line:
    """A DEALER socket that knows how much it may send, and whether the inlet lives.

    Parameters
    ----------
    endpoint : Endpoint
    timeout : float
        Seconds without a word from the inlet after which a wait is given up.

    Raises
    ------
    StreamRefused, StreamStopped, StreamTimeout
        From every method that listens.

    Notes
    -----
    Not locked: one thread at a time.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._sent = self._granted = 0
        self._asked = -REPEAT_SECONDS
        self._spoke = time.monotonic()
        self._reason = ""
        self._welcome: msg.Welcome | None = None
        self._done = False
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket = socket
        # The name outlives a cut, so that the inlet sees what was lost with it.
        socket.routing_id = b"o" + os.urandom(16)
        socket.linger = LINGER
        socket.sndtimeo = int(timeout * 1000)
        socket.heartbeat_ivl = HEARTBEAT
        socket.heartbeat_timeout = HEARTBEAT_TIMEOUT
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
        """Introduce this attempt and return where it shall go on."""
        study, spec = self.endpoint.study, self.endpoint.spec
        opening = msg.Open(study, spec, simulation, attempt, parameters.nbytes)
        frames = [msg.encode(opening), parameters.tobytes()]
        self._wait(lambda: self._welcome is not None, frames)
        assert self._welcome is not None
        self._granted = self._welcome.credit
        return self._welcome

    def acquire(self, need: int) -> None:
        """Wait until `need` bytes may be sent."""
        if self._socket.poll(0):
            self.listen()
        if self._granted - self._sent < need:
            question = [msg.encode(msg.Ask(need, self._sent))]
            self._wait(lambda: self._granted - self._sent >= need, question)

    def request(self, need: int) -> int:
        """Return how many of `need` bytes may be sent at once; ask for the others."""
        if not need:
            return 0
        allowed = min(need, self._granted - self._sent)
        now = time.monotonic()
        try:
            if allowed < need and now - self._asked >= REPEAT_SECONDS:
                question = msg.encode(msg.Ask(need, self._sent))
                self._socket.send(question, zmq.NOBLOCK)
                self._asked = now
        except zmq.Again:
            # Not even connected, and full: whoever waits will notice the silence.
            return 0
        return allowed if self._socket.poll(0, zmq.POLLOUT) else 0

    def transmit(self, message: msg.Steps, payload: memoryview) -> zmq.MessageTracker:
        """Send steps for which credit was acquired.

        They are not copied: leave them alone until the tracker is done.
        """
        try:
            self._socket.send(msg.encode(message), zmq.SNDMORE)
            tracker = self._socket.send(payload, copy=False, track=True)
        except zmq.Again:
            raise self._silence() from None
        self._sent += message.length
        assert isinstance(tracker, zmq.MessageTracker)
        return tracker

    def live(self) -> None:
        """Say that this attempt lives, though it has nothing to send; seldom."""
        now = time.monotonic()
        if now - self._spoke > LIVE_SECONDS:
            self._spoke = now
            self.listen()
            self._socket.send(msg.encode(msg.Ask(0, self._sent)))

    def end(self, simulation: int, steps: int) -> None:
        """Say that all steps were sent and wait until they are in the sink."""
        self._wait(lambda: self._done, [msg.encode(msg.End(simulation, steps))])

    def part(self, reason: str) -> None:
        """Say that this attempt has failed; wait until all that it sent was seen."""
        with contextlib.suppress(StreamStopped):
            self._wait(lambda: False, [msg.encode(msg.Abort(reason))])

    def abort(self, reason: str) -> None:
        """Say that this attempt has failed; never raises."""
        try:
            self._socket.send(msg.encode(msg.Abort(reason)), zmq.NOBLOCK)
        except zmq.ZMQError:
            return

    def listen(self) -> None:
        """Hear what the inlet has said, without waiting."""
        while True:
            try:
                word = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._hear(word)

    def close(self) -> None:
        """Close the socket; may be called again."""
        self._socket.close()

    def _wait(self, ready: Callable[[], bool], request: list[bytes]) -> None:
        """Repeat the request until `ready`, as long as the inlet is alive."""
        now = heard = time.monotonic()
        repeat = now
        while not ready():
            if now - heard >= self.timeout:
                raise self._silence()
            if now >= repeat:
                self._socket.send_multipart(request)
                repeat = now + REPEAT_SECONDS
            pause = min(repeat, heard + self.timeout) - now
            if self._socket.poll(math.ceil(1000 * pause)):
                heard = time.monotonic()
                self.listen()
            now = time.monotonic()

    def _hear(self, word: bytes) -> None:
        message, _ = msg.decode([word])
        if isinstance(message, msg.Credit):
            self._granted = max(self._granted, message.granted)
            self._asked = -REPEAT_SECONDS
        elif isinstance(message, msg.Wait):
            self._reason = message.reason
        elif isinstance(message, msg.Welcome):
            self._welcome = message
        elif isinstance(message, msg.Done):
            self._done = True
        elif isinstance(message, msg.Stop):
            raise StreamStopped(message.reason)
        elif isinstance(message, msg.Refused):
            raise StreamRefused(message.reason)

    def _silence(self) -> StreamTimeout:
        if self._welcome is None:
            cause = (
                "It never answered. Usual cause: the trainer is gone, a firewall is in "
                "between, or the keys are of another study."
            )
        else:
            last = self._reason or "nothing"
            cause = f"It said last: {last}. Usual cause: the trainer died or hangs."
        return StreamTimeout(
            f"No word from the inlet at {self.endpoint.address} for "
            f"{self.timeout:g} s. {cause}"
        )
