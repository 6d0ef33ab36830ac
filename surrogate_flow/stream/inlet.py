"""Receives the steps of all simulations in the trainer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import zmq

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.endpoint import (
    Endpoint,
    Timing,
    allow_many_files,
    listen,
    require_files,
    require_one_interface,
)
from surrogate_flow.stream.protocol import HEADER_BYTES, Message, encode
from surrogate_flow.stream.reception import Reception
from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.stats import SimulationProgress, StreamStats
from surrogate_flow.threads import LoudThread, Waker

__all__ = ["Inlet"]

BUDGET = 64 << 20
BATCH = 64
FRAMES = 2


class Inlet:
    """Receives the steps of a study and hands each to the sink, exactly once.

    Parameters
    ----------
    spec : FieldSpec
        What every outlet must announce.
    sink : Sink
        Where the steps go. Simulations that it does not expect are refused.
    study : str, optional
        Distinguishes this run from others; random by default.
    host : str, optional
        Address of an interface: listen there on a free TCP port, encrypted, and accept
        only outlets with the study's key. By default on a unix socket in a folder that
        only this user may enter.
    budget : int, optional
        Bytes that may be granted or pending at any moment, over all connections; 64 MB
        by default, or eight of the largest messages if these are more. A larger budget
        takes memory when many outlets send at once, and is not faster.
    coalesce_bytes : int
        Largest message of several steps.
    timing : Timing

    Raises
    ------
    ArgumentError
        If the budget is less than two of the largest messages, or `host` means all.
    StreamError
        On entering, and from `check`, if this process may open too few files.

    Notes
    -----
    One thread owns the socket and calls the sink; it never waits for it. All methods
    may be called from any thread and only `stop` blocks, for at most some seconds. An
    exception in the thread, or in the sink, ends the reception: every outlet is
    stopped, and `check` raises it.

    An outlet whose process dies keeps at most one window of credit, until its
    simulation opens again or is given up.
    """

    def __init__(
        self,
        spec: FieldSpec,
        sink: Sink,
        *,
        study: str | None = None,
        host: str | None = None,
        budget: int | None = None,
        coalesce_bytes: int = 1 << 20,
        timing: Timing | None = None,
    ) -> None:
        require_one_interface(host)
        self.spec = spec
        self.study = study or secrets.token_hex(8)
        self.host = host
        self.timing = timing or Timing()
        self._largest = max(spec.step_bytes, spec.input_bytes, coalesce_bytes)
        budget = budget or max(BUDGET, 8 * self._largest)
        self._sink = sink
        self._reception = Reception(
            spec,
            self.study,
            sink,
            pool=CreditPool(budget, self._largest),
            coalesce=coalesce_bytes,
            reply=self._reply,
        )
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._unreachable: list[bytes] = []
        self._stopping: str | None = None
        self._endpoint: Endpoint | None = None
        self._resources = ExitStack()
        self._thread: LoudThread | None = None
        self._room = False
        self._waker: Waker | None = None

    @property
    def endpoint(self) -> Endpoint:
        """What outlets must know, while the context is entered."""
        if self._endpoint is None:
            raise RuntimeError("The inlet is not open: enter its context first.")
        return self._endpoint

    def __enter__(self) -> Self:
        try:
            self._bind()
        except BaseException:
            self._resources.close()
            raise
        self._sink.on_room(self._retry_soon)
        self._thread = LoudThread(self._run, "inlet")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop("the study has ended")
        if error is None:
            self.check()

    def stop(self, reason: str) -> None:
        """Stop all outlets, with the reason, and close; may be called again."""
        if self._stopping is None:
            self._stopping = reason
            self._wake()
        if self._thread is not None:
            self._thread.join()
        self._resources.close()

    def stop_outlets(self, reason: str) -> None:
        """Stop all outlets, with the reason, and those that still open."""
        self._call(lambda: self._reception.stop(reason))

    def check(self) -> None:
        """Raise what ended the reception, if anything did."""
        if self._thread is not None:
            self._thread.check()

    def give_up(self, simulation: int) -> None:
        """Accept no more steps of a simulation that has failed permanently.

        The sink closes it when it has taken those that were received.
        """
        self._call(lambda: self._reception.give_up(simulation))

    def probe(self, simulation: int) -> None:
        """Find out whether a simulation is still connected; see `progress` then."""
        self._call(lambda: self._reception.probe(simulation))

    def stats(self) -> StreamStats:
        """Return what was received so far."""
        return self._reception.stats()

    def progress(self) -> list[SimulationProgress]:
        """Return the progress of every live simulation."""
        return self._reception.progress()

    def _call(self, command: Callable[[], None]) -> None:
        """Call something in the inlet's thread, after all earlier commands."""
        self._commands.put(command)
        self._wake()

    def _wake(self) -> None:
        if self._waker is not None:
            self._waker.wake()

    def _bind(self) -> None:
        self._waker = Waker(self._resources)
        parameters = 8 * len(self.spec.parameters)
        largest = max(self._largest, parameters, HEADER_BYTES)
        allow_many_files()
        require_files()
        self._socket, address, keys = listen(
            self._resources, self.host, largest, self.timing
        )
        self._endpoint = Endpoint(address, self.study, self.spec.digest(), keys)

    def _run(self) -> None:
        reason = "the inlet has failed"
        try:
            self._receive()
            reason = self._stopping or reason
        except BaseException as error:
            reason = f"{reason}: {error!r}"
            raise
        finally:
            self._reception.stop(reason)
            self._socket.close()

    def _receive(self) -> None:
        waker, poller = self._waker, zmq.Poller()
        assert waker is not None
        poller.register(self._socket, zmq.POLLIN)
        poller.register(waker, zmq.POLLIN)
        tick = time.monotonic() + self.timing.tick
        while self._stopping is None:
            wait = max(0.0, tick - time.monotonic())
            events = dict(poller.poll(int(wait * 1000) + 1))
            if waker.fileno() in events:
                waker.clear()
                self._run_commands()
            if self._socket in events:
                self._receive_batch()
            for identity in self._unreachable:
                self._reception.disconnect(identity, lost=True)
            self._unreachable.clear()
            if time.monotonic() >= tick:
                self._reception.tick()
                require_files()
                tick = time.monotonic() + self.timing.tick

    def _receive_batch(self) -> None:
        for _ in range(BATCH):
            try:
                identity = part = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames: list[memoryview] = []
            while part.more:
                part = self._socket.recv(copy=False)
                # One more than any message has: enough to refuse it.
                if len(frames) < FRAMES + 1:
                    frames.append(memoryview(part.buffer))
            self._reception.handle(identity.bytes, frames)

    def _run_commands(self) -> None:
        while not self._commands.empty():
            self._commands.get()()
        if self._room:
            # Before the offers: room that appears during them must wake again.
            self._room = False
            self._reception.retry()

    def _reply(self, identity: bytes, message: Message) -> None:
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            # Disconnected, or it does not read: either way it must open again.
            self._unreachable.append(identity)

    def _retry_soon(self) -> None:
        if not self._room:
            self._room = True
            self._wake()
