"""The laws that every implementation of a contract obeys."""

import pickle
import queue
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as L
import torch
import xarray as xr
import zmq

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw, Store
from surrogate_flow.solvers import Solver
from surrogate_flow.stream import Endpoint, Inlet, Outlet, StreamError, protocol
from surrogate_flow.surrogate.surrogate import Surrogate


def check_solver(solver: Solver, parameters: Mapping[str, float]) -> None:
    """Check that a solver yields what its spec says, every time and after pickling."""
    spec = solver.spec
    travelled = pickle.loads(pickle.dumps(solver))
    assert travelled.spec.digest() == spec.digest()

    runs = [
        xr.concat([step.copy(deep=True) for step in one.solve(parameters)], dim="time")
        for one in (solver, solver, travelled)
    ]
    assert runs[0].time.values.tolist() == list(spec.times)
    for variable in spec.variables:
        field = runs[0][variable.name]
        assert field.dims == ("time", *spec.dims)
        assert field.shape == (spec.steps, *spec.shape)
        assert np.isfinite(field).all()
    for run in runs[1:]:
        xr.testing.assert_equal(run, runs[0])


def trajectory(spec: FieldSpec, simulation: int, first: int, count: int) -> np.ndarray:
    """Return steps whose every value tells simulation, step and place."""
    step = simulation * 512 + first + np.arange(count)
    place = np.arange(np.prod(spec.step_shape)).reshape(spec.step_shape) % 8
    return (step.reshape(-1, *(1 for _ in spec.step_shape)) * 8 + place).astype("f")


def parameters(spec: FieldSpec, simulation: int) -> np.ndarray:
    """Return a parameter vector that tells the simulation."""
    return simulation + np.arange(len(spec.parameters)) / 4


def samples_of(draw: Draw) -> list[tuple[int, int]]:
    """Return the identities of the samples in a batch."""
    return list(zip(draw.simulation.tolist(), draw.step.tolist(), strict=True))


def check_draw(store: Store, draw: Draw) -> None:
    """Check that every row of a batch is what was put under its name."""
    fields = np.asarray(draw.fields)
    assert fields.shape[1:] == (store.window.span, *store.spec.step_shape)
    assert fields.dtype == draw.parameters.dtype == np.float32
    assert draw.simulation.dtype == draw.step.dtype == np.int64
    for i, (simulation, step) in enumerate(samples_of(draw)):
        expected = trajectory(store.spec, simulation, step, store.window.span)
        np.testing.assert_array_equal(fields[i], expected)
        np.testing.assert_array_equal(
            draw.parameters[i], parameters(store.spec, simulation).astype("f")
        )


def run_store(store: Store, simulations: int, seed: int = 0) -> list[Draw]:
    """Offer interleaved simulations and draw between; check at every moment."""
    random = np.random.default_rng(seed)
    next_step = dict.fromkeys(range(simulations), 0)
    draws = []

    def bounded() -> None:
        now = store.stats()
        assert 0 <= now.unseen <= now.population <= now.capacity
        assert 0 <= now.steps <= now.capacity
        assert now.steps * store.spec.step_bytes <= now.capacity_bytes
        assert now.population == now.inserted - now.evicted - now.removed
        assert sum(now.times_seen) == now.inserted
        assert now.unseen == now.times_seen[0]

    while next_step:
        simulation = int(random.choice(list(next_step)[:3]))
        first = next_step[simulation]
        count = min(int(random.integers(1, 9)), store.spec.steps - first)
        steps = trajectory(store.spec, simulation, first, count)
        vector = parameters(store.spec, simulation)
        taken = store.offer(simulation, first, steps, vector)
        assert 0 <= taken <= count
        next_step[simulation] += taken
        steps[:] = np.nan
        bounded()
        if next_step[simulation] == store.spec.steps:
            del next_step[simulation]
            store.close(simulation, complete=True)
        if taken < count or random.random() < 0.3:
            try:
                draws.append(store.draw(timeout=0))
            except TimeoutError:
                stuck = taken < count and len(next_step) <= 1
                if stuck:
                    raise
            bounded()
    store.end_reception()
    while (draw := store.draw(timeout=0)) is not None:
        draws.append(draw)
        bounded()
    assert store.stats().population == store.stats().steps == 0
    return draws


