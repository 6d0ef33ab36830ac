"""What is received and what each outlet is told: an inlet without a socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.checks import ProtocolChecks, RecentlyClosed
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.errors import NotExpected, Refusal
from surrogate_flow.stream.session import Session
from surrogate_flow.stream.sink import Sink
from surrogate_flow.stream.stats import (
    Counts,
    RefusalLog,
    SimulationProgress,
    StreamStats,
)

__all__ = ["Reception"]


class Reception:
    """The state of one study's reception: every step enters the sink exactly once.

    The identity of a step is (simulation, step). For each live simulation the next step
    is known: earlier ones are duplicates and dropped, later ones are a gap and refused.
    A newer connection of a simulation supersedes the older one and begins at the next
    step; what the older one sent stays, in its place.

    Parameters
    ----------
    spec : FieldSpec
    study : str
    sink : Sink
        Its wake-up must lead to a call of `retry`.
    pool : CreditPool
    coalesce : int
        Largest message of several steps, in bytes.
    reply : callable
        Sends one message to one connection; must neither block nor raise.

    Notes
    -----
    Not locked: only the inlet's thread may call it, except for `is_whole`, `counters`
    and `progress`, which any thread may call.
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
        self.pool = pool
        self._sink = sink
        self._checks = ProtocolChecks(spec, study)
        self._shape = spec.step_shape
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
        self._counts = Counts()
        self._refusals = RefusalLog()

    def handle(self, identity: bytes, frames: Sequence[memoryview]) -> None:
        """Act on one message, whatever it contains."""
        try:
            message, payload = msg.decode(frames)
            if isinstance(message, msg.Steps):
                self._receive(identity, message, payload)
            elif isinstance(message, msg.Open):
                self._open(identity, message, payload)
            elif isinstance(message, msg.Ask):
                self._ask(identity, message)
            elif isinstance(message, msg.End):
                self._end(identity, message)
            elif isinstance(message, msg.Abort):
                self.disconnect(identity)
                # All that it sent before was handled.
                self._reply(identity, msg.Stop("aborted"))
            else:
                raise Refusal("kind", f"only an inlet may send {message!r:.40}")
        except Refusal as refusal:
            self.disconnect(identity)
            if self._refusals.add(identity, refusal):
                self._reply(identity, msg.Refused(str(refusal)))

    def retry(self) -> None:
        """Offer again what the sink has not taken."""
        for number, session in list(self._undelivered.items()):
            before = session.pending[0]
            self._deliver(session)
            if not session.pending and number in self._given_up:
                self._abandon(number)
            elif session.ended and not session.pending:
                self._finish(session)
            elif session.pending and session.pending[0] is not before:
                # A session that was served goes to the end of the queue.
                self._undelivered[number] = self._undelivered.pop(number)
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

    def disconnect(self, identity: bytes) -> None:
        """Close a connection; the simulation may open another one."""
        self._end_wait(identity)
        session = self._connections.pop(identity, None)
        if session is not None:
            session.identity = None
            session.ended = False
            self._closed.add(identity)
            self._grant(self.pool.close(identity))

    def lose(self, identity: bytes) -> None:
        """Close a connection that cannot be told so; what still arrives is refused."""
        self.disconnect(identity)
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
            self._stop(session.identity, f"simulation {simulation} given up")
        if session is None or not session.pending:
            self._abandon(simulation)

    def _abandon(self, simulation: int) -> None:
        self._live.pop(simulation, None)
        # Even one that never opened: a checkpoint may have restored steps of it.
        self._sink.close(simulation, complete=False)

    def stop(self, reason: str) -> None:
        """Tell every outlet, now and at its opening, that the study ends."""
        self._stopped = reason
        self._refusals.report(at_once=True)
        for identity in list(self._connections):
            self._reply(identity, msg.Stop(reason))

    def is_whole(self, simulation: int) -> bool:
        """Whether the sink has every step of a simulation."""
        return simulation in self._finished

    def counters(self) -> StreamStats:
        """Return what was received so far."""
        counts, waiting = self._counts, list(self._waiting.values())
        refused = self._refusals.counts()
        return StreamStats(
            bytes=counts.steps * self.spec.step_bytes,
            steps=counts.steps,
            messages=counts.messages,
            duplicates=counts.duplicates,
            longest=counts.longest,
            worked=counts.worked,
            refusals=sum(refused.values()),
            refused=refused,
            connections=len(self._connections),
            simulations=len(self._live),
            finished=len(self._finished),
            pending=self.pool.pending,
            outstanding=self.pool.outstanding,
            waiting=len(waiting),
            waiting_since=min(waiting, default=None),
        )

    def progress(self) -> list[SimulationProgress]:
        """Return the progress of every live simulation."""
        live = list(self._live.values())
        return [s.progress(waiting=s.identity in self._waiting) for s in live]

    def _open(self, identity: bytes, message: msg.Open, payload: memoryview) -> None:
        simulation = message.simulation
        parameters = self._checks.check_opening(message, payload)
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
            raise Refusal("simulation", "this connection serves another simulation")
        if session is None:
            try:
                first = self._sink.open(simulation)
            except NotExpected:
                reason = f"simulation {simulation} has not begun"
                raise Refusal("simulation", reason) from None
            session = Session(simulation, parameters, first)
        else:
            self._checks.check_retry(session, parameters)
            if message.attempt < session.attempt:
                reason = f"attempt {session.attempt} is under way"
                self._reply(identity, msg.Stop(reason))
                return
        if session.identity is not None and session.identity != identity:
            self._stop(session.identity, f"superseded by attempt {message.attempt}")
        if session.identity is None:
            session.connect(identity, message.attempt)
            self._live[simulation] = self._connections[identity] = session
            self._closed.discard(identity)
            credit = self.pool.open(identity)
        else:
            credit = self.pool.granted(identity)
        self._reply(identity, msg.Welcome(session.next, False, self._coalesce, credit))

    def _stop(self, identity: bytes, reason: str) -> None:
        self._reply(identity, msg.Stop(reason))
        self.disconnect(identity)

    def _receive(
        self, identity: bytes, message: msg.Steps, payload: memoryview
    ) -> None:
        session = self._connections.get(identity)
        if session is None:
            self._closed.check_late(identity)
            return
        self._checks.check_steps(session, message)
        self.pool.spend(identity, message.length)
        self._end_wait(identity)
        old = session.add(identity, message.first, payload, message.count)
        self._counts.receive(message.count - old, old)
        if old == message.count:
            self._consume(identity, message.length)
        elif len(session.pending) == 1:
            self._deliver(session)

    def _deliver(self, session: Session) -> None:
        """Offer what is pending, and return the credit of what was taken."""
        for identity, length in session.deliver(self._sink, self._shape):
            self._consume(identity, length)
        if session.pending:
            self._undelivered[session.simulation] = session
        else:
            self._undelivered.pop(session.simulation, None)

    def _consume(self, identity: bytes, length: int) -> None:
        self._grant(self.pool.consume(identity, length))

    def _ask(self, identity: bytes, message: msg.Ask) -> None:
        if identity not in self._connections:
            self._closed.check_late(identity)
            return
        received = self.pool.received(identity)
        self._checks.check_ask(message, received, self.pool.largest)
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
        self._checks.check_end(session, message)
        session.ended = True
        if session.pending:
            self._waiting.setdefault(identity, time.monotonic())
        else:
            self._finish(session)

    def _finish(self, session: Session) -> None:
        identity = session.identity
        assert identity is not None
        self._finished.add(session.simulation)
        self._end_wait(identity)
        self._counts.finish(time.monotonic() - session.opened - session.waited)
        del self._live[session.simulation]
        self._sink.close(session.simulation, complete=True)
        self.disconnect(identity)
        self._reply(identity, msg.Done(self.spec.steps))

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
