"""What waits for a sink, by itself."""

import gc
import tracemalloc

import numpy as np
import pytest
from peers import Ledger

from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.stream.session import BLOCK, Session
from surrogate_flow.testing.store import trajectory

STEPS = 2000
SPEC = FieldSpec(
    (), (Variable("u"),), ("x",), (10,), tuple(float(t) for t in range(STEPS))
)
SIZE = SPEC.step_bytes
# Small messages share what ZeroMQ has read at once, and keep it as long as they live.
READ_AT_ONCE = 8192


@pytest.fixture
def sink():
    ledger = Ledger(SPEC)
    yield ledger
    ledger.end()
    assert not ledger.wrong


def received(first, count=1, aligned=True):
    """Return a message as ZeroMQ hands it out: a part of what it has read."""
    data = trajectory(SPEC, 0, first, count).tobytes()
    begin = 64 if aligned else 65
    read = bytearray(max(READ_AT_ONCE, begin + len(data)))
    read[begin : begin + len(data)] = data
    return memoryview(read)[begin : begin + len(data)]


def traced():
    """Bytes taken by the stream, and by what is handed to it; other threads take some too."""
    ours = [tracemalloc.Filter(True, name) for name in ("*/surrogate_flow/*", __file__)]
    found = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
    return sum(entry.size for entry in found)


def total(parcels):
    return sum(length for _, length in parcels)


@pytest.mark.parametrize("connections", [1, 2])
def test_what_waits_takes_little_more_memory_than_is_counted(sink, connections):
    """Thousands of tiny messages, also of two attempts: their bytes and a tenth or two."""
    sink.room = 0
    waits = Session(SPEC, 0, np.empty(0), 0)
    tracemalloc.start()
    try:
        before = traced()
        for first in range(STEPS):
            identity = b"a" if first < STEPS // connections else b"b"
            waits.add(identity, first, received(first), 1)
            if len(waits.pending) == 1:
                assert total(waits.deliver(sink)) == 0
        gc.collect()
        after = traced()
    finally:
        tracemalloc.stop()
    counted = STEPS * SIZE
    assert counted <= after - before < 1.3 * counted + 4096
    sink.room = None
    taken = list(waits.deliver(sink))
    assert total(taken) == counted
    assert len({identity for identity, _ in taken}) == connections
    assert sink.steps.total() == len(sink.steps) == STEPS


@pytest.mark.parametrize("count", [1, 300], ids=["small", "large"])
def test_what_is_taken_at_once_is_not_copied(sink, count):
    """The sink gets the received message itself; also a large one that has to wait."""
    waits = Session(SPEC, 0, np.empty(0), 0)
    offered = []
    offer = sink.offer
    sink.offer = lambda *call: offered.append(call[2]) or offer(*call)
    payload = received(0, count)
    waits.add(b"a", 0, payload, count)
    if count > 1:
        sink.room = 5
        assert total(waits.deliver(sink)) == 0
        sink.room = None
    assert total(waits.deliver(sink)) == count * SIZE
    whole = np.frombuffer(payload, np.float32)
    assert all(np.shares_memory(steps, whole) for steps in offered)
    assert all(not steps.flags.writeable for steps in offered)


@pytest.mark.parametrize("seed", range(5))
def test_credit_and_steps_of_any_sizes_come_out_as_they_went_in(sink, seed):
    """Messages small and large, repeated, unaligned, of several connections, and a sink with little room."""
    chance = np.random.default_rng(seed)
    waits = Session(SPEC, 0, np.empty(0), 0)
    paid = {b"a": 0, b"b": 0}
    returned = dict.fromkeys(paid, 0)

    def deliver(room):
        sink.room = room
        for identity, length in waits.deliver(sink):
            returned[identity] += length

    first = 0
    while first < STEPS:
        identity = b"a" if chance.random() < 0.9 else b"b"
        again = int(chance.integers(0, 3)) if first > 10 else 0
        count = int(chance.choice([1, 2, 7, BLOCK // SIZE, 2 * BLOCK // SIZE]))
        count = min(count + again, STEPS - first + again)
        payload = received(first - again, count, aligned=chance.random() < 0.5)
        assert waits.add(identity, first - again, payload, count) == again
        if count > again:
            paid[identity] += count * SIZE
        first += count - again
        if len(waits.pending) == 1 or chance.random() < 0.3:
            deliver(int(chance.integers(0, 40)))
    held = sum(paid.values()) - sum(returned.values())
    assert held == sum(parcel.length for parcel in waits.pending)
    deliver(None)
    assert returned == paid
    assert not waits.pending
    assert sink.steps.total() == len(sink.steps) == STEPS
