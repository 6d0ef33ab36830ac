"""An inlet that strangers with the keys send nonsense to, while a study runs."""

import ctypes
import gc
import itertools
import logging
import multiprocessing
import pickle
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from types import FunctionType, ModuleType

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import Ledger, RawOutlet

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.stream import Inlet, NotExpected, Outlet, stats
from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.errors import ProtocolError
from surrogate_flow.stream.reception import Reception
from surrogate_flow.testing.store import parameters, trajectory

SPEC = FieldSpec(
    parameters=(Parameter("a", 0.0, 1.0),),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(5,),
    times=tuple(np.arange(1, 21) / 10),
)
SIZE = SPEC.step_bytes

small = st.integers(0, 4)
numbers = small | st.sampled_from([SPEC.steps, 2**31, 2**63 - 1])
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
    | st.text(max_size=9) | st.binary(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some),
    max_leaves=8,
)  # fmt: skip


def header(message):
    return [
        msg.encode(message),
        *([bytes(message.length)] if message.has_payload else []),
    ]


def lengths(count):
    return count.map(lambda n: n * SIZE)


opening = st.builds(
    msg.Open,
    study=st.sampled_from(["study"] * 9 + ["other"]),
    spec=st.sampled_from([SPEC.digest()] * 9 + ["other"]),
    simulation=small,
    attempt=small,
    length=st.sampled_from([8] * 9 + [0, 7, 16]),
)
steps = st.builds(
    lambda simulation, attempt, first, count, more: msg.Steps(
        simulation, attempt, first, count, min(count, 30) * SIZE + more
    ),
    *(small, small, small | numbers, small | numbers, st.sampled_from([0] * 9 + [4])),
)
others = st.one_of(
    st.builds(msg.Ask, lengths(small) | numbers, lengths(small) | numbers),
    st.builds(msg.End, small, numbers),
    st.builds(msg.Abort, st.text(max_size=9)),
    st.builds(msg.Welcome, numbers, st.booleans(), numbers, numbers),
    st.builds(msg.Credit, numbers),
    st.builds(msg.Stop, st.text(max_size=9)),
)
whole = st.one_of(opening, steps, steps, others).map(header)


@st.composite
def damaged(draw):
    """A message with a value replaced, bytes changed, or frames swapped."""
    frames = draw(whole)
    how = draw(st.integers(0, 3))
    if how == 0:
        content = msgpack.unpackb(frames[0])
        key = draw(st.sampled_from([*content, "dtype"]))
        content[key] = draw(plain | st.sampled_from(["float64", ">f4", "object"]))
        frames[0] = msgpack.packb(content)
    elif how == 1:
        at = draw(st.integers(0, len(frames[0]) - 1))
        frames[0] = frames[0][:at] + draw(st.binary(max_size=3)) + frames[0][at + 1 :]
    elif how == 2:
        frames = draw(st.permutations([*frames, draw(st.binary(max_size=40))]))
    else:
        frames = frames[: draw(st.integers(0, 1))]
    return frames


raw = st.lists(st.binary(max_size=60) | plain.map(msgpack.packb), max_size=3)
anything = st.one_of(whole, whole, damaged(), raw)


class Line:
    """A sink that checks that the steps of a simulation come in order, each once."""

    def __init__(self):
        self.next = defaultdict(int)

    def offer(self, simulation, first, steps, vector, inputs=None):
        assert first == self.next[simulation]
        self.next[simulation] += len(steps)
        return len(steps)

    def open(self, simulation):
        if simulation > 2:
            raise NotExpected(simulation)
        return 0

    def close(self, simulation, complete):
        assert complete
        assert self.next[simulation] == SPEC.steps

    def priority(self, simulation):
        return 0

    def waiting(self):
        return ""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), anything), max_size=8))
def test_whatever_comes_is_taken_or_refused(sent):
    """Any conversation of two peers: nothing is raised, each refusal is counted and told."""
    line, told, budget = Line(), [], 40 * SIZE
    reception = Reception(
        SPEC,
        "study",
        line,
        pool=CreditPool(budget, 4 * SIZE),
        coalesce=4 * SIZE,
        reply=lambda identity, word: told.append(word),
    )
    for identity, frames in sent:
        reception.handle(identity, [memoryview(frame) for frame in frames])
        now = reception.stats()
        assert now.refusals == sum(isinstance(word, msg.Refused) for word in told)
        assert now.refusals == sum(now.refused.values())
        assert 0 <= now.pending <= now.outstanding <= budget
        assert now.connections <= 2
        assert now.simulations + now.finished <= 3
        assert now.steps == sum(line.next.values())
        assert all(len(msg.encode(word)) <= msg.HEADER_BYTES for word in told)


