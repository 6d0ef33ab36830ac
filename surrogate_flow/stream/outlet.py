"""The way out of a simulation: steps go to the study's inlet."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import zmq
from jaxtyping import Float, Float32

from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream.buffer import Buffer
from surrogate_flow.stream.errors import StreamError, StreamTimeout
from surrogate_flow.stream.flusher import Flusher
from surrogate_flow.stream.keys import Endpoint
from surrogate_flow.stream.line import Line
from surrogate_flow.stream.loan import Loan
from surrogate_flow.stream.protocol import Steps

__all__ = ["Outlet"]

_FLOAT32 = np.dtype(np.float32)
_FLUSHER = Flusher()


class Outlet:
    """One attempt at one simulation, as its inlet sees it.

    Entering the context introduces the attempt. Leaving it waits until every step is in
    the sink; leaving it with an exception of the solver's sends what is whole.

    Parameters
    ----------
    endpoint : Endpoint
    spec : FieldSpec
    simulation, attempt : int
    parameters : array of float
        In the order of the spec.
    coalesce_bytes : int
        Steps are gathered into messages of at most this size; the inlet may ask for
        less. Larger steps go one by one.
    coalesce_seconds : float
        No step waits longer than this for others.
    timeout : float
        Seconds without any word from the inlet after which a wait is given up. While it
        is alive, however long it lets this outlet wait, it says so every second.

    Raises
    ------
    StreamRefused
        If the inlet does not know the study, or expects another spec.
    StreamStopped
        If the study ends; also from `send` and on leaving.
    StreamTimeout
        If the inlet falls silent; also from `send` and on leaving.
    SpecMismatch
        On leaving, if steps are missing.

    Notes
    -----
    `send` blocks while the inlet grants no credit. It is meant for one thread; a second
    one, shared by all outlets of a process, sends what has waited long enough.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        spec: FieldSpec,
        simulation: int,
        attempt: int,
        parameters: Float[np.ndarray, " parameter"],
        *,
        coalesce_bytes: int = 1 << 20,
        coalesce_seconds: float = 0.2,
        timeout: float = 60.0,
    ) -> None:
        self.endpoint = endpoint
        self.spec = spec
        self.simulation = simulation
        self.attempt = attempt
        self.timeout = timeout
        #: The first step that the inlet wants; `send` skips those before it.
        self.next_step = 0
        self._step_shape = spec.step_shape
        self._step_bytes = spec.step_bytes
        self._parameters = np.asarray(parameters, dtype=np.float64)
        self._coalesce_bytes = coalesce_bytes
        self._coalesce_seconds = coalesce_seconds
        self._line: Line | None = None
        self._finished = False
        self._error: BaseException | None = None
        self._leaving = False
        self._lock = threading.Lock()
        # The steps start, ..., position - 1 lie in the buffer, those before first have
        # left, and at position = limit the rest shall.
        self._buffers: deque[Buffer | Loan] = deque()
        self._write: Callable[[Any], int]
        self._start = self._first = self._position = self._limit = 0
        self._capacity = 1
        # What had left at the last visit of the flusher.
        self._seen = -1
        # The shape that takes the short way of `send`; None closes it.
        self._short: tuple[int, ...] | None = None

    @property
    def complete(self) -> bool:
        """Whether the inlet wants no step of this simulation any more."""
        return self.next_step >= self.spec.steps

    def __enter__(self) -> Self:
        self._line = Line(self.endpoint, self.timeout)
        try:
            welcome = self._line.open(self.simulation, self.attempt, self._parameters)
        except BaseException:
            self._line.close()
            raise
        self._finished = welcome.complete
        self.next_step = self._start = self._first = welcome.next_step
        size = min(self._coalesce_bytes, welcome.coalesce) // self._step_bytes
        self._capacity = max(1, size)
        if self.complete:
            return self
        self._turn()
        if self._capacity > 1:
            _FLUSHER.add(self._flush_in_time, self._coalesce_seconds / 2)
        if self.next_step == 0:
            self._short = (1, *self._step_shape)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._line is not None
        try:
            with self._lock:
                self._leaving = True
                if error is not None:
                    self._part_with(error)
                elif not self._finished:
                    self._finish()
        finally:
            _FLUSHER.remove(self._flush_in_time)
            self._line.close()

    def send(self, steps: Float32[np.ndarray, "time channel *space"]) -> None:
        """Send the next steps; the array must not be written to any more.

        Steps of more than half a message leave from the array itself, smaller ones
        are copied.

        Raises
        ------
        SpecMismatch
            If they are more than the spec has, of another shape or not float32.
        """
        if steps.shape == self._short and steps.dtype is _FLOAT32:
            # No lock and few look-ups: they would double the cost of a tiny step.
            try:
                self._write(steps)
            except ValueError:
                # Only contiguous memory can be written.
                self._write(np.ascontiguousarray(steps))
            self._position = position = self._position + 1
            if position == self._limit:
                with self._lock:
                    self._empty()
        else:
            with self._lock:
                self._send(steps)

    def _send(self, steps: np.ndarray) -> None:
        """Send by the long way: several steps, large ones, or some to be skipped."""
        self._raise_error()
        if steps.shape[1:] != self._step_shape or steps.dtype != _FLOAT32:
            raise SpecMismatch(
                f"Simulation {self.simulation}, step {self._position}: expected "
                f"float32 steps of the shape {('time', *self._step_shape)}, got "
                f"{steps.dtype} of {steps.shape}. Usual cause: an array that did not "
                "come from Encoder.convert. Send what that returns."
            )
        if self._position + len(steps) > self.spec.steps:
            raise SpecMismatch(
                f"Simulation {self.simulation}, step {self._position}: expected "
                f"{self.spec.steps} steps in all, got {self._position + len(steps)}. "
                "Usual cause: the solver also yields its initial state. Leave it out, "
                "or add its time to the spec."
            )
        skip = min(len(steps), max(0, self.next_step - self._position))
        self._position += skip
        if skip:
            # A long way to go again must not look like silence.
            assert self._line is not None
            self._line.live()
        steps = np.ascontiguousarray(steps[skip:], _FLOAT32)
        while len(steps):
            count = min(len(steps), self._limit - self._position)
            self._write(steps[:count])
            self._position += count
            if self._position == self._limit:
                self._empty()
            steps = steps[count:]
        if self.next_step <= self._position < self.spec.steps:
            self._short = (1, *self._step_shape)

    def _empty(self) -> None:
        """Send what is left in the buffer and go on with the other one."""
        self._raise_error()
        self._flush(self._position)
        self._start = self._position
        if self._position < self.spec.steps:
            self._turn()
        else:
            self._short = None

    def _turn(self) -> None:
        """Go on with the other buffer: one leaves while the solver fills the next."""
        self._limit = min(self._start + self._capacity, self.spec.steps)
        if len(self._buffers) < 2:
            size = min(self._capacity, self.spec.steps - self._start)
            gathers = self._capacity > 1
            self._buffers.append(Buffer(size * self._step_bytes) if gathers else Loan())
        else:
            self._buffers.rotate()
            try:
                self._buffers[-1].rewind(self.timeout)
            except zmq.NotDone:
                raise StreamTimeout(
                    f"The steps before {self._start - self._capacity} of simulation "
                    f"{self.simulation} did not leave within {self.timeout:g} s. Usual "
                    "cause: the network, or a trainer that hangs."
                ) from None
        self._write = self._buffers[-1].write

    def _flush(self, position: int) -> None:
        """Send the steps before `position` that have not left."""
        count = position - self._first
        if count:
            assert self._line is not None
            first, size = self._first, self._step_bytes
            self._line.acquire(count * size)
            begin, end = (first - self._start) * size, (position - self._start) * size
            buffer = self._buffers[-1]
            message = Steps(self.simulation, self.attempt, first, count, count * size)
            buffer.leaves(self._line.transmit(message, buffer.part(begin, end)))
            self._first = position

    def _flush_in_time(self) -> None:
        """Send what has waited; a step waits between a half and the whole limit."""
        if not self._lock.acquire(blocking=False):
            # The solver is about to send, or waits for credit itself.
            return
        try:
            if self._leaving or self._error is not None:
                return
            assert self._line is not None
            self._line.listen()
            if self._first == self._seen < self.spec.steps:
                # Written before told: what lies below this is whole.
                written = self._buffers[-1].written // self._step_bytes
                count = self._start + written - self._first
                allowed = self._line.request(count * self._step_bytes)
                self._flush(self._first + allowed // self._step_bytes)
            self._seen = self._first
        except BaseException as error:
            self._error = error
            self._short = None
        finally:
            self._lock.release()

    def _part_with(self, error: BaseException) -> None:
        """Send what is whole, which another attempt need not, and say why this ends."""
        assert self._line is not None
        ours = isinstance(error, StreamError) or self._error is not None
        if isinstance(error, Exception) and not ours:
            # If that cannot be, the solver's own error says more than why.
            with contextlib.suppress(StreamError, zmq.ZMQError):
                self._flush(max(self._first, self._position))
                # The news of the failure takes another road, and must not overtake.
                self._line.part(repr(error))
                return
        self._line.abort(repr(error))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _finish(self) -> None:
        assert self._line is not None
        self._raise_error()
        steps = self._position
        if steps < self.spec.steps and not self.complete:
            got = f"{steps} of {self.spec.steps} steps" if steps else "nothing at all"
            error = SpecMismatch(
                f"Simulation {self.simulation} yielded {got}. Expected one for each "
                "time of its spec. Usual cause: a time loop that ends early. Yield "
                "every step, or shorten spec.times."
            )
            self._part_with(error)
            raise error
        self._line.end(self.simulation, self.spec.steps)
