"""What a store writes for a checkpoint, and what it makes of it."""

import collections
import itertools
import threading

import laws
import numpy as np
import pytest
from test_store import POLICIES, WINDOWS, make_store, offer

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.reservoir import FIFO, PendingBatches, persistent

SIMULATIONS = 5
STEPS = 20


class Run:
    """A store between five simulations that take turns and a trainer."""

    def __init__(self, store, next_step=None, again=()):
        self.store = store
        self.flight = PendingBatches(again)
        self.next = dict(next_step or dict.fromkeys(range(SIMULATIONS), 0))
        self.batches, self.trained = [], 0

    def feed(self, turns):
        """Offer the simulations' next steps, in turn, while there is room."""
        for number, count in itertools.islice(
            itertools.product(range(SIMULATIONS), (1, 2, 4)), turns
        ):
            count = min(count, STEPS - self.next[number])
            if count:
                self.next[number] += offer(self.store, number, self.next[number], count)
                if self.next[number] == STEPS:
                    self.store.close(number, complete=True)

    def fetch(self):
        """Draw a batch, which is not trained yet; return whether there was one."""
        draw = self.flight.repeat()
        if draw is None:
            try:
                draw = self.store.draw(0, self.flight)
            except TimeoutError:
                return False
        if draw is not None:
            laws.check_draw(self.store, draw)
            self.batches.append(
                list(zip(draw.simulation.tolist(), draw.step.tolist(), strict=True))
            )
        return draw is not None

    def train(self, batches):
        """Train all but the last of the batches that were fetched."""
        for _ in range(batches):
            self.fetch()
        self.trained = max(self.trained, len(self.batches) - 1)
        self.flight.settle(self.trained)

    def finish(self):
        """Run to the end."""
        while any(step < STEPS for step in self.next.values()):
            before = (dict(self.next), len(self.batches))
            self.feed(15)
            self.train(1)
            assert before != (self.next, len(self.batches)), self.store.waiting()
        self.store.end_reception()
        while self.fetch():
            pass


def saved(run):
    """A snapshot and the rows that go with it."""
    rows = []
    snapshot = run.store.save(run.flight, lambda chunk: rows.append(chunk.copy()))
    return snapshot, np.concatenate(rows)


@pytest.mark.parametrize("rounds", [1, 4, 9])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_store_goes_on_as_if_nothing_had_been(policy, window, rounds):
    run = Run(make_store(policy, window, STEPS))
    for _ in range(rounds):
        run.feed(9)
        run.train(2)
    snapshot, rows = saved(run)
    other = make_store(policy, window, STEPS, seed=99)
    again = other.restore(snapshot, rows)
    twin = Run(other, run.next, again)
    assert {n: other.open(n) for n in run.next} == run.next
    assert list(other.finished) == [n for n in run.next if run.next[n] == STEPS]
    before = other.counters()
    mine = run.store.counters()
    for name in ("population", "unseen", "inserted", "drawn", "steps", "times_seen"):
        assert getattr(before, name) == getattr(mine, name), name
    # What was fetched and not trained comes again, and then the very same batches.
    trained, pending = run.trained, len(run.batches) - run.trained
    for _ in again:
        twin.fetch()
    run.finish()
    twin.finish()
    assert len(again) == pending
    assert twin.batches == run.batches[trained:]


@pytest.mark.parametrize("rounds", [1, 4, 9])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_without_the_fields_every_sample_is_trained(policy, window, rounds):
    run = Run(make_store(policy, window, STEPS))
    for _ in range(rounds):
        run.feed(9)
        run.train(2)
    snapshot = run.store.save(run.flight, None)
    other = make_store(policy, window, STEPS)
    assert other.restore(snapshot, None) == []
    twin = Run(other, {n: other.open(n) for n in run.next})
    twin.finish()
    first = [s for batch in run.batches[: run.trained] for s in batch]
    second = [s for batch in twin.batches for s in batch]
    every = {
        (n, k * window.stride)
        for n in range(SIMULATIONS)
        for k in range(window.samples(STEPS))
    }
    assert {*first, *second} == every
    if policy == "FIFO":
        assert collections.Counter(first + second) == collections.Counter(every)
    if policy in ("FIFO", "FIRO"):
        assert len(second) == len(set(second))


def test_a_solver_without_parameters_is_saved_too():
    """One deterministic simulation is a study as well."""
    spec = FieldSpec((), (Variable("u"),), (), (), tuple(range(8)))
    store, flight = FIFO(spec, Direct(), 4, capacity=8), PendingBatches()
    steps = np.arange(8, dtype="f").reshape(8, 1)
    assert store.offer(0, 0, steps, np.zeros(0, dtype="f")) == 8
    store.draw(0, flight)
    other = FIFO(spec, Direct(), 4, capacity=8)
    rows = []
    snapshot = store.save(flight, lambda chunk: rows.append(chunk.copy()))
    snapshot.check(spec)
    (draw,) = other.restore(snapshot, np.concatenate(rows))
    assert draw.step.tolist() == [0, 1, 2, 3]
    assert draw.parameters.shape == (4, 0)


