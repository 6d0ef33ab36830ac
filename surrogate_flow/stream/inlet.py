"""The way into the trainer: steps of all simulations arrive here."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import zmq

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream.bell import Bell
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.files import allow_many_files, require_files
from surrogate_flow.stream.keys import Endpoint, require_one_interface
from surrogate_flow.stream.protocol import HEADER_BYTES, Message, encode
from surrogate_flow.stream.reception import Reception
from surrogate_flow.stream.router import open_router
from surrogate_flow.stream.sink import SimulationProgress, Sink, StreamStats

__all__ = ["Inlet"]

logger = logging.getLogger(__name__)

BUDGET = 64 << 20
BATCH = 64
FRAMES = 2
TICK_SECONDS = 1.0


class Inlet:
    """Receives the steps of a study and hands each to the sink, exactly once.

    Parameters
    ----------
    spec : FieldSpec
        What every outlet must announce.
    sink : Sink
        Where the steps go. Simulations that it does not expect are refused.
    study : str, optional
        Tells this run from others; random by default.
    host : str, optional
        Address of an interface: listen there on a free TCP port, encrypted, and let in
        only who has the study's key. By default on a unix socket in a folder that only
        this user may enter.
    budget : int, optional
        Bytes that may be granted or pending at any moment, over all connections; 64 MB
        by default, or eight of the largest messages where these are more. Larger ones
        take memory when many outlets stream at once, and are not faster.
    coalesce_bytes : int
        Largest message of several steps.

    Raises
    ------
    ValueError
        If the budget is less than two of the largest messages, or `host` means all.
    RuntimeError
        On entering, and from `check`, if this process may open few files more.

    Notes
    -----
    One thread owns the socket and calls the sink; it never waits for it. All methods
    may be called from any thread and only `stop` blocks, for at most some seconds. An
    exception in the thread, or in the sink, ends the reception: every outlet is
    stopped, and `check` raises it.

    Outlets that die without a word leave at most one window of credit behind, which
    returns when the simulation opens again or is given up.
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
    ) -> None:
        require_one_interface(host)
        self.spec = spec
        self.study = study or secrets.token_hex(8)
        self.host = host
        self._largest = max(spec.step_bytes, coalesce_bytes)
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
        self._error: BaseException | None = None
        self._endpoint: Endpoint | None = None
        self._resources = ExitStack()
        self._thread: threading.Thread | None = None
        self._woken = False
        self._bell = Bell()

    @property
    def endpoint(self) -> Endpoint:
        """What outlets must know; there is one once the context was entered."""
        if self._endpoint is None:
            raise RuntimeError("The inlet is not open: enter its context first.")
        return self._endpoint

    def __enter__(self) -> Self:
        try:
            self._bind()
        except BaseException:
            self._resources.close()
            raise
        self._sink.on_room(self._wake)
        self._thread = threading.Thread(target=self._run, name="inlet", daemon=True)
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
        """Tell all outlets why they shall stop, and close; may be called again."""
        if self._stopping is None:
            self._stopping = reason
            self._bell.ring()
        if self._thread is not None:
            self._thread.join()
        self._resources.close()

    def dismiss(self, reason: str) -> None:
        """Tell all outlets why they shall stop, those still to come too; stay open."""
        self.call(lambda: self._reception.stop(reason))

    def check(self) -> None:
        """Raise what ended the reception, if anything did."""
        if self._error is not None:
            raise self._error

    def call(self, callback: Callable[[], None]) -> None:
        """Have the inlet's thread call something, after all it was asked before."""
        self._commands.put(callback)
        self._bell.ring()

    def is_whole(self, simulation: int) -> bool:
        """Whether every step of a simulation has entered the sink."""
        return self._reception.is_whole(simulation)

    def received(self, simulation: int) -> int:
        """Return how many steps of a simulation under way have come, or wait.

        For the thread that calls the sink.
        """
        return self._reception.received(simulation)

    def give_up(self, simulation: int) -> None:
        """Take no more of a simulation that failed for good."""
        self.call(lambda: self._reception.give_up(simulation))

    def knock(self, simulation: int) -> None:
        """Find out whether a simulation is still connected; `progress` tells soon."""
        self.call(lambda: self._reception.knock(simulation))

    def counters(self) -> StreamStats:
        """Return what was received so far."""
        return self._reception.counters()

    def progress(self) -> list[SimulationProgress]:
        """Return how far every live simulation is, and when its last step came."""
        return self._reception.progress()

    def _bind(self) -> None:
        self._bell.open(self._resources)
        parameters = 8 * len(self.spec.parameters)
        largest = max(self._largest, parameters, HEADER_BYTES)
        allow_many_files()
        require_files()
        self._socket, address, keys = open_router(self._resources, self.host, largest)
        self._endpoint = Endpoint(address, self.study, self.spec.digest(), keys)

    def _run(self) -> None:
        reason = "the inlet has failed"
        try:
            self._receive()
            reason = self._stopping or reason
        except BaseException as error:
            self._error = error
            reason = f"{reason}: {error!r}"
            logger.exception("The inlet has failed")
        finally:
            self._reception.stop(reason)
            self._socket.close()

    def _receive(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        tick = time.monotonic() + TICK_SECONDS
        while self._stopping is None:
            wait = max(0.0, tick - time.monotonic())
            events = dict(poller.poll(int(wait * 1000) + 1))
            if self._bell.fileno() in events:
                self._bell.hush()
                self._obey()
            if self._socket in events:
                self._receive_batch()
            for identity in self._unreachable:
                self._reception.lose(identity)
            self._unreachable.clear()
            if time.monotonic() >= tick:
                self._reception.tick()
                require_files()
                tick = time.monotonic() + TICK_SECONDS

    def _receive_batch(self) -> None:
        for _ in range(BATCH):
            try:
                identity = part = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames: list[memoryview] = []
            while part.more:
                part = self._socket.recv(copy=False)
                # One more than any message has shows that there are too many.
                if len(frames) < FRAMES + 1:
                    frames.append(memoryview(part.buffer))
            self._reception.handle(identity.bytes, frames)

    def _obey(self) -> None:
        while not self._commands.empty():
            self._commands.get()()
        if self._woken:
            # Before the offers: room that appears during them rings again.
            self._woken = False
            self._reception.retry()

    def _reply(self, identity: bytes, message: Message) -> None:
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            # Gone, or it does not read: either way it must open again.
            self._unreachable.append(identity)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._bell.ring()
