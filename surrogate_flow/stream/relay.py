"""Forwards received steps to an inlet elsewhere, such as that of another trainer."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Self

import numpy as np
import zmq
from jaxtyping import Float32, Float64

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream.connection import Connection
from surrogate_flow.stream.endpoint import Endpoint
from surrogate_flow.stream.errors import StreamError, StreamStopped
from surrogate_flow.stream.protocol import End, Inputs, Steps, encode
from surrogate_flow.stream.sink import Sink
from surrogate_flow.threads import LoudThread, Waker

__all__ = ["Relay"]

_BACKLOG = 16 << 20
_TICK = 0.5  # seconds between two looks at who waits


class _Backlog:
    """Bytes of steps that wait; `taken` and `forwarded` have one writer thread each."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = self.forwarded = 0
        #: Whether less was taken than offered, since room was announced.
        self.full = False

    @property
    def room(self) -> int:
        """Bytes that may be taken."""
        return max(0, self.limit - self.taken + self.forwarded)


class _Passage:
    """The way of one simulation to the other inlet."""

    def __init__(
        self,
        simulation: int,
        parameters: np.ndarray,
        inputs: np.ndarray | None,
        backlog: _Backlog,
    ) -> None:
        self.simulation = simulation
        self.parameters = parameters
        #: Input fields that are not sent yet, if there are any.
        self.inputs = inputs
        self.backlog = backlog
        #: Steps that wait for credit, and the number of the first of each array.
        self.queue: deque[tuple[int, np.ndarray]] = deque()
        #: The step behind those in the queue, and why there are no more than these.
        self.next, self.early = 0, ""
        #: Whether no steps follow, and whether the inlet wants none.
        self.ended = self.over = False
        self.connection: Connection


