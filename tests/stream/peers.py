"""Peers of an inlet, for its tests: a sink that writes down, and outlets that misbehave."""

import pickle
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zmq

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.stream import Endpoint, Inlet, Outlet, StreamError, protocol
from surrogate_flow.testing.store import inputs, parameters, trajectory


class Ledger:
    """A sink that writes down what it takes, and whose room comes and goes by chance."""

    def __init__(self, spec: FieldSpec, seed: int | None = None) -> None:
        self.spec = spec
        self.steps: Counter[tuple[int, int]] = Counter()
        self.closed: Counter[tuple[int, bool]] = Counter()
        self.early: dict[int, str] = {}
        self.reason = ""
        self.wrong: list[str] = []
        #: Steps that may be taken; None for no limit, or one drawn at every offer.
        self.room: int | None = None
        self.changed = threading.Condition()
        self._random = random.Random(seed) if seed is not None else None
        self._callbacks: list[Callable[[], None]] = []
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._caller = threading.Thread(target=self._call, daemon=True)
        self._caller.start()

    def offer(
        self,
        simulation: int,
        first: int,
        steps: np.ndarray,
        vector: np.ndarray,
        given: np.ndarray | None = None,
    ) -> int:
        """Write down some leading steps."""
        with self.changed:
            count = len(steps)
            if self._random is not None:
                count = self._random.randint(0, count)
            if self.room is not None:
                count = min(count, self.room)
                self.room -= count
            expected = trajectory(self.spec, simulation, first, count)
            if not np.array_equal(steps[:count], expected):
                self.wrong.append(f"fields of {simulation}, {first}")
            if not np.array_equal(vector, parameters(self.spec, simulation)):
                self.wrong.append(f"parameters of {simulation}: {vector}")
            if not np.array_equal(given, inputs(self.spec, simulation)):
                self.wrong.append(f"input fields of {simulation}: {given}")
            if first and not self.steps[simulation, first - 1]:
                self.wrong.append(f"order of {simulation}, {first}")
            self.steps.update((simulation, first + i) for i in range(count))
            self.changed.notify_all()
        if count < len(steps) and self._random is not None:
            self._calls.put(True)
        return count

    def open(self, simulation: int) -> int:
        """Begin at the first step."""
        return 0

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Count it, and write down why it has ended early."""
        self.closed[simulation, complete] += 1
        if early:
            self.early[simulation] = early

    def priority(self, simulation: int) -> int:
        """Let nobody overtake."""
        return 0

    def waiting(self) -> str:
        """Return the reason that was set."""
        return self.reason

    def on_room(self, wake: Callable[[], None]) -> None:
        """Keep the callback."""
        self._callbacks.append(wake)

    def make_room(self, steps: int | None) -> None:
        """Allow so many more steps, and notify the inlet."""
        with self.changed:
            self.room = steps
        self._calls.put(True)

    def wait_for(self, count: int) -> None:
        """Wait until so many steps were taken."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.steps.total() >= count, 30)

    def end(self) -> None:
        """End the thread that calls back."""
        self._calls.put(False)
        self._caller.join()

    def _call(self) -> None:
        while self._calls.get():
            for callback in self._callbacks:
                callback()


class RawOutlet:
    """A bare DEALER socket: sends anything, in any order."""

    def __init__(self, endpoint: Endpoint, name: bytes = b"") -> None:
        self.endpoint = endpoint
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        if name:
            self.socket.routing_id = name
        self.socket.linger = 0
        self.socket.rcvtimeo = 20_000
        if endpoint.keys is not None:
            self.socket.curve_serverkey = endpoint.keys.server
            self.socket.curve_publickey = endpoint.keys.public
            self.socket.curve_secretkey = endpoint.keys.secret
        self.socket.connect(endpoint.address)

    def __enter__(self) -> "RawOutlet":
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, message: protocol.Message, *payload: bytes) -> None:
        """Send one message."""
        self.socket.send_multipart([protocol.encode(message), *payload])

    def receive(self) -> protocol.Message:
        """Return the next message of the inlet."""
        return protocol.decode([self.socket.recv()])[0]

    def receive_until(self, kind: type[protocol.Message]) -> protocol.Message:
        """Return the next message of one kind."""
        while not isinstance(message := self.receive(), kind):
            pass
        return message

    def open(
        self, spec: FieldSpec, simulation: int, attempt: int = 0
    ) -> protocol.Message:
        """Open a simulation and return the answer."""
        vector = parameters(spec, simulation).tobytes()
        study, digest = self.endpoint.study, self.endpoint.spec
        opening = protocol.Open(study, digest, simulation, attempt, len(vector))
        self.send(opening, vector)
        return self.receive()

    def steps(
        self, spec: FieldSpec, simulation: int, first: int, count: int
    ) -> tuple[protocol.Steps, bytes]:
        """Return a message of steps and its payload."""
        payload = trajectory(spec, simulation, first, count).tobytes()
        header = protocol.Steps(simulation, 0, first, count, len(payload))
        return header, payload


