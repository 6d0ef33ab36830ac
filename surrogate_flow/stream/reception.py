"""Which messages an inlet accepts and what it replies: an inlet without a socket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.errors import AlreadyEnded, NotExpected, ProtocolError
from surrogate_flow.stream.session import Session
from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.stats import (
    RefusalLog,
    SimulationProgress,
    StreamCounters,
    StreamStats,
)

__all__ = ["Reception"]

CLOSED = 1024
TRANSIT_SECONDS = 4.0


class Reception:
    """The state of one study's reception: every step enters the sink exactly once.

    The identity of a step is (simulation, step). For each live simulation the next step
    is known: earlier ones are duplicates and dropped, later ones are a gap and refused.
    A newer connection of a simulation supersedes the older one and begins at the next
    step; what the older one sent is kept.

    Parameters
    ----------
    spec : FieldSpec
    study : str
    sink : Sink
        When it has room again, `retry` must be called.
    pool : CreditPool
    coalesce : int
        Largest message of several steps, in bytes.
    reply : callable
        Sends one message to one connection; must neither block nor raise.

    Notes
    -----
    Not locked: only the inlet's thread may call it, except `stats` and `progress`.
    """

    def __init__(
        self,
        spec: FieldSpec,
        study: str,
        sink: Sink,
        *,
        pool: CreditPool[bytes],
        coalesce: int,
        reply: Callable[[bytes, msg.Message], None],
    ) -> None:
        self.spec = spec
        self.study = study
        self.pool = pool
        self._digest = spec.digest()
        self._sink = sink
        self._coalesce = coalesce
        self._reply = reply
        self._live: dict[int, Session] = {}
        self._connections: dict[bytes, Session] = {}
        self._closed = RecentlyClosed()
        #: Since when connections wait for credit or for the sink.
        self._waiting: dict[bytes, float] = {}
        #: Sessions of which the sink has not taken everything, the next one first.
        self._undelivered: dict[int, Session] = {}
        self._finished = IntSet()
        self._given_up = IntSet()
        self._stopped: str | None = None
        self._counts = StreamCounters()
        self._refusals = RefusalLog()

    def handle(self, identity: bytes, frames: Sequence[memoryview]) -> None:
        """Act on one message, whatever it contains."""
        try:
            message, payload = msg.decode(frames)
            if isinstance(message, msg.Steps):
                self._receive(identity, message, payload)
            elif isinstance(message, msg.Open):
                self._open(identity, message, payload)
            elif isinstance(message, msg.Inputs):
                self._take_inputs(identity, message, payload)
            elif isinstance(message, msg.Ask):
                self._ask(identity, message)
            elif isinstance(message, msg.End):
                self._end(identity, message)
            elif isinstance(message, msg.Abort):
                # All that the outlet sent before was handled.
                self._stop(identity, "aborted")
            else:
                raise ProtocolError("kind", f"only an inlet may send {message!r:.40}")
        except ProtocolError as error:
            self.disconnect(identity)
            if self._refusals.add(identity, error):
                self._reply(identity, msg.Refused(str(error)))

    def retry(self) -> None:
        """Offer again what the sink has not taken."""
        for number, session in list(self._undelivered.items()):
            before = session.pending[0].first
            self._deliver(session)
            if session.pending:
                if session.pending[0].first != before:
                    # A session that was served goes to the end of the queue.
                    self._undelivered[number] = self._undelivered.pop(number)
            elif number in self._given_up:
                self._abandon(number)
            elif session.ended:
                self._finish(session)
        # Room, or a new turn, may change priorities.
        if self.pool.asking:
            self._grant(self.pool.reconsider(self._priority_of))

    def tick(self) -> None:
        """Send a sign of life, and a reason, to all outlets that wait."""
        self._refusals.report()
        if self._waiting:
            pool, waiting = self.pool, self._sink.waiting()
            reason = f"{pool.pending} of {pool.budget} bytes wait for the sink"
            reason = f"{reason}: {waiting}" if waiting else reason
            for identity in list(self._waiting):
                self._reply(identity, msg.Wait(reason))

    def probe(self, simulation: int) -> None:
        """Send something to a simulation's outlet, so that a lost connection shows."""
        session = self._live.get(simulation)
        if session is not None and session.identity is not None:
            granted = self.pool.granted(session.identity)
            self._reply(session.identity, msg.Credit(granted))

    def disconnect(self, identity: bytes, *, lost: bool = False) -> None:
        """Close a connection; the simulation may open another one.

        If it is `lost`, no reply reaches the outlet: what still arrives is refused.
        """
        self._end_wait(identity)
        session = self._connections.pop(identity, None)
        if session is not None:
            session.identity = None
            session.ended = False
            self._closed.add(identity)
            self._grant(self.pool.close(identity))
        if lost:
            self._closed.expire(identity)

    def give_up(self, simulation: int) -> None:
        """Accept no more steps of a simulation that has failed permanently.

        The sink closes it when it has taken those that were received.
        """
        if simulation in self._finished or simulation in self._given_up:
            return
        self._given_up.add(simulation)
        session = self._live.get(simulation)
        if session is not None and session.identity is not None:
            self._stop(session.identity, f"simulation {simulation} was given up")
        if session is None or not session.pending:
            self._abandon(simulation)

    def stop(self, reason: str) -> None:
        """Stop every outlet, now and at its opening: the study ends."""
        self._stopped = reason
        self._refusals.report(at_once=True)
        for identity in list(self._connections):
            self._reply(identity, msg.Stop(reason))

    def stats(self) -> StreamStats:
        """Return what was received so far; from any thread."""
        counts, refused = self._counts, self._refusals.counts()
        return StreamStats(
            bytes=counts.steps * self.spec.step_bytes,
            steps=counts.steps,
            messages=counts.messages,
            duplicates=counts.duplicates,
            longest=counts.longest,
            worked=counts.worked,
            quickest=counts.quickest,
            refusals=sum(refused.values()),
            refused=refused,
            connections=len(self._connections),
            simulations=len(self._live),
            finished=len(self._finished),
            pending=self.pool.pending,
            outstanding=self.pool.outstanding,
            waiting=len(self._waiting),
        )

    def progress(self) -> list[SimulationProgress]:
        """Return the progress of every live simulation; from any thread."""
        live = list(self._live.values())
        return [s.progress(waiting=s.identity in self._waiting) for s in live]

    def _open(self, identity: bytes, message: msg.Open, payload: memoryview) -> None:
        simulation, attempt = message.simulation, message.attempt
        parameters = self._check_open(message, payload)
        if self._stopped is not None:
            self._reply(identity, msg.Stop(self._stopped))
            return
        if simulation in self._finished:
            self._reply(identity, msg.Welcome(self.spec.steps, True, self._coalesce, 0))
            return
        if simulation in self._given_up:
            self._reply(identity, msg.Stop(f"simulation {simulation} was given up"))
            return
        session = self._live.get(simulation)
        if self._connections.get(identity, session) is not session:
            reason = "this connection serves another simulation"
            raise ProtocolError("simulation", reason)
        if session is None:
            try:
                first = self._sink.open(simulation)
            except AlreadyEnded as error:
                self._reply(identity, msg.Stop(str(error)))
                return
            except NotExpected as error:
                reason = str(error) or f"simulation {simulation} has not begun"
                raise ProtocolError("simulation", reason) from None
            session = Session(self.spec, simulation, parameters, first)
        elif not np.array_equal(session.parameters, parameters):
            reason = f"simulation {simulation} began with {session.parameters.tolist()}"
            reason = f"{reason}, got {parameters.tolist()}: a retry must keep them"
            raise ProtocolError("parameters", reason)
        elif attempt < session.attempt:
            reason = f"attempt {session.attempt} is under way"
            self._reply(identity, msg.Stop(reason))
            return
        if session.identity == identity:
            credit = self.pool.granted(identity)
        else:
            if session.identity is not None:
                self._stop(session.identity, f"superseded by attempt {attempt}")
            session.connect(identity, attempt)
            self._live[simulation] = self._connections[identity] = session
            self._closed.discard(identity)
            credit = self.pool.open(identity)
        self._reply(identity, msg.Welcome(session.next, False, self._coalesce, credit))

    def _check_open(
        self, message: msg.Open, payload: memoryview
    ) -> Float64[np.ndarray, " parameter"]:
        """Refuse an outlet of another study or spec; return its parameters."""
        if message.study != self.study:
            got = f"expected study {self.study!r}, got {message.study[:40]!r}"
            raise ProtocolError("study", f"{got}: an outlet left over from another run")
        if message.spec != self._digest:
            raise ProtocolError(
                "spec",
                f"expected the spec {self._digest}, got {message.spec[:40]!r}: the "
                "solver on the worker differs from the trainer's. Usual cause: another "
                "version of its code, or other arguments",
            )
        if message.length != 8 * (count := len(self.spec.parameters)):
            got = f"expected {count} parameters in float64, got {message.length} bytes"
            raise ProtocolError("parameters", got)
        parameters = np.frombuffer(payload, np.float64).copy()
        if not np.isfinite(parameters).all():
            got = f"expected finite parameters, got {parameters.tolist()}"
            raise ProtocolError("parameters", got)
        return parameters

    def _take_inputs(
        self, identity: bytes, message: msg.Inputs, payload: memoryview
    ) -> None:
        session = self._connections.get(identity)
        if session is None:
            self._closed.check_late(identity)
            return
        session.take_inputs(message, payload)
        self.pool.spend(identity, message.length)
        self._end_wait(identity)
        self._grant(self.pool.consume(identity, message.length))

    def _receive(
        self, identity: bytes, message: msg.Steps, payload: memoryview
    ) -> None:
        session = self._connections.get(identity)
        if session is None:
            self._closed.check_late(identity)
            return
        session.check_steps(message)
        self.pool.spend(identity, message.length)
        self._end_wait(identity)
        old = session.add(identity, message.first, payload, message.count)
        self._counts.receive(message.count - old, old)
        if old == message.count:
            self._grant(self.pool.consume(identity, message.length))
        elif len(session.pending) == 1:
            self._deliver(session)

    def _deliver(self, session: Session) -> None:
        """Offer what is pending, and return the credit of what was taken."""
        for identity, length in session.deliver(self._sink):
            self._grant(self.pool.consume(identity, length))
        if session.pending:
            self._undelivered[session.simulation] = session
        else:
            self._undelivered.pop(session.simulation, None)

    def _ask(self, identity: bytes, message: msg.Ask) -> None:
        if identity not in self._connections:
            self._closed.check_late(identity)
            return
        if message.sent != (received := self.pool.received(identity)):
            got = f"received {received} of {message.sent} bytes"
            raise ProtocolError("lost", f"{got}: the connection was cut and restored")
        if message.need > (largest := self.pool.largest):
            got = f"expected messages of at most {largest} bytes, got {message.need}"
            raise ProtocolError("credit", got)
        self._waiting.setdefault(identity, time.monotonic())
        priority = self._priority_of(identity)
        self._grant(self.pool.ask(identity, message.need, priority))

    def _priority_of(self, identity: bytes) -> int:
        return self._sink.priority(self._connections[identity].simulation)

    def _end(self, identity: bytes, message: msg.End) -> None:
        session = self._connections.get(identity)
        if session is None:
            if message.simulation in self._finished:
                self._reply(identity, msg.Done(self.spec.steps))
            else:
                self._closed.check_late(identity)
            return
        session.check_end(message)
        session.ended, session.early = True, message.early
        if session.pending:
            self._waiting.setdefault(identity, time.monotonic())
        else:
            self._finish(session)

    def _finish(self, session: Session) -> None:
        identity = session.identity
        assert identity is not None
        self._finished.add(session.simulation)
        self._end_wait(identity)
        seconds = time.monotonic() - session.opened - session.waited
        self._counts.finish(seconds, early=bool(session.early))
        del self._live[session.simulation]
        early = (session.early,) if session.early else ()
        self._sink.close(session.simulation, True, *early)
        self.disconnect(identity)
        self._reply(identity, msg.Done(session.next))

    def _abandon(self, simulation: int) -> None:
        self._live.pop(simulation, None)
        # Even one that never opened: a checkpoint may have restored steps of it.
        self._sink.close(simulation, complete=False)

    def _stop(self, identity: bytes, reason: str) -> None:
        self.disconnect(identity)
        self._reply(identity, msg.Stop(reason))

    def _grant(self, grants: Sequence[tuple[bytes, int]]) -> None:
        for identity, granted in grants:
            session = self._connections.get(identity)
            if session is None or session.ended:
                continue
            if self._end_wait(identity):
                session.last = time.monotonic()
            self._reply(identity, msg.Credit(granted))

    def _end_wait(self, identity: bytes) -> bool:
        """Note that a connection waits no longer; return whether it did."""
        since = self._waiting.pop(identity, None)
        if since is None:
            return False
        if (session := self._connections.get(identity)) is not None:
            session.waited += time.monotonic() - since
        return True


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
        """Refuse a message without an opening, unless it was sent before the close."""
        if identity not in self._closed:
            raise ProtocolError("unopened", "expected an opening first")
        if time.monotonic() - self._closed[identity] > TRANSIT_SECONDS:
            reason = "the connection was cut and restored: another attempt must go on"
            raise ProtocolError("lost", reason)
