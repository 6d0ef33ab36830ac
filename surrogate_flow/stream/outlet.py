"""Sends the steps of a simulation to the study's inlet."""

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
from surrogate_flow.stream.buffers import BorrowedBuffer, GatherBuffer
from surrogate_flow.stream.connection import Connection
from surrogate_flow.stream.endpoint import Endpoint
from surrogate_flow.stream.errors import StreamError, StreamTimeout
from surrogate_flow.stream.protocol import Inputs, Steps
from surrogate_flow.threads import LoudThread

__all__ = ["Outlet"]

FLOAT32 = np.dtype(np.float32)


class _Flusher:
    """Calls functions periodically, from one thread for all outlets of a process.

    Hundreds of threads, one for each outlet, would wake each other, which takes longer
    than what they send. The thread lives while there is a function to call, and calls
    all of them with the shortest of their periods. A function must neither wait nor
    raise.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._periods: dict[Callable[[], None], float] = {}
        self._thread: LoudThread | None = None

    def add(self, function: Callable[[], None], seconds: float) -> None:
        """Call `function` from now on, at least every so many `seconds`."""
        with self._changed:
            shorter = seconds < min(self._periods.values(), default=0.0)
            self._periods[function] = seconds
            if self._thread is None:
                self._thread = LoudThread(self._run, "flusher")
                self._thread.start()
            elif shorter:
                self._changed.notify()

    def remove(self, function: Callable[[], None]) -> None:
        """Call it no more; a last call may be in progress."""
        with self._changed:
            if self._periods.pop(function, None) is None or self._periods:
                return
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if (thread := self._thread) is not None:
            thread.check()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._changed.wait(min(self._periods.values()))
                # Without a function, or with another thread for those added since.
                if self._thread is not threading.current_thread():
                    return
                functions = list(self._periods)
            for function in functions:
                function()


_FLUSHER = _Flusher()


class Outlet:
    """One attempt at one simulation: a context manager that sends its steps.

    Entering the context announces the attempt. Leaving it waits until the sink has
    every step, or, after an exception of the solver's, sends the steps that are left.

    Parameters
    ----------
    endpoint : Endpoint
    spec : FieldSpec
    simulation, attempt : int
    parameters : array of float
        In the order of the spec.
    coalesce_bytes : int
        Steps are gathered into messages of at most this size; the inlet may ask for
        less. Larger steps are sent one by one.
    coalesce_seconds : float
        No step waits longer than this for others.
    timeout : float
        Seconds without any message from the inlet after which a wait is given up. A
        living inlet sends one every second to those that wait.

    Raises
    ------
    StreamRefused
        If the inlet does not know the study, or expects another spec.
    StreamStopped
        If the study ends; also from `send`, `offer` and on leaving.
    StreamTimeout
        If the inlet sends nothing; also from `send` and on leaving.
    SpecMismatch
        On leaving, if steps are missing: after `end` all of them.

    Notes
    -----
    `send` blocks while the inlet grants no credit, `offer` never does. Both are for one
    thread; a second one, shared by all outlets of a process, sends steps in time.
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
        self._connection: Connection
        self._finished = False
        self._early = ""
        self._error: BaseException | None = None
        self._leaving = False
        self._lock = threading.Lock()
        # The last buffer holds the steps start, ..., position - 1. Those before first
        # were sent; the others are when position reaches limit.
        self._buffers: deque[GatherBuffer | BorrowedBuffer] = deque()
        self._write: Callable[[Any], int]
        self._start = self._first = self._position = self._limit = 0
        self._capacity = 1
        # `first` when the flusher last called.
        self._seen = -1
        # The shape for which `send` takes its fast path; None switches that off.
        self._fast_shape: tuple[int, ...] | None = None

    @property
    def complete(self) -> bool:
        """Whether the inlet wants no step of this simulation any more."""
        return self.next_step >= self.spec.steps

    def __enter__(self) -> Self:
        self._connection = Connection(self.endpoint, self.timeout)
        try:
            welcome = self._connection.open(
                self.simulation, self.attempt, self._parameters
            )
        except BaseException:
            self._connection.close()
            raise
        self._finished = welcome.complete
        self.next_step = self._start = self._first = welcome.next_step
        size = min(self._coalesce_bytes, welcome.coalesce) // self._step_bytes
        self._capacity = max(1, size)
        if self.complete:
            return self
        self._next_buffer(self.timeout)
        if self._capacity > 1:
            _FLUSHER.add(self._flush_in_time, self._coalesce_seconds / 2)
        if self.next_step == 0:
            self._fast_shape = (1, *self._step_shape)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with self._lock:
                self._leaving = True
                if error is not None:
                    self._fail(error)
                elif not self._finished:
                    self._finish()
        finally:
            _FLUSHER.remove(self._flush_in_time)
            self._connection.close()

    def skip(self) -> None:
        """Go on at `next_step`: the solver leaves out what has arrived before."""
        with self._lock:
            self._position = self.next_step
            self._fast_shape = (1, *self._step_shape)

    def check(self) -> None:
        """Raise `StreamStopped` if the study has ended; never blocks."""
        with self._lock:
            self._raise_error()
            self._connection.receive()

    def alive(self) -> None:
        """Send a sign of life, at most every half second, where no step is ready."""
        with self._lock:
            self._raise_error()
            self._connection.keep_alive()

    def give(self, inputs: Float32[np.ndarray, " input *space"]) -> None:
        """Send the input fields, once before any step; blocks as `send`."""
        with self._lock:
            self._raise_error()
            payload = np.array(inputs, dtype=np.float32)
            message = Inputs(self.simulation, self.attempt, payload.nbytes)
            self._connection.acquire(payload.nbytes)
            self._connection.transmit(message, payload.data.cast("B"))

    def send(self, steps: Float32[np.ndarray, "time channel *space"]) -> None:
        """Send the next steps; the array must not be written to any more.

        Steps of more than half a message are sent from the array itself, smaller ones
        are copied.

        Raises
        ------
        SpecMismatch
            If they are more than the spec has, of another shape or not float32.
        """
        if steps.shape == self._fast_shape and steps.dtype is FLOAT32:
            # No lock and few look-ups: they would double the cost of a tiny step.
            try:
                self._write(steps)
            except ValueError:
                # Only contiguous memory can be written.
                self._write(np.ascontiguousarray(steps))
            self._position = position = self._position + 1
            if position == self._limit:
                with self._lock:
                    self._send_buffer()
        else:
            with self._lock:
                self._send(steps)

    def offer(self, steps: Float32[np.ndarray, "time channel *space"]) -> int:
        """Take leading steps and return how many; as `send`, but never blocks.

        Steps that the inlet already has count as taken. What is taken is sent as soon
        as there is credit: by the next call, or within `coalesce_seconds`.
        """
        with self._lock:
            self._fast_shape = None
            if self._capacity == 1:
                _FLUSHER.add(self._flush_in_time, self._coalesce_seconds / 2)
            self._connection.receive()
            left = self._check(steps)
            while len(left) and (self._position < self._limit or self._try_send()):
                left = self._fill(left)
            if self._first < self._position == self._limit:
                self._try_send()
            return len(steps) - len(left)

    def end(self, reason: str) -> None:
        """Note that no more steps follow, if there should be more, and why.

        On leaving the simulation has ended, with the steps that were sent, or that the
        inlet has of an earlier attempt if these are more.
        """
        self._early = reason or "no reason given"

    def _send(self, steps: np.ndarray) -> None:
        """Send on the general path: several steps, or some to be skipped."""
        steps = self._check(steps)
        while len(steps):
            if self._position == self._limit:
                # After an `offer` that found no credit.
                self._send_buffer()
            steps = self._fill(steps)
            if self._position == self._limit:
                self._send_buffer()
        if self.next_step <= self._position < self.spec.steps:
            self._fast_shape = (1, *self._step_shape)

    def _check(self, steps: np.ndarray) -> np.ndarray:
        """Check the next steps; return those that the inlet wants, contiguous."""
        self._raise_error()
        if steps.shape[1:] != self._step_shape or steps.dtype != FLOAT32:
            raise SpecMismatch(
                f"Simulation {self.simulation}, step {self._position}",
                f"float32 steps of the shape {('time', *self._step_shape)}",
                f"{steps.dtype} of {steps.shape}",
                "Send what Encoder.convert returns.",
            )
        if self._position + len(steps) > self.spec.steps:
            raise SpecMismatch(
                f"Simulation {self.simulation}, step {self._position}",
                f"{self.spec.steps} steps in all",
                self._position + len(steps),
                "Usual cause: the solver also yields its initial state. Leave it out, "
                "or add its time to the spec.",
            )
        skip = min(len(steps), max(0, self.next_step - self._position))
        self._position += skip
        if skip:
            # The inlet must not take a long recomputation for a hang.
            self._connection.keep_alive()
        return np.ascontiguousarray(steps[skip:], FLOAT32)

    def _fill(self, steps: np.ndarray) -> np.ndarray:
        """Write leading steps into the buffer; return the others."""
        count = min(len(steps), self._limit - self._position)
        self._write(steps[:count])
        self._position += count
        return steps[count:]

    def _send_buffer(self) -> None:
        """Send what is left in the buffer and go on with the other one."""
        self._raise_error()
        self._flush(self._position)
        if self._position < self.spec.steps:
            self._next_buffer(self.timeout)
        else:
            self._fast_shape = None

    def _try_send(self) -> bool:
        """Send a full buffer and go on with the other one, if that need not wait."""
        self._flush_allowed(self._position - self._first)
        if self._first < self._position or self._position == self.spec.steps:
            return False
        try:
            self._next_buffer(0.0)
        except StreamTimeout:
            return False
        return True

    def _next_buffer(self, timeout: float) -> None:
        """Go on with the other buffer: one is sent while the solver fills the next."""
        start = max(self._first, self._position)
        size = min(self._capacity, self.spec.steps - start)
        if len(self._buffers) < 2:
            gather = self._capacity > 1
            self._buffers.append(
                GatherBuffer(size * self._step_bytes) if gather else BorrowedBuffer()
            )
        else:
            try:
                self._buffers[0].rewind(timeout)
            except zmq.NotDone:
                raise StreamTimeout(
                    f"The steps of simulation {self.simulation} before {self._start} "
                    f"were not sent within {timeout:g} s. Usual cause: the network, or "
                    "a trainer that hangs."
                ) from None
            self._buffers.rotate()
        self._start, self._limit = start, start + size
        self._write = self._buffers[-1].write

    def _flush(self, position: int) -> None:
        """Send the steps before `position` that were not sent, once there is credit."""
        count = position - self._first
        if count:
            first, size = self._first, self._step_bytes
            self._connection.acquire(count * size)
            begin, end = (first - self._start) * size, (position - self._start) * size
            buffer = self._buffers[-1]
            message = Steps(self.simulation, self.attempt, first, count, count * size)
            buffer.track(self._connection.transmit(message, buffer.part(begin, end)))
            self._first = position

    def _flush_allowed(self, count: int) -> None:
        """Send as many of the next `count` steps as there is credit for."""
        allowed = self._connection.request(count * self._step_bytes)
        self._flush(self._first + allowed // self._step_bytes)

    def _flush_in_time(self) -> None:
        """Send what has waited; a step waits between a half and the full limit."""
        if not self._lock.acquire(blocking=False):
            # The solver is about to send, or waits for credit itself.
            return
        try:
            if self._leaving or self._error is not None:
                return
            self._connection.receive()
            if self._first == self._seen < self.spec.steps:
                # The fast path writes before it counts; all steps below are complete.
                written = self._buffers[-1].written // self._step_bytes
                self._flush_allowed(self._start + written - self._first)
            self._seen = self._first
        except BaseException as error:
            self._error = error
            self._fast_shape = None  # the next `send` raises it
        finally:
            self._lock.release()

    def _fail(self, error: BaseException) -> None:
        """Send the complete steps, which the next attempt may skip, and the reason."""
        ours = isinstance(error, StreamError) or self._error is not None
        if isinstance(error, Exception) and not ours:
            # Should this fail, the solver's own error is the one to report.
            with contextlib.suppress(StreamError, zmq.ZMQError):
                self._flush(max(self._first, self._position))
                # Dask reports the failure on another way, and must not be faster.
                self._connection.abort_and_wait(repr(error))
                return
        self._connection.abort(repr(error))

    def _raise_error(self) -> None:
        _FLUSHER.check()
        if self._error is not None:
            raise self._error

    def _finish(self) -> None:
        self._raise_error()
        # A solver that begins where an earlier attempt has ended may yield nothing.
        steps, most = max(self._position, self.next_step), self.spec.steps
        early = self._early if steps < most else ""
        if steps < most and not (early and steps):
            got = f"{self._position} of {most} steps"
            error = SpecMismatch(
                f"Simulation {self.simulation} yielded "
                f"{got if self._position else 'nothing at all'}. Usual cause: a time "
                "loop that ends early. Yield every step, shorten spec.times, or raise "
                "Ended('why') behind the last step where that is regular."
                if not early
                else f"Simulation {self.simulation} ended before its first step "
                f"({early}): expected one at least. Narrow the parameters, or yield "
                "a step before raise Ended."
            )
            self._fail(error)
            raise error
        self._flush(max(self._first, self._position))
        self._connection.end(self.simulation, steps, early)