# Hypothesis takes about a millisecond for a message, so the many that go
# through a socket are drawn by a seeded generator of our own, in a process of its own.

# Before growth is measured, more peers have come than the inlet remembers.
WARM, EACH = 24_000, 20
HOSTILE, UNKNOWN = 9000, 2**40
assert WARM // EACH > stats.PEERS


def nested(chance, depth):
    """Lists or maps within each other, with a byte too many behind or not."""
    level = chance.choice([b"\x91", b"\x81\xa0"])
    return level * depth + b"\x00" * chance.choice([1, 2])


def random_plain(chance, depth=0):
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind < 6:
        return (
            None,
            chance.random() < 0.5,
            chance.choice([-1, 0, 1, 2**31, 2**63, -(2**63)]),
            chance.random(),
            chance.choice(["", "steps", "object", "x" * 300]),
            chance.randbytes(chance.randint(0, 20)),
        )[kind]
    if kind == 6:
        return {
            str(n): random_plain(chance, depth + 1) for n in range(chance.randrange(4))
        }
    return [random_plain(chance, depth + 1) for _ in range(chance.randrange(4))]


def nonsense(chance, endpoint):
    """Return the frames of a message that comes from nobody the study knows."""
    message = chance.choice(
        [
            msg.Open(endpoint.study, endpoint.spec, UNKNOWN, 0, 8),
            msg.Open("other", endpoint.spec, 1, 9, 8),
            msg.Open(endpoint.study, "other", 1, 9, 8),
            msg.Open(endpoint.study, endpoint.spec, UNKNOWN, 0, 16),
            msg.Steps(UNKNOWN, 0, 0, 2, 2 * SIZE),
            msg.Steps(UNKNOWN, 2**62, 2**62, 2**62, 0),
            msg.Ask(2**60, 2**60),
            msg.End(UNKNOWN, 60),
            msg.Abort("x" * 500),
            msg.Welcome(0, False, 1, 1 << 40),
        ]
    )
    frames = header(message)
    how = chance.randrange(9)
    if how == 0:
        content = msgpack.unpackb(frames[0])
        content[chance.choice([*content, "dtype"])] = random_plain(chance)
        frames[0] = msgpack.packb(content)
    elif how == 1:
        damaged = bytearray(frames[0])
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randrange(3)] = chance.randbytes(
                chance.randrange(3)
            )
        frames[0] = bytes(damaged)
    elif how == 2:
        frames = [*frames, b"more"] * chance.choice([1, 1, 1, 300])
        chance.shuffle(frames)
    elif how == 3:
        frames = [frames[0], *(frame[:-1] for frame in frames[1:])]
    elif how == 4:
        deep = nested(chance, chance.choice([1, 900, 1000, 1020, 2000]))
        frames = [chance.choice([b"", b"\x81\xa4kind"]) + deep]
    elif how == 5:
        frames = [chance.randbytes(chance.choice([0, 1, 40, 4096, 4097, 20_000]))]
    elif how == 6:
        frames = [msgpack.packb(random_plain(chance))]
    elif how == 7:
        frames = [pickle.dumps(endpoint), frames[0]]
    return frames


def is_valid(frames):
    """The one thing that a stranger may say, and that changes nothing."""
    try:
        return isinstance(msg.decode(frames)[0], msg.Abort)
    except ProtocolError:
        return False


LIES = [
    header(msg.Steps(HOSTILE + 1, 0, 0, 1, SIZE)),
    header(msg.Steps(HOSTILE, 1, 0, 1, SIZE)),
    header(msg.Steps(HOSTILE, 0, 0, 0, 0)),
    header(msg.Steps(HOSTILE, 0, SPEC.steps, 1, SIZE)),
    header(msg.Steps(HOSTILE, 0, 0, 1, SIZE + 4)),
    header(msg.Steps(HOSTILE, 0, 3, 1, SIZE)),
    header(msg.Ask(SIZE, SIZE)),
    header(msg.Ask(2**60, 0)),
    header(msg.End(HOSTILE, SPEC.steps)),
]


def attack(endpoint, seed, total, mail):
    """Send `total` messages from ever new connections that read nothing of the answers."""
    chance, valid = random.Random(seed), 0
    context = zmq.Context()
    for begin in range(0, total, EACH):
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 60_000
            socket.sndtimeo = 60_000
            socket.connect(endpoint.address)
            for _ in range(min(EACH, total - begin)):
                frames = nonsense(chance, endpoint)
                valid += is_valid(frames)
                socket.send_multipart(frames)
    with RawOutlet(endpoint) as liar:
        for lie in LIES:
            liar.open(SPEC, HOSTILE)
            liar.socket.send_multipart(lie)
            liar.receive_until(msg.Refused)
    # Blocks until all has left.
    context.term()
    mail.put(total + len(LIES) - valid)


