"""What has been received and what each outlet is told: an inlet without a socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.counts import Counts
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.delivery import Delivery
from surrogate_flow.stream.errors import NotExpected, Refusal
from surrogate_flow.stream.former import Former
from surrogate_flow.stream.refusals import Refusals
from surrogate_flow.stream.sink import SimulationProgress, Sink, StreamStats
from surrogate_flow.stream.terms import Terms
from surrogate_flow.stream.trajectory import Trajectory

__all__ = ["Reception"]


class Reception:
    """The state of one study's reception: every step enters the sink exactly once.

    The identity of a step is (simulation, step). For each live simulation the next step
    is known: earlier ones are duplicates and dropped, later ones are a gap and refused.
    A newer connection of a simulation supersedes the older one and goes on at the next
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
    Not locked: the inlet's thread calls everything but `counters` and `progress`, which
    any thread may call.
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
        self._terms = Terms(spec, study)
        self._sink = sink
        self._delivery = Delivery(sink, spec.step_shape, self._consume)
        self._coalesce = coalesce
        self._reply = reply
        self._live: dict[int, Trajectory] = {}
        self._connections: dict[bytes, Trajectory] = {}
        self._former = Former()
        self._waiting: dict[bytes, float] = {}
        self._finished = IntSet()
        self._given_up = IntSet()
        self._stopped: str | None = None
        self._counts = Counts()
        self._refusals = Refusals()

    def handle(self, identity: bytes, frames: Sequence[memoryview]) -> None:
        """Act on one message, whatever it holds."""
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
                self.leave(identity)
                # All that it sent before has been seen.
                self._reply(identity, msg.Stop("aborted"))
            else:
                raise Refusal("kind", f"{message!r:.40} is for the inlet to say")
        except Refusal as refusal:
            self._refuse(identity, refusal)

    def retry(self) -> None:
        """Offer again what the sink has not taken."""
        for trajectory in self._delivery.retry():
            if trajectory.ended:
                self._finish(trajectory)
        # Room, or whose turn it is, may make others go first.
        if self.pool.asking:
            self._grant(self.pool.reconsider(self._priority_of))

    def tick(self) -> None:
        """Tell those who wait that the inlet lives, and why they wait."""
        self._refusals.tell()
        if self._waiting:
            word = msg.Wait(self._reason())
            for identity in list(self._waiting):
                self._reply(identity, word)

    def knock(self, number: int) -> None:
        """Say something to a simulation, so that a connection that is gone shows."""
        trajectory = self._live.get(number)
        if trajectory is not None and trajectory.identity is not None:
            granted = self.pool.granted(trajectory.identity)
            self._reply(trajectory.identity, msg.Credit(granted))

    def leave(self, identity: bytes) -> None:
        """Close a connection; the simulation may come back on another one."""
        self._go_on(identity)
        trajectory = self._connections.pop(identity, None)
        if trajectory is None:
            return
        trajectory.identity = None
        trajectory.ended = False
        self._former.add(identity)
        self._grant(self.pool.close(identity))

    def lose(self, identity: bytes) -> None:
        """Close a connection that cannot be told so: it must be when it comes back."""
        self.leave(identity)
        self._former.lose(identity)

    def received(self, number: int) -> int:
        """Return how many steps of a live simulation have come; else 0."""
        trajectory = self._live.get(number)
        return 0 if trajectory is None else trajectory.next

    def give_up(self, number: int) -> None:
        """Take no more of a simulation that failed for good."""
        if number in self._finished:
            return
        self._given_up.add(number)
        trajectory = self._live.pop(number, None)
        if trajectory is not None:
            if trajectory.identity is not None:
                word = msg.Stop(f"simulation {number} given up")
                self._reply(trajectory.identity, word)
                self.leave(trajectory.identity)
            self._delivery.drop(trajectory)
        # One that never opened, too: a checkpoint may have brought steps of it.
        self._sink.close(number, complete=False)

    def stop(self, reason: str) -> None:
        """Tell every outlet, now and at its opening, that the study ends."""
        self._stopped = reason
        self._refusals.tell(at_once=True)
        for identity in list(self._connections):
            self._reply(identity, msg.Stop(reason))

    def is_whole(self, number: int) -> bool:
        """Whether a simulation has finished; from any thread."""
        return number in self._finished

    def counters(self) -> StreamStats:
        """Return what was seen so far; from any thread."""
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
        """Return how far every live simulation is; from any thread."""
        live = list(self._live.values())
        return [t.progress(waiting=t.identity in self._waiting) for t in live]

    def _open(self, identity: bytes, message: msg.Open, payload: memoryview) -> None:
        number = message.simulation
        parameters = self._terms.check_opening(message, payload)
        if self._stopped is not None:
            self._reply(identity, msg.Stop(self._stopped))
            return
        if number in self._finished:
            self._reply(identity, msg.Welcome(self.spec.steps, True, self._coalesce, 0))
            return
        if number in self._given_up:
            self._reply(identity, msg.Stop(f"simulation {number} was given up"))
            return
        trajectory = self._live.get(number)
        if self._connections.get(identity, trajectory) is not trajectory:
            raise Refusal("simulation", "this connection serves another simulation")
        if trajectory is None:
            try:
                first = self._sink.open(number)
            except NotExpected:
                reason = f"simulation {number} has not begun"
                raise Refusal("simulation", reason) from None
            trajectory = Trajectory(number, parameters, first)
        else:
            self._terms.check_retry(trajectory, parameters)
            if message.attempt < trajectory.attempt:
                word = msg.Stop(f"attempt {trajectory.attempt} is under way")
                self._reply(identity, word)
                return
        if trajectory.identity is not None and trajectory.identity != identity:
            word = msg.Stop(f"superseded by attempt {message.attempt}")
            self._reply(trajectory.identity, word)
            self.leave(trajectory.identity)
        if trajectory.identity is None:
            trajectory.identity = identity
            trajectory.attempt = message.attempt
            trajectory.opened = trajectory.last = time.monotonic()
            trajectory.waited = 0.0
            self._live[number] = self._connections[identity] = trajectory
            self._former.reopen(identity)
            credit = self.pool.open(identity)
        else:
            credit = self.pool.granted(identity)
        self._reply(
            identity, msg.Welcome(trajectory.next, False, self._coalesce, credit)
        )

    def _receive(
        self, identity: bytes, message: msg.Steps, payload: memoryview
    ) -> None:
        trajectory = self._connections.get(identity)
        if trajectory is None:
            self._former.excuse(identity)
            return
        self._terms.check_steps(trajectory, message)
        self.pool.spend(identity, message.length)
        self._go_on(identity)
        old = trajectory.add(identity, message.first, payload, message.count)
        self._counts.receive(message.count - old, old)
        if old == message.count:
            self._consume(identity, message.length)
            return
        if len(trajectory.pending) == 1:
            self._delivery.deliver(trajectory)

    def _consume(self, identity: bytes, length: int) -> None:
        self._grant(self.pool.consume(identity, length))

    def _ask(self, identity: bytes, message: msg.Ask) -> None:
        if identity not in self._connections:
            self._former.excuse(identity)
            return
        received = self.pool.received(identity)
        self._terms.check_question(message, received, self.pool.largest)
        self._waiting.setdefault(identity, time.monotonic())
        priority = self._priority_of(identity)
        self._grant(self.pool.ask(identity, message.need, priority))

    def _priority_of(self, identity: bytes) -> int:
        return self._sink.priority(self._connections[identity].number)

    def _reason(self) -> str:
        held = f"{self.pool.pending} of {self.pool.budget} bytes wait for the sink"
        waiting = self._sink.waiting()
        return f"{held}: {waiting}" if waiting else held

    def _end(self, identity: bytes, message: msg.End) -> None:
        trajectory = self._connections.get(identity)
        if trajectory is None:
            if message.simulation in self._finished:
                self._reply(identity, msg.Done(self.spec.steps))
            else:
                self._former.excuse(identity)
            return
        self._terms.check_end(trajectory, message)
        trajectory.ended = True
        if trajectory.pending:
            self._waiting.setdefault(identity, time.monotonic())
        else:
            self._finish(trajectory)

    def _finish(self, trajectory: Trajectory) -> None:
        assert trajectory.identity is not None
        self._finished.add(trajectory.number)
        self._go_on(trajectory.identity)
        seconds = time.monotonic() - trajectory.opened - trajectory.waited
        self._counts.finish(seconds)
        del self._live[trajectory.number]
        self._sink.close(trajectory.number, complete=True)
        identity = trajectory.identity
        self.leave(identity)
        self._reply(identity, msg.Done(self.spec.steps))

    def _grant(self, grants: Sequence[tuple[bytes, int]]) -> None:
        for identity, granted in grants:
            trajectory = self._connections.get(identity)
            if trajectory is None or trajectory.ended:
                continue
            if self._go_on(identity):
                trajectory.last = time.monotonic()
            self._reply(identity, msg.Credit(granted))

    def _go_on(self, identity: bytes) -> bool:
        """Note that a connection waits no longer; return whether it did."""
        since = self._waiting.pop(identity, None)
        if since is None:
            return False
        if (trajectory := self._connections.get(identity)) is not None:
            trajectory.waited += time.monotonic() - since
        return True

    def _refuse(self, identity: bytes, refusal: Refusal) -> None:
        self.leave(identity)
        if self._refusals.add(identity, refusal):
            self._reply(identity, msg.Refused(str(refusal)))