def malformed(chance: random.Random, endpoint: Endpoint) -> list[bytes]:
    """Return the frames of a message that an inlet must refuse."""
    steps = protocol.encode(protocol.Steps(1, 0, 0, 1, 16))
    opening = protocol.Open("other", endpoint.spec, 1, 9, 8)
    return chance.choice(
        [
            [b""],
            [chance.randbytes(chance.randint(1, 200))],
            [b"\x93" * 3000],
            [b"\xc1"],
            [pickle.dumps({"kind": "steps"})],
            [steps],
            [steps, bytes(15)],
            [steps, bytes(16)],
            [steps, bytes(16), b"more"],
            [steps + b"\x00", bytes(16)],
            [protocol.encode(opening), bytes(8)],
            [protocol.encode(protocol.Welcome(0, False, 1, 1 << 40))],
            [protocol.encode(protocol.Ask(1 << 50, 0))],
            [protocol.encode(protocol.End(1 << 40, 60))],
        ]
    )


def check_stream(spec: FieldSpec, host: str | None, seed: int) -> None:
    """Check that every step of a finished simulation enters the sink exactly once.

    Attempts fail by an exception, are cut off without a word or are left behind alive
    and superseded; steps come in blocks of any size, some twice; the sink takes what it
    likes; and somebody with the keys sends nonsense all the time.
    """
    simulations = 16
    ledger = Ledger(spec, seed)
    budget = 64 * spec.step_bytes
    over = threading.Event()

    def finish(outlet: Outlet, number: int, first: int) -> None:
        for step in range(first, spec.steps):
            outlet.send(trajectory(spec, number, step, 1))
        outlet.__exit__(None, None, None)

    def attempt(
        endpoint: Endpoint, number: int, chance: random.Random, trial: int, last: bool
    ) -> None:
        end = spec.steps if last else chance.randint(0, spec.steps - 1)
        fate = "finish" if last else chance.choice(["raise", "cut", "stay"])
        outlet = Outlet(
            endpoint,
            spec,
            number,
            trial,
            parameters(spec, number),
            coalesce_bytes=chance.choice([1, 4, 16]) * spec.step_bytes,
            coalesce_seconds=0.01,
            timeout=30.0,
        )
        step = 0
        outlet.__enter__()
        try:
            while step < end:
                count = min(chance.choice([1, 1, 2, 7]), end - step)
                outlet.send(trajectory(spec, number, step, count))
                step += count
            if fate == "finish":
                outlet.__exit__(None, None, None)
                return
        except BaseException as error:
            outlet.__exit__(type(error), error, None)
            raise
        error = RuntimeError("the solver died")
        if fate == "raise":
            outlet.__exit__(RuntimeError, error, None)
        elif fate == "cut":
            assert outlet._connection is not None
            with outlet._lock:
                outlet._connection.socket.close(linger=0)
            outlet.__exit__(RuntimeError, error, None)
        elif outlet.complete:
            outlet.__exit__(None, None, None)
        else:
            attempt(endpoint, number, chance, trial + 1, True)
            with pytest.raises(StreamError):
                finish(outlet, number, step)
            outlet.__exit__(RuntimeError, error, None)

    def simulate(endpoint: Endpoint, number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        failures = chance.randint(0, 2)
        for trial in range(failures):
            attempt(endpoint, number, chance, 2 * trial, False)
        attempt(endpoint, number, chance, 2 * failures, True)

    def repeat_steps(endpoint: Endpoint, number: int) -> None:
        with RawOutlet(endpoint) as raw:
            welcome = raw.open(spec, number)
            assert isinstance(welcome, protocol.Welcome)
            granted, sent = welcome.credit, 0
            for first in range(0, spec.steps - 1):
                for _ in range(2):
                    header, payload = raw.steps(spec, number, first, 2)
                    if granted - sent < len(payload):
                        raw.send(protocol.Ask(len(payload), sent))
                    while granted - sent < len(payload):
                        message = raw.receive_until(protocol.Credit)
                        assert isinstance(message, protocol.Credit)
                        granted = message.granted
                    raw.send(header, payload)
                    sent += len(payload)
            raw.send(protocol.End(number, spec.steps))
            raw.receive_until(protocol.Done)

    def send_malformed(endpoint: Endpoint) -> int:
        chance, sent = random.Random(seed), 0
        while not over.wait(0.01):
            with RawOutlet(endpoint) as raw:
                for _ in range(5):
                    raw.socket.send_multipart(malformed(chance, endpoint))
                    assert isinstance(raw.receive(), protocol.Refused)
                    sent += 1
        return sent

    with (
        Inlet(
            spec,
            ledger,
            host=host,
            budget=budget,
            coalesce_bytes=8 * spec.step_bytes,
        ) as inlet,
        ThreadPoolExecutor(8) as pool,
    ):
        hostile = pool.submit(send_malformed, inlet.endpoint)
        runs = [pool.submit(simulate, inlet.endpoint, n) for n in range(simulations)]
        runs.append(pool.submit(repeat_steps, inlet.endpoint, simulations))
        try:
            while not all(run.done() for run in runs):
                inlet.check()
                assert inlet.stats().outstanding <= budget
                over.wait(0.005)
            for run in runs:
                run.result()
        finally:
            over.set()
        assert hostile.result() > 0
        counters = inlet.stats()
    ledger.end()
    assert not ledger.wrong
    assert ledger.steps == Counter(
        {(n, k): 1 for n in range(simulations + 1) for k in range(spec.steps)}
    )
    assert ledger.closed == {(n, True): 1 for n in range(simulations + 1)}
    assert len(ledger._callbacks) == 1
    assert counters.finished == simulations + 1
    assert counters.steps == (simulations + 1) * spec.steps
    assert counters.refusals >= hostile.result()
    assert counters.duplicates >= 2 * spec.steps - 4
    assert (counters.pending, counters.outstanding, counters.connections) == (0, 0, 0)