def check_reservoir(make: Callable[[], Store], once: bool) -> None:
    """Check laws 2 to 4 and 6 of the design on a small store, made twice alike.

    `once` tells whether a sample is trained exactly once, or at least once.
    """
    store = make()
    draws = run_store(store, simulations=12)
    times = Counter(sample for draw in draws for sample in samples_of(draw))
    window, spec = store.window, store.spec
    starts = range(0, spec.steps - window.span + 1, window.stride)
    assert set(times) == {(s, k) for s in range(12) for k in starts}
    assert not once or set(times.values()) == {1}
    histogram = Counter(min(n, 64) for n in times.values())
    assert store.stats().times_seen == tuple(histogram[n] for n in range(65))
    for draw in draws:
        # All batches are still held, so memory shared between any two would show.
        check_draw(store, draw)

    for ours, theirs in zip(draws, run_store(make(), 12), strict=True):
        np.testing.assert_array_equal(ours.simulation, theirs.simulation)
        np.testing.assert_array_equal(ours.step, theirs.step)

    check_waits(make)


class Producer:
    """Puts all steps into a store, as an inlet does: again whenever there is room."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.room = threading.Event()
        store.on_room(self.room.set)

    def put(self, simulation: int, first: int, count: int, timeout: float = 30) -> int:
        """Return how many steps were taken within so many seconds."""
        spec, end = self.store.spec, time.monotonic() + timeout
        steps = trajectory(spec, simulation, first, count)
        vector, done = parameters(spec, simulation), 0
        while True:
            self.room.clear()
            done += self.store.offer(simulation, first + done, steps[done:], vector)
            if done == count or not self.room.wait(max(0, end - time.monotonic())):
                return done


def check_waits(make: Callable[[], Store]) -> None:
    """Check that waits end at their deadline with a reason, and that stop ends all."""
    store = make()
    assert store.waiting() == ""
    with pytest.raises(TimeoutError, match=r"trainer waits: 0 of \d+ samples"):
        store.draw(timeout=0.0)
    with pytest.raises(TimeoutError, match=r"trainer waits: 0 of \d+ samples"):
        store.wait_threshold(timeout=0.0)
    producer, simulation = Producer(store), 0
    while producer.put(simulation, 0, store.spec.steps, timeout=0) == store.spec.steps:
        simulation += 1
    assert "simulations wait: " in store.waiting()
    assert " samples unseen" in store.waiting()
    assert "no batch drawn yet" in store.waiting()
    assert store.stats().put_wait > 0
    assert store.wait_threshold(timeout=None)

    empty = make()
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(empty.draw(timeout=None))),
        threading.Thread(
            target=lambda: results.append(empty.wait_threshold(timeout=None))
        ),
    ]
    for thread in threads:
        thread.start()
    while not empty.waiting():
        threads[0].join(0.001)
    empty.stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(map(str, results)) == ["False", "None"]
    producer.room.clear()
    store.stop()
    assert producer.room.is_set(), "who waits for room is told"
    assert store.draw(timeout=None) is None
    assert not store.wait_threshold(timeout=None)
    assert producer.put(2000, 0, 1, timeout=0) == 0


class Ledger:
    """A sink that writes down what it takes, and whose room comes and goes by chance."""

    def __init__(self, spec: FieldSpec, seed: int | None = None) -> None:
        self.spec = spec
        self.steps: Counter[tuple[int, int]] = Counter()
        self.closed: Counter[tuple[int, bool]] = Counter()
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
        self, simulation: int, first: int, steps: np.ndarray, vector: np.ndarray
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

    def close(self, simulation: int, complete: bool) -> None:
        """Count it."""
        self.closed[simulation, complete] += 1

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
        """Allow so many more steps, and say so."""
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
    """A bare DEALER socket: says anything, in any order."""

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

    def say(self, message: protocol.Message, *payload: bytes) -> None:
        """Send one message."""
        self.socket.send_multipart([protocol.encode(message), *payload])

    def hear(self) -> protocol.Message:
        """Return the next word of the inlet."""
        return protocol.decode([self.socket.recv()])[0]

    def hear_until(self, kind: type[protocol.Message]) -> protocol.Message:
        """Return the next word of one kind."""
        while not isinstance(word := self.hear(), kind):
            pass
        return word

    def open(
        self, spec: FieldSpec, simulation: int, attempt: int = 0
    ) -> protocol.Message:
        """Open a simulation and return the answer."""
        vector = parameters(spec, simulation).tobytes()
        study, digest = self.endpoint.study, self.endpoint.spec
        opening = protocol.Open(study, digest, simulation, attempt, len(vector))
        self.say(opening, vector)
        return self.hear()

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
                outlet._connection._socket.close(linger=0)
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

    def stutter(endpoint: Endpoint, number: int) -> None:
        with RawOutlet(endpoint) as raw:
            welcome = raw.open(spec, number)
            assert isinstance(welcome, protocol.Welcome)
            granted, sent = welcome.credit, 0
            for first in range(0, spec.steps - 1):
                for _ in range(2):
                    header, payload = raw.steps(spec, number, first, 2)
                    if granted - sent < len(payload):
                        raw.say(protocol.Ask(len(payload), sent))
                    while granted - sent < len(payload):
                        word = raw.hear_until(protocol.Credit)
                        assert isinstance(word, protocol.Credit)
                        granted = word.granted
                    raw.say(header, payload)
                    sent += len(payload)
            raw.say(protocol.End(number, spec.steps))
            raw.hear_until(protocol.Done)

    def harass(endpoint: Endpoint) -> int:
        chance, sent = random.Random(seed), 0
        while not over.wait(0.01):
            with RawOutlet(endpoint) as raw:
                for _ in range(5):
                    raw.socket.send_multipart(malformed(chance, endpoint))
                    assert isinstance(raw.hear(), protocol.Refused)
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
        hostile = pool.submit(harass, inlet.endpoint)
        runs = [pool.submit(simulate, inlet.endpoint, n) for n in range(simulations)]
        runs.append(pool.submit(stutter, inlet.endpoint, simulations))
        try:
            while not all(run.done() for run in runs):
                inlet.check()
                assert inlet.counters().outstanding <= budget
                over.wait(0.005)
            for run in runs:
                run.result()
        finally:
            over.set()
        assert hostile.result() > 0
        counters = inlet.counters()
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


def check_network(
    network: Callable[[FieldSpec, Window], torch.nn.Module],
    spec: FieldSpec,
    window: Window,
) -> None:
    """Check that a network obeys the contract, learns, and comes back from a checkpoint."""
    torch.manual_seed(0)
    module = network(spec, window)
    inputs = (
        torch.rand(3, len(spec.parameters)) * 2 - 1,
        torch.rand(3) * 2 - 1,
        torch.randn(3, window.inputs, *spec.step_shape),
    )
    out = module(*inputs)
    assert out.shape == (3, window.outputs, *spec.step_shape)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    torch.testing.assert_close(
        module(*(x[:1] for x in inputs)), out[:1], rtol=1e-4, atol=1e-5
    )
    check_dependence(module, inputs)
    out.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    check_return(network, spec, window, inputs)
    check_learning(module, inputs, out.shape)


def check_dependence(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Check that a sample depends on each of its inputs, and on no other sample."""
    seen = [x.clone().requires_grad_() for x in inputs]
    module(*seen)[0].square().sum().backward()
    parameters, step, history = (x.grad for x in seen)
    assert (parameters[0] != 0).all(), "a parameter is not used"
    assert step[0] != 0, "the step is not used"
    assert history[0, ..., None].flatten(2).abs().sum(2).ne(0).all(), (
        "history is not used"
    )
    for grad in (parameters, step, history):
        assert (grad[1:] == 0).all(), "samples of a batch depend on each other"


