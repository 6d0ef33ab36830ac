"""What a store writes for a checkpoint, and what it makes of it."""

import collections
import itertools
import threading

import numpy as np
import pytest
from test_store import INPUTS, POLICIES, WINDOWS, make_store, offer, paused_store

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.reservoir import FIFO, PendingBatches, Store
from surrogate_flow.testing import store as laws

SIMULATIONS = 5
STEPS = 20


class Run:
    """A store between five simulations that take turns and a trainer."""

    def __init__(self, store, next_step=None, again=()):
        self.store = store
        self.pending = PendingBatches(again)
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
        draw = self.pending.take_again()
        if draw is None:
            try:
                draw = self.store.draw(0, self.pending)
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
        self.pending.acknowledge(self.trained)

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
    snapshot = run.store.save(run.pending, lambda chunk: rows.append(chunk.copy()))
    return snapshot, np.concatenate(rows)


@pytest.mark.parametrize("rounds", [1, 4, 9])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_store_goes_on_as_if_nothing_had_been(policy, window, rounds):
    # Input fields cost no case of their own.
    inputs = INPUTS if rounds == 4 else ()
    run = Run(make_store(policy, window, STEPS, inputs=inputs))
    for _ in range(rounds):
        run.feed(9)
        run.train(2)
    snapshot, rows = saved(run)
    snapshot.check(run.store.spec)
    other = make_store(policy, window, STEPS, seed=99, inputs=inputs)
    again = other.restore(snapshot, rows)
    twin = Run(other, run.next, again)
    assert {n: other.open(n) for n in run.next} == run.next
    assert list(other.finished) == [n for n in run.next if run.next[n] == STEPS]
    before = other.stats()
    mine = run.store.stats()
    for name in (
        *("population", "unseen", "inserted", "drawn", "steps", "times_seen"),
        "inputs",
    ):
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
    """Those that leave when they are drawn once only, however often the run is cut off."""
    run = Run(make_store(policy, window, STEPS))
    first = []
    for _ in range(3):
        for _ in range(rounds):
            run.feed(9)
            run.train(2)
        first += [s for batch in run.batches[: run.trained] for s in batch]
        snapshot = run.store.save(run.pending, None)
        snapshot.check(run.store.spec)
        other = make_store(policy, window, STEPS)
        assert other.restore(snapshot, None) == []
        run = Run(other, {n: other.open(n) for n in run.next})
    run.finish()
    second = [s for batch in run.batches for s in batch]
    every = {
        (n, k * window.stride)
        for n in range(SIMULATIONS)
        for k in range(window.samples(STEPS))
    }
    assert {*first, *second} == every
    if policy in ("FIFO", "FIRO"):
        assert collections.Counter(first + second) == collections.Counter(every)


def test_a_store_that_drains_is_saved_with_batches_that_are_not_trained():
    """How many are still to come is a whole number then; a checkpoint has it as others."""
    run = Run(make_store("Reservoir", WINDOWS[0], STEPS))
    while any(step < STEPS for step in run.next.values()):
        run.feed(15)
        run.train(1)
    run.store.end_reception()
    run.trained = len(run.batches)
    run.pending.acknowledge(run.trained)
    assert run.fetch()
    snapshot, rows = saved(run)
    snapshot.check(run.store.spec)
    (again,) = make_store("Reservoir", WINDOWS[0], STEPS).restore(snapshot, rows)
    assert again.remaining == snapshot.again_remaining[0] < 1000


def test_a_solver_without_parameters_is_saved_too():
    """One deterministic simulation is a study as well."""
    spec = FieldSpec((), (Variable("u"),), (), (), tuple(range(8)))
    store, pending = Store(spec, Direct(), 4, FIFO(capacity=8)), PendingBatches()
    steps = np.arange(8, dtype="f").reshape(8, 1)
    assert store.offer(0, 0, steps, np.zeros(0, dtype="f")) == 8
    store.draw(0, pending)
    other = Store(spec, Direct(), 4, FIFO(capacity=8))
    rows = []
    snapshot = store.save(pending, lambda chunk: rows.append(chunk.copy()))
    snapshot.check(spec)
    (draw,) = other.restore(snapshot, np.concatenate(rows))
    assert draw.step.tolist() == [0, 1, 2, 3]
    assert draw.parameters.shape == (4, 0)