def send_some(inlet, number):
    with Outlet(inlet.endpoint, SPEC, number, 0, parameters(SPEC, number)) as outlet:
        for step in range(SPEC.steps):
            outlet.send(trajectory(SPEC, number, step, 1))


def weight(thing, other):
    """Bytes of all Python objects that one of inlet and sink holds, but for the other."""
    outside = (type, FunctionType, ModuleType, threading.Thread, FieldSpec)
    seen, todo = {id(other)}, [thing]
    total = 0
    while todo:
        thing = todo.pop()
        if id(thing) not in seen and not isinstance(thing, outside):
            seen.add(id(thing))
            total += sys.getsizeof(thing)
            todo += gc.get_referents(thing)
    return total


def use(inlet, sink):
    """Memory of the inlet and of its process, and the process's descriptors and threads."""
    gc.collect()
    # What the C library keeps of freed memory depends on how long queues once were.
    ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    return {
        "inlet": weight(inlet, sink),
        "sink": weight(sink, inlet),
        "process": process.memory_info().rss,
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def run_attack(inlet, seed, total):
    """Attack from another process while simulations run here; return those, and the refusals due."""
    spawn = multiprocessing.get_context("spawn")
    mail = spawn.SimpleQueue()
    process = spawn.Process(target=attack, args=(inlet.endpoint, seed, total, mail))
    process.start()
    sent = []
    try:
        while process.is_alive() or not sent:
            # Nonsense has smaller numbers, which have not begun, or far larger ones.
            sent.append(seed * 1000 + len(sent))
            send_some(inlet, sent[-1])
            inlet.check()
            process.join(0.05)
        assert process.exitcode == 0
        return sent, mail.get()
    finally:
        process.kill()
        process.join()


def settled(inlet, due):
    """The counters when so many refusals were counted, and for a moment no more."""
    never = threading.Event()
    for _ in range(4000):
        if inlet.stats().refusals >= due:
            break
        inlet.check()
        never.wait(0.005)
    never.wait(0.1)
    return inlet.stats()


class Begun(Ledger):
    """A sink that expects the simulations of `use` and the hostile one."""

    def open(self, simulation):
        if not 1000 <= simulation <= HOSTILE:
            raise NotExpected(simulation)
        return 0


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "total", [40_000, pytest.param(100_000, marks=pytest.mark.bench)]
)
def test_malformed_messages_change_nothing(total, caplog):
    """No crash, no growth, each refusal counted, few logged; a study runs on, each step once."""
    caplog.set_level(logging.WARNING)
    begin = time.monotonic()
    ledger = Begun(SPEC)
    with Inlet(SPEC, ledger) as inlet:
        first, due = run_attack(inlet, 1, WARM)
        assert settled(inlet, due).refusals == due
        uses, done = [use(inlet, ledger)], [first]
        for seed in (2, 3, 4):
            more, refused = run_attack(inlet, seed, (total - WARM) // 3)
            due += refused
            counters = settled(inlet, due)
            uses.append(use(inlet, ledger))
            done.append(more)
            assert counters.refusals == due
        assert due > 0.9 * total
        # The hostile simulation has begun; none of its connections is left.
        assert (counters.connections, counters.simulations) == (0, 1)
        assert (counters.pending, counters.outstanding) == (0, 0)
    seconds = time.monotonic() - begin
    ledger.end()
    assert not ledger.wrong
    second = sum(map(len, done[1:]))
    done = [number for each in done for number in each]
    assert len(done) > 10
    assert counters.finished == len(done)
    assert ledger.steps == Counter((n, k) for n in done for k in range(SPEC.steps))
    grown = {what: uses[-1][what] - uses[0][what] for what in uses[0]}
    # Of each simulation that has finished it keeps a number, and a name for a while.
    assert grown["inlet"] < (64 << 10) + 400 * second, grown
    # What grows with messages grows in each attack; what else this process does may take
    # memory in one of them. The sink of this test notes each step.
    each = [
        after["process"] - before["process"] - 2 * (after["sink"] - before["sink"])
        for before, after in itertools.pairwise(uses)
    ]
    assert min(each) < 1 << 20, (each, grown)
    assert grown["files"] <= 2, grown  # of whatever else this process does
    assert grown["threads"] <= 0, grown
    assert set(counters.refused) == {
        *("frames", "header", "kind", "length", "study"),
        *("spec", "parameters", "simulation", "unopened", "steps", "gap", "lost"),
        *("credit", "end"),
    }
    said = [record.getMessage() for record in caplog.records]
    assert 1 <= len(said) <= 2 + seconds / stats.LOG_SECONDS
    assert max(map(len, said)) < 1000
    assert f"{counters.refusals} in all" in said[-1]