class Relay(Sink):
    """A sink whose steps go on to another inlet, in the order in which they came.

    What that inlet has no credit for waits here, `backlog` bytes of it at most; then
    this sink is full. Held-out simulations have a backlog of their own: a trainer waits
    for them before it takes any others.

    Parameters
    ----------
    endpoint : Endpoint
        Of the other inlet.
    spec : FieldSpec
    backlog : int, optional
        Bytes; 16 MB by default, or four steps if these are more.
    held_out : int
        Simulations below this number are held out.
    timeout : float
        Seconds without any message from an inlet that is asked for something, after
        which it is taken to be `lost`.

    Attributes
    ----------
    lost : str
        Why nothing is forwarded any more; "" while something is.

    Notes
    -----
    One thread owns the sockets, one for each simulation on its way. The received
    messages themselves are sent on: nothing is copied.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        spec: FieldSpec,
        *,
        backlog: int | None = None,
        held_out: int = 0,
        timeout: float = 60.0,
    ) -> None:
        self.endpoint = endpoint
        self.lost = ""
        self._spec, self._size = spec, spec.step_bytes
        self._held_out = held_out
        limit = max(backlog or max(_BACKLOG, 4 * self._size), self._size)
        self._backlog, self._urgent = _Backlog(limit), _Backlog(limit)
        self._timeout = timeout
        self._open: dict[int, _Passage] = {}
        self._passages: dict[zmq.Socket[bytes], _Passage] = {}
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopping = False
        self._wakes: list[Callable[[], None]] = []
        self._resources = ExitStack()
        self._waker = Waker(self._resources)
        self._poller = zmq.Poller()
        self._poller.register(self._waker, zmq.POLLIN)
        self._thread = LoudThread(self._run, "relay")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Forward nothing more, and close; may be called again."""
        self._stopping = True
        self._waker.wake()
        self._thread.join()
        self._resources.close()

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        self._thread.check()

    @property
    def idle(self) -> bool:
        """Whether every simulation that was closed has arrived, and none is open."""
        return not (self._open or self._passages or not self._commands.empty())

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float32[np.ndarray, "time channel *space"],
        parameters: Float64[np.ndarray, " parameter"],
        inputs: Float32[np.ndarray, " input *space"] | None = None,
    ) -> int:
        """Take as many leading steps as the backlog has room for."""
        if self.lost:
            return len(steps)
        passage = self._open.get(simulation)
        if passage is None:
            held_out = simulation < self._held_out
            backlog = self._urgent if held_out else self._backlog
            passage = _Passage(simulation, parameters, inputs, backlog)
            self._open[simulation] = passage
            self._do(functools.partial(self._begin, passage))
        if passage.over:
            return len(steps)
        backlog = passage.backlog
        count = min(len(steps), backlog.room // self._size)
        if count < len(steps):
            backlog.full = True
            # What was forwarded before has woken nobody.
            count = min(len(steps), backlog.room // self._size)
        if count:
            passage.queue.append((first, steps[:count]))
            passage.next = first + count
            backlog.taken += count * self._size
            self._do(functools.partial(self._forward, passage))
        return count

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Let the other inlet know, once all that was taken has arrived there."""
        passage = self._open.pop(simulation, None)
        if passage is not None and not passage.over:
            passage.early = early
            end = self._end if complete else self._abort
            self._do(functools.partial(end, passage))

    def waiting(self) -> str:
        """Return why the other inlet grants nothing, if the backlog is full."""
        if self.lost or self._backlog.room >= self._size:
            return ""
        reasons = {p.connection.reason for p in list(self._passages.values())}
        return "; ".join(sorted(filter(None, reasons))) or "waits for its inlet"

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when steps have been forwarded after it was full."""
        self._wakes.append(wake)

    def _do(self, command: Callable[[], None]) -> None:
        """Call something in the thread, after all earlier commands."""
        self._commands.put(command)
        self._waker.wake()

    def _run(self) -> None:
        try:
            self._serve()
        except StreamError as error:
            self.lost = str(error)
        except BaseException as error:
            self.lost = f"{type(error).__name__}: {error}"
            raise
        finally:
            for passage in self._passages.values():
                passage.connection.close()
            self._passages.clear()
            self._open.clear()
            for wake in self._wakes:
                wake()

    def _serve(self) -> None:
        tick = time.monotonic() + _TICK
        while not self._stopping:
            pause = max(0.0, tick - time.monotonic())
            ready = dict(self._poller.poll(int(1000 * pause) + 1))
            if self._waker.fileno() in ready:
                self._waker.clear()
                while not self._commands.empty():
                    self._commands.get()()
            for passage in [p for s, p in self._passages.items() if s in ready]:
                self._forward(passage)
            if time.monotonic() >= tick:
                tick = time.monotonic() + _TICK
                for passage in list(self._passages.values()):
                    self._forward(passage)
                    self._require_answer(passage)

    def _begin(self, passage: _Passage) -> None:
        passage.connection = Connection(self.endpoint, self._timeout)
        socket = passage.connection.socket
        self._passages[socket] = passage
        self._poller.register(socket, zmq.POLLIN)
        self._forward(passage)

    def _end(self, passage: _Passage) -> None:
        passage.ended = True
        self._forward(passage)

    def _abort(self, passage: _Passage) -> None:
        if not passage.over:
            passage.connection.abort("the simulation was given up")
            self._leave(passage)

    def _forward(self, passage: _Passage) -> None:
        """Send what there is credit for, and ask for what is missing."""
        if passage.over:
            self._discard(passage)
            return
        connection = passage.connection
        try:
            connection.receive()
        except StreamStopped:
            # It wants no more of this one, or has ended.
            self._leave(passage)
            return
        welcome = connection.welcome
        if welcome is None:
            connection.repeat(
                connection.opening(passage.simulation, 0, passage.parameters)
            )
        elif welcome.complete or connection.done:
            self._leave(passage)
        else:
            self._send(passage, welcome.next_step, welcome.coalesce // self._size)
            if passage.ended and not passage.queue:
                steps = self._spec.steps
                if passage.early:
                    steps = max(passage.next, welcome.next_step)
                early = passage.early if steps < self._spec.steps else ""
                end = End(passage.simulation, steps, early)
                connection.repeat([encode(end)])

    def _send(self, passage: _Passage, wanted: int, most: int) -> None:
        queue, size = passage.queue, self._size
        if (inputs := passage.inputs) is not None:
            if passage.connection.request(inputs.nbytes) < inputs.nbytes:
                return
            given = Inputs(passage.simulation, 0, inputs.nbytes)
            passage.connection.transmit(given, inputs.data.cast("B"))
            passage.inputs = None
        while queue:
            first, steps = queue[0]
            count = min(len(steps), max(0, wanted - first))
            if not count:
                count = min(len(steps), max(1, most))
                count = passage.connection.request(count * size) // size
                if not count:
                    break
                simulation, length = passage.simulation, count * size
                message = Steps(simulation, 0, first, count, length)
                payload = steps[:count].data.cast("B")
                passage.connection.transmit(message, payload)
            queue.popleft()
            if count < len(steps):
                queue.appendleft((first + count, steps[count:]))
            passage.backlog.forwarded += count * size
        self._wake_if_full(passage.backlog)

    def _leave(self, passage: _Passage) -> None:
        """Forward nothing more of a simulation."""
        passage.over = True
        socket = passage.connection.socket
        self._poller.unregister(socket)
        del self._passages[socket]
        passage.connection.close()
        self._discard(passage)

    def _discard(self, passage: _Passage) -> None:
        while passage.queue:
            _, steps = passage.queue.popleft()
            passage.backlog.forwarded += len(steps) * self._size
        self._wake_if_full(passage.backlog)

    def _wake_if_full(self, backlog: _Backlog) -> None:
        if backlog.full and backlog.room >= self._size:
            backlog.full = False
            for wake in self._wakes:
                wake()

    def _require_answer(self, passage: _Passage) -> None:
        connection, now = passage.connection, time.monotonic()
        if not (passage.queue or passage.ended or connection.welcome is None):
            connection.heard = now  # Nothing is asked of it.
        elif now - connection.heard > self._timeout and not passage.over:
            raise connection.timed_out()