def test_steps_that_no_window_covers_do_not_make_a_simulation_run_again():
    """Its windows were all trained; without their fields, nothing is left to simulate."""
    window = Autoregressive(1, stride=3)
    store = make_store("FIFO", window, 19)
    flight, last = (
        PendingBatches(),
        (window.samples(19) - 1) * window.stride + window.span,
    )
    assert offer(store, 0, 0, last) == last < 19
    assert offer(store, 1, 0, 19) == 19
    batches = 2 * window.samples(19) // store.batch_size
    for _ in range(batches):
        assert store.draw(0, flight)
    flight.settle(batches)
    other = make_store("FIFO", window, 19)
    other.restore(store.save(flight, None), None)
    assert [other.open(n) for n in (0, 1, 2)] == [19, 19, 0]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_steps_come_in_while_a_snapshot_is_written(window):
    """Writing waits until producers have replaced what it has not copied yet."""
    run = Run(make_store("Reservoir", window, STEPS))
    while len(run.batches) < 12:
        run.feed(15)
        run.train(1)
    store, moved = run.store, threading.Event()
    store._slab.memory.gather, gather = (
        lambda *a: (moved.wait(20), gather(*a)),
        store._slab.memory.gather,
    )
    held = {}
    thread = threading.Thread(target=lambda: held.update(result=saved(run)))
    thread.start()
    try:
        while not store._slab._pins:
            thread.join(0.001)
        inserted = store.counters().inserted
        run.feed(15)
    finally:
        moved.set()
        thread.join(20)
    store._slab.memory.gather = gather
    snapshot, rows = held["result"]
    assert snapshot.counts[0] == inserted
    other = make_store("Reservoir", window, STEPS)
    other.restore(snapshot, rows)
    samples = other._members.samples
    fields = np.empty((len(samples) * window.span, *other.spec.step_shape), np.float32)
    other._slab.memory.gather(other._books.slots(samples), fields)
    fields = fields.reshape(len(samples), window.span, *other.spec.step_shape)
    for field, simulation, step in zip(
        fields, *other._books.labels(samples)[:2], strict=True
    ):
        expected = laws.trajectory(other.spec, simulation, step, window.span)
        np.testing.assert_array_equal(field, expected)
    # Nothing is held back afterwards.
    run.finish()
    assert store.counters().population == 0
    assert store._slab.free == store.capacity
    assert store._slab.pending == 0


def test_a_failed_write_leaves_the_store_whole():
    run = Run(make_store("Reservoir", WINDOWS[1], STEPS))
    run.feed(9)
    run.train(2)

    def full(chunk):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.store.save(run.flight, full)
    run.finish()
    assert run.store._slab.free == run.store.capacity


def test_another_policy_or_capacity_is_refused():
    run = Run(make_store("Reservoir", WINDOWS[0], STEPS))
    run.feed(15)
    snapshot, rows = saved(run)
    with pytest.raises(ValueError, match=r"is a Reservoir, expected a FIFO"):
        make_store("FIFO", WINDOWS[0], STEPS).restore(snapshot, rows)
    with pytest.raises(ValueError, match=r"expected at most capacity = 8"):
        make_store("Reservoir", WINDOWS[0], STEPS, capacity=8).restore(snapshot, rows)


def test_ranges_hold_any_set():
    random = np.random.default_rng(0)
    mine, truth = IntSet(), set()
    for number in random.integers(0, 60, 2000).tolist():
        if random.random() < 0.5:
            mine.add(number)
            truth.add(number)
        else:
            mine.discard(number)
            truth.discard(number)
        assert list(mine) == sorted(truth)
        assert len(mine) == len(truth)
        assert all((n in mine) == (n in truth) for n in range(-1, 62))
        assert IntSet(mine.ranges).ranges == mine.ranges
    with pytest.raises(ValueError, match="ascending ranges"):
        IntSet([(3, 5), (5, 6)])


def test_room_that_a_snapshot_kept_is_announced(monkeypatch):
    """Producers that come only when they are called get in as rows are written."""
    store = make_store("FIFO", Direct(), capacity=10, batch_size=5)
    assert offer(store, 0, 0, 10) == 10
    monkeypatch.setattr(persistent, "_CHUNK", 4 * store.spec.step_bytes)

    def produce():
        first = store.open(1)
        if first < 10:
            offer(store, 1, first, 10 - first)

    def write(chunk):
        if not store.open(1):
            # The last six steps are drawn, and wait for their rows to be written.
            store.draw(0)
            store.draw(0)
            assert store.open(1) == 4

    store.on_room(produce)
    store.save(PendingBatches(), write)
    assert store.open(1) == 10


@pytest.mark.parametrize("way", ["into", "out of"])
def test_a_copy_that_does_not_end_is_told(monkeypatch, way):
    """The message of a checkpoint that waits in vain counts what it waits for."""
    monkeypatch.setattr(persistent, "_SECONDS", 0.1)
    store, flight = make_store("FIFO", Direct()), PendingBatches()
    offer(store, 0, 0, 20)
    store.draw(0, flight)
    begun, go_on = threading.Event(), threading.Event()
    name = {"into": "write", "out of": "batch"}[way]
    copy = getattr(store._slab.memory, name)

    def slow(*arguments):
        begun.set()
        assert go_on.wait(30)
        return copy(*arguments)

    monkeypatch.setattr(store._slab.memory, name, slow)
    actions = {
        "into": lambda: offer(store, 1, 0, 4),
        "out of": lambda: store.draw(0, flight),
    }
    thread = threading.Thread(target=actions[way])
    thread.start()
    assert begun.wait(30)
    counts = {"into": (1, 0), "out of": (0, 1)}[way]
    with pytest.raises(
        TimeoutError, match="{} copies into .* {} out of".format(*counts)
    ):
        store.save(flight, None)
    go_on.set()
    thread.join(30)
    assert not thread.is_alive()