def test_steps_that_no_window_covers_do_not_make_a_simulation_run_again():
    """Its windows were all trained; without their fields, nothing is left to simulate."""
    window = Autoregressive(1, stride=3)
    store = make_store("FIFO", window, 19)
    pending, last = (
        PendingBatches(),
        (window.samples(19) - 1) * window.stride + window.span,
    )
    assert offer(store, 0, 0, last) == last < 19
    assert offer(store, 1, 0, 19) == 19
    batches = 2 * window.samples(19) // store.batch_size
    for _ in range(batches):
        assert store.draw(0, pending)
    pending.acknowledge(batches)
    other = make_store("FIFO", window, 19)
    other.restore(store.save(pending, None), None)
    assert [other.open(n) for n in (0, 1, 2)] == [19, 19, 0]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_steps_come_in_while_a_snapshot_is_written(window):
    """Writing waits until simulations have replaced what it has not copied yet."""
    store, memory = paused_store("Reservoir", window, steps=STEPS)
    run = Run(store)
    while len(run.batches) < 12:
        run.feed(15)
        run.train(1)
    memory.pause("gather")
    held = {}
    thread = threading.Thread(target=lambda: held.update(result=saved(run)))
    thread.start()
    try:
        assert memory.begun.wait(30)
        inserted = store.stats().inserted
        samples = store.samples()
        run.feed(15)
    finally:
        memory.go_on.set()
        thread.join(20)
    snapshot, rows = held["result"]
    assert snapshot.counts[0] == inserted
    other = make_store("Reservoir", window, STEPS)
    other.restore(snapshot, rows)
    assert other.samples() == samples
    other.end_reception()
    while (draw := other.draw(0)) is not None:
        laws.check_draw(other, draw)
    # Nothing is held back afterwards.
    run.finish()
    assert store.stats().population == store.stats().steps == 0


def test_a_failed_write_leaves_the_store_whole():
    run = Run(make_store("Reservoir", WINDOWS[1], STEPS))
    run.feed(9)
    run.train(2)

    def full(chunk):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.store.save(run.pending, full)
    run.finish()
    assert run.store.stats().steps == 0


def test_another_policy_or_capacity_is_refused():
    run = Run(make_store("Reservoir", WINDOWS[0], STEPS))
    run.feed(15)
    snapshot, rows = saved(run)
    with pytest.raises(UserError, match=r"it has a Reservoir, asked for is a FIFO"):
        make_store("FIFO", WINDOWS[0], STEPS).restore(snapshot, rows)
    with pytest.raises(UserError, match=r"expected at most capacity = 8"):
        make_store("Reservoir", WINDOWS[0], STEPS, capacity=8).restore(snapshot, rows)


def test_room_that_a_snapshot_kept_is_announced():
    """Simulations that are offered only when there is room get in as rows are written."""
    store = make_store("FIFO", Direct(), capacity=10, batch_size=5)
    assert offer(store, 0, 0, 10) == 10
    store.chunk_bytes = 4 * store.spec.step_bytes

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
def test_a_copy_that_does_not_end_is_told(way):
    """The message of a checkpoint that waits in vain counts what it waits for."""
    store, memory = paused_store("FIFO", Direct())
    pending = PendingBatches()
    offer(store, 0, 0, 20)
    store.draw(0, pending)
    memory.pause({"into": "write", "out of": "batch"}[way])
    actions = {
        "into": lambda: offer(store, 1, 0, 4),
        "out of": lambda: store.draw(0, pending),
    }
    thread = threading.Thread(target=actions[way])
    thread.start()
    assert memory.begun.wait(30)
    counts = {"into": (1, 0), "out of": (0, 1)}[way]
    with pytest.raises(
        TimeoutError, match="{} copies into .* {} out of".format(*counts)
    ):
        store.save(pending, None, timeout=0.1)
    memory.go_on.set()
    thread.join(30)
    assert not thread.is_alive()