def check_return(
    network: Callable[[FieldSpec, Window], torch.nn.Module],
    spec: FieldSpec,
    window: Window,
    inputs: tuple[torch.Tensor, ...],
) -> None:
    """Check that a surrogate comes back from its checkpoint, which is data alone."""
    surrogate = Surrogate(spec, network, window=window)
    channels = len(spec.variables)
    surrogate.normalisation.freeze(np.arange(1.0, channels + 1), np.full(channels, 2.0))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "some.ckpt"
        trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=folder)
        trainer.strategy.connect(surrogate)
        trainer.save_checkpoint(path)
        torch.load(path, weights_only=True)
        loaded = Surrogate.load(path)
        assert torch.equal(loaded(*inputs), surrogate.eval()(*inputs))


def check_learning(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], shape: torch.Size
) -> None:
    """Check that a network learns smooth fields, one for each sample, by heart."""
    phase = sum(
        torch.linspace(0, 3, size).reshape(size, *(1 for _ in shape[axis + 1 :]))
        for axis, size in enumerate(shape)
    )
    target = torch.sin(phase + inputs[1].reshape(-1, *(1 for _ in shape[1:])))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses: list[float] = []
    for _ in range(300):
        loss = (module(*inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < losses[0] / 20:
            return
    raise AssertionError(f"The loss fell from {losses[0]} to {losses[-1]} only.")
