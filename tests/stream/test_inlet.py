"""The inlet, against outlets that are bare sockets."""

import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import zmq
from peers import Ledger, RawOutlet

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.stream import (
    Discard,
    Inlet,
    Outlet,
    StreamStopped,
    Timing,
    protocol,
)
from surrogate_flow.stream.credit import CreditPool
from surrogate_flow.stream.endpoint import ClientKeys, Endpoint, generate_keys
from surrogate_flow.stream.reception import Reception
from surrogate_flow.testing.store import inputs, parameters, trajectory

SPEC = FieldSpec(
    parameters=(Parameter("a", 0.0, 1.0),),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(5,),
    times=tuple(np.arange(1, 101) / 10),
)
SIZE = SPEC.step_bytes


@pytest.fixture
def ledger():
    sink = Ledger(SPEC)
    yield sink
    sink.end()
    assert not sink.wrong


@pytest.fixture
def inlet(ledger):
    with Inlet(SPEC, ledger) as opened:
        yield opened


def settle(inlet, condition):
    """Wait until the inlet's counters fulfil a condition."""
    never = threading.Event()
    for _ in range(4000):
        if condition(inlet.stats()):
            return
        never.wait(0.005)
    pytest.fail(f"never happened: {inlet.stats()}")


def send_all(inlet, simulation, attempt=0, **options):
    vector = parameters(SPEC, simulation)
    outlet = Outlet(inlet.endpoint, SPEC, simulation, attempt, vector, **options)
    with outlet:
        outlet.send(trajectory(SPEC, simulation, 0, SPEC.steps))


def test_the_folder_is_private_and_gone_after_close(inlet):
    """The unix socket lies in a folder of mode 0700, which closing removes."""
    folder = os.path.dirname(inlet.endpoint.address.removeprefix("ipc://"))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    inlet.stop("enough")
    inlet.stop("again")
    assert not os.path.exists(folder)


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_nothing_is_left_behind(ledger, host):
    """Closing ends every thread and frees the port."""
    before = set(threading.enumerate())
    with Inlet(SPEC, ledger, host=host) as inlet:
        send_all(inlet, 1)
        assert inlet.endpoint.address.startswith("tcp://127.0.0.1" if host else "ipc")
    assert set(threading.enumerate()) == before
    if host:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.bind(inlet.endpoint.address)


def has_ipv6_loopback():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")
def test_an_outlet_reaches_an_inlet_on_ipv6(ledger):
    """Addresses with colons are no others."""
    with Inlet(SPEC, ledger, host="::1") as inlet:
        assert inlet.endpoint.address.startswith("tcp://[::1]:")
        send_all(inlet, 1, timeout=10)
    assert ledger.steps.total() == SPEC.steps


def test_no_endpoint_before_the_start(ledger):
    """An inlet that is not open says so."""
    with pytest.raises(RuntimeError, match="enter its context"):
        _ = Inlet(SPEC, ledger).endpoint


@pytest.mark.parametrize(
    "host", ["*", "", "0.0.0.0", "0", "0x0", "::", "0::0", "::ffff:0.0.0.0"]
)
def test_all_interfaces_are_no_address(ledger, host):
    """Outlets must be told where to connect."""
    with pytest.raises(ValueError, match="one interface"):
        Inlet(SPEC, ledger, host=host)


def test_a_small_budget_is_refused(ledger):
    """What would deadlock is refused before anything runs."""
    with pytest.raises(ValueError, match="budget"):
        Inlet(SPEC, ledger, budget=2 * (1 << 20) - 1)


def wrong_keys(endpoint):
    stranger, _ = generate_keys()
    ours = endpoint.keys
    return [
        None,
        ClientKeys(ours.server, stranger.public, stranger.secret),
        ClientKeys(stranger.server, ours.public, ours.secret),
    ]


def test_nothing_is_decoded_without_the_key(ledger, monkeypatch):
    """No byte of a peer with another key, or none, gets past the handshake."""
    handled = []
    handle = "surrogate_flow.stream.reception.Reception.handle"
    with Inlet(SPEC, ledger, host="127.0.0.1") as inlet:
        monkeypatch.setattr(handle, lambda *message: handled.append(message))
        endpoint = inlet.endpoint
        for keys in wrong_keys(endpoint):
            other = Endpoint(endpoint.address, endpoint.study, endpoint.spec, keys)
            with RawOutlet(other) as raw:
                events = (
                    zmq.EVENT_HANDSHAKE_FAILED_AUTH
                    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                    | zmq.EVENT_DISCONNECTED
                )
                raw.socket.disconnect(endpoint.address)
                monitor = raw.socket.get_monitor_socket(events)
                raw.socket.connect(endpoint.address)
                raw.socket.send(protocol.encode(protocol.Ask(1, 1)))
                assert monitor.poll(20_000)
                raw.socket.disable_monitor()
                monitor.close()
        assert handled == []
        with RawOutlet(endpoint) as raw:
            raw.socket.send(b"with the key")
            for _ in range(4000):
                if handled:
                    break
                raw.socket.poll(5)
        assert len(handled) == 1


def test_a_full_sink_holds_outlets_back(ledger):
    """Pending bytes stay within the budget, everybody waits, and is served in the end."""
    ledger.room = 5
    budget = 40 * SIZE
    options = {
        "budget": budget,
        "coalesce_bytes": 8 * SIZE,
        "timing": Timing(tick=0.05),
    }
    with Inlet(SPEC, ledger, **options) as inlet:
        threads = [threading.Thread(target=send_all, args=(inlet, n)) for n in range(6)]
        for thread in threads:
            thread.start()
        settle(inlet, lambda c: c.waiting == 6)
        counters = inlet.stats()
        assert 0 < counters.pending <= counters.outstanding <= budget
        assert all(p.waiting and p.connected for p in inlet.progress())
        assert ledger.steps.total() == 5
        ledger.make_room(None)
        for thread in threads:
            thread.join()
        assert inlet.stats().waiting == 0
    assert ledger.steps.total() == 6 * SPEC.steps


def test_more_than_the_credit_is_refused(ledger):
    """Memory is bounded even against an outlet that ignores its credit."""
    ledger.room = 0
    with Inlet(SPEC, ledger, budget=40 * SIZE, coalesce_bytes=10 * SIZE) as inlet:
        with RawOutlet(inlet.endpoint) as raw:
            credit = raw.open(SPEC, 1).credit
            for first in range(0, SPEC.steps, 10):
                header, payload = raw.steps(SPEC, 1, first, 10)
                raw.send(header, payload)
            assert "bytes of credit" in raw.receive_until(protocol.Refused).reason
        assert inlet.stats().pending <= credit


def test_a_gap_is_refused_and_the_retry_fills_it(inlet, ledger):
    """Lost steps end the attempt, not the simulation."""
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
        raw.send(*raw.steps(SPEC, 1, 0, 5))
        raw.send(*raw.steps(SPEC, 1, 6, 5))
        assert "expected step 5, got 6" in raw.receive_until(protocol.Refused).reason
    send_all(inlet, 1, attempt=1)
    assert ledger.steps.total() == SPEC.steps == len(ledger.steps)


def test_lost_bytes_are_noticed_by_a_question(inlet):
    """An outlet whose last message was lost does not wait for ever."""
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
        raw.send(protocol.Ask(SIZE, 7))
        assert "received 0 of 7 bytes" in raw.receive().reason


def test_an_outlet_that_comes_back_too_late_is_told(inlet, ledger):
    """After a cut that the inlet noticed, the outlet need not wait for an answer in vain."""
    with RawOutlet(inlet.endpoint, b"outlet") as outlet:
        outlet.open(SPEC, 1)
        outlet.send(*outlet.steps(SPEC, 1, 0, 1))
        ledger.wait_for(1)
    (progress,) = inlet.progress()
    assert (progress.attempt, progress.next_step, progress.connected) == (0, 1, True)

    def gone(counters):
        inlet.probe(1)
        return not counters.connections

    settle(inlet, gone)
    # As ZeroMQ does by itself when the network is back.
    with RawOutlet(inlet.endpoint, b"outlet") as outlet:
        outlet.send(protocol.Ask(SIZE, SIZE))
        assert "another attempt must" in outlet.receive_until(protocol.Refused).reason
        outlet.send(protocol.End(1, SPEC.steps))
        outlet.receive_until(protocol.Refused)


def test_a_newer_attempt_supersedes(inlet, ledger):
    """The older connection is told to stop and what it still says is ignored."""
    with RawOutlet(inlet.endpoint) as old, RawOutlet(inlet.endpoint) as new:
        old.open(SPEC, 1)
        old.send(*old.steps(SPEC, 1, 0, 5))
        ledger.wait_for(5)
        assert new.open(SPEC, 1, attempt=1).next_step == 5
        assert "superseded by attempt 1" in old.receive_until(protocol.Stop).reason
        old.send(*old.steps(SPEC, 1, 5, 5))
        old.send(protocol.End(1, 100))
        old.send(protocol.Abort("late"))
        assert old.receive_until(protocol.Stop).reason == "aborted"
        assert "attempt 1 is under way" in old.open(SPEC, 1).reason
        counters = inlet.stats()
        assert (counters.connections, counters.refusals) == (1, 0)
        assert ledger.steps.total() == 5


def test_pending_steps_outlive_their_connection(inlet, ledger):
    """What a dead attempt sent enters the sink before its successor's steps."""
    ledger.room = 3
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
        raw.send(*raw.steps(SPEC, 1, 0, 20))
        ledger.wait_for(3)
    with RawOutlet(inlet.endpoint) as raw:
        assert raw.open(SPEC, 1, attempt=1).next_step == 20
    ledger.make_room(None)
    send_all(inlet, 1, attempt=2)
    assert ledger.steps.total() == SPEC.steps == len(ledger.steps)


def test_other_parameters_are_refused(inlet):
    """A retry solves the same problem."""
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
    vector = np.array([0.25])
    outlet = Outlet(inlet.endpoint, SPEC, 1, 1, vector)
    with pytest.raises(RuntimeError, match="must keep them"):
        outlet.__enter__()


def test_input_fields_come_once_before_any_step_and_stay_the_same(ledger):
    """A retry sends them again; others, of another size, and steps without them are refused."""
    ledger.spec = spec = replace(SPEC, inputs=(Variable("p"), Variable("q")))
    right = inputs(spec, 1)
    size = right.nbytes
    with Inlet(spec, ledger) as inlet:
        for attempt, first, reason in (
            (0, protocol.Steps(1, 0, 0, 1, SIZE), "the input fields before any step"),
            (1, protocol.Inputs(1, 1, size - 4), f"expected {size} bytes of input"),
            (2, protocol.Inputs(1, 2, size), ""),
            (3, protocol.Inputs(1, 3, size), "with other input fields: a retry must"),
        ):
            with RawOutlet(inlet.endpoint) as raw:
                raw.open(spec, 1, attempt=attempt)
                payload = right if not reason else right[::-1] + 1
                raw.send(first, payload.tobytes()[: first.length])
                if reason:
                    assert reason in raw.receive().reason
        with Outlet(inlet.endpoint, spec, 1, 4, parameters(spec, 1)) as outlet:
            outlet.give(right)
            outlet.send(trajectory(spec, 1, 0, spec.steps))
        inlet.check()
        assert inlet.stats().pending == 0
    assert ledger.steps.total() == spec.steps == len(ledger.steps)


@pytest.mark.parametrize(
    ("message", "payload", "reason"),
    [
        (protocol.Steps(2, 0, 0, 1, SIZE), SIZE, "serves"),
        (protocol.Steps(1, 1, 0, 1, SIZE), SIZE, "serves"),
        (protocol.Steps(1, 0, 0, 0, 0), 0, "expected steps below 100"),
        (protocol.Steps(1, 0, 99, 2, 2 * SIZE), 2 * SIZE, "expected steps below 100"),
        (protocol.Steps(1, 0, 2**62, 1, SIZE), SIZE, "expected steps below 100"),
        (protocol.Steps(1, 0, 0, 1, SIZE + 4), SIZE + 4, "20 bytes a step"),
        (protocol.Steps(1, 0, 0, 1, SIZE), SIZE - 1, "announces"),
        (protocol.Ask(1 << 40, 0), None, "at most"),
        (protocol.End(1, 100), None, "ended after 100 steps, received 0"),
        (protocol.End(1, 0, "steady"), None, "ended after 0 steps, received 0"),
        (protocol.End(1, 5, "steady"), None, "ended after 5 steps, received 0"),
        (protocol.Stop("x"), None, "only an inlet may send"),
    ],
)
def test_lies_are_refused(inlet, message, payload, reason):
    """What does not fit closes the connection with the reason, and nothing else."""
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
        raw.send(message, *([] if payload is None else [bytes(payload)]))
        assert reason in raw.receive().reason
        assert inlet.stats().outstanding == 0
    send_all(inlet, 1, attempt=1)
    inlet.check()


def test_refusals_are_logged_once_in_a_while(inlet, caplog):
    """A flood of nonsense does not flood the log."""
    with RawOutlet(inlet.endpoint) as raw:
        for _ in range(50):
            raw.socket.send(b"nonsense")
            raw.receive()
    assert inlet.stats().refusals == 50
    assert len(caplog.records) == 1


def test_a_simulation_is_given_up(inlet, ledger):
    """Its outlet stops, and it stays out; its sink closes it with all that was sent."""
    ledger.room = 2
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
        raw.send(*raw.steps(SPEC, 1, 0, 20))
        ledger.wait_for(2)
        inlet.give_up(1)
        assert "given up" in raw.receive_until(protocol.Stop).reason
        assert "given up" in raw.open(SPEC, 1, attempt=1).reason
        assert not ledger.closed
        ledger.make_room(100)
        ledger.wait_for(20)
        assert "given up" in raw.open(SPEC, 1, attempt=2).reason
    assert ledger.closed == {(1, False): 1}
    counters = inlet.stats()
    assert (counters.pending, counters.outstanding, counters.simulations) == (0, 0, 0)


def test_one_that_never_opened_is_given_up(inlet, ledger):
    """Its sink forgets it too: a checkpoint may have brought steps of it there."""
    inlet.give_up(1)
    with RawOutlet(inlet.endpoint) as raw:
        assert "given up" in raw.open(SPEC, 1).reason
    assert ledger.closed == {(1, False): 1}


def test_progress_names_the_silent(inlet, ledger):
    """Live simulations are listed with their next step and their last sign of life."""
    with RawOutlet(inlet.endpoint) as one, RawOutlet(inlet.endpoint) as two:
        one.open(SPEC, 1)
        two.open(SPEC, 2)
        two.send(*two.steps(SPEC, 2, 0, 5))
        ledger.wait_for(5)
        silent, moving = sorted(inlet.progress(), key=lambda p: p.last)
        assert (silent.simulation, silent.next_step) == (1, 0)
        assert (moving.simulation, moving.next_step) == (2, 5)
        two.send(protocol.Abort("crash"))
        settle(inlet, lambda c: c.connections == 1)
        assert not inlet.progress()[1].connected


class BrokenSink(Ledger):
    """A sink with a bug."""

    def offer(self, *_):
        raise ZeroDivisionError("a bug in the sink")


def test_an_exception_in_a_sink_is_not_lost():
    """Outlets are told to stop, and whoever asks gets the exception."""
    sink = BrokenSink(SPEC)
    inlet = Inlet(SPEC, sink).__enter__()
    with pytest.raises(StreamStopped, match="ZeroDivisionError"):
        send_all(inlet, 1)
    with pytest.raises(ZeroDivisionError):
        inlet.check()
    with pytest.raises(ZeroDivisionError):
        inlet.__exit__(None, None, None)
    sink.end()


def test_how_long_simulations_take_without_waiting(inlet, ledger):
    """What the trainer kept one waiting for is not its own time."""
    ledger.room = 0
    start = time.monotonic()
    thread = threading.Thread(target=send_all, args=(inlet, 1))
    thread.start()
    settle(inlet, lambda c: c.waiting == 1)
    threading.Event().wait(0.6)
    (live,) = inlet.progress()
    ledger.make_room(None)
    thread.join()
    # However slow this machine is, the wait is not in it.
    assert 0 < inlet.stats().longest < time.monotonic() - start - 0.5
    assert start <= live.opened
    assert live.waiting


class OneAtATime(Ledger):
    """A sink that takes steps of one simulation only, and of the ninth."""

    turn = 0

    def offer(self, simulation, *offered):
        return super().offer(simulation, *offered) if self.priority(simulation) else 0

    def priority(self, simulation):
        return 2 if simulation == 9 else int(simulation == self.turn)


def test_whom_others_wait_for_does_not_wait_for_credit():
    """Simulations ahead of their turn fill the pool; neither the one that has it nor what goes elsewhere is stuck behind."""
    ordered = OneAtATime(SPEC)
    with Inlet(SPEC, ordered, budget=8 * SIZE, coalesce_bytes=2 * SIZE) as inlet:
        ahead = [threading.Thread(target=send_all, args=(inlet, n)) for n in (1, 2, 3)]
        for thread in ahead:
            thread.start()
        settle(inlet, lambda c: c.waiting == 3 and c.pending == 8 * SIZE)
        send_all(inlet, 9)
        for turn in (3, 1, 2):
            ordered.turn = turn
            ordered.make_room(None)
            ordered.wait_for(SPEC.steps * (2 + (3, 1, 2).index(turn)))
            assert inlet.stats().outstanding <= 12 * SIZE
        for thread in ahead:
            thread.join()
    ordered.end()
    assert not ordered.wrong
    assert set(ordered.steps.values()) == {1}
    assert ordered.steps.total() == 4 * SPEC.steps


@pytest.mark.parametrize("world", [1, 2])
def test_memory_does_not_grow_with_simulations(world):
    """What is kept of one that finished or failed is some bits, also on one of two ranks."""
    spec = FieldSpec((), (Variable("u"),), (), (), (0.0,))
    replies = deque(maxlen=1)
    reception = Reception(
        spec,
        "study",
        Discard(),
        pool=CreditPool(1 << 20, 1 << 10),
        coalesce=1 << 10,
        reply=lambda identity, message: replies.append(message),
    )
    digest = spec.digest()

    def simulate(numbers):
        for number in numbers:
            identity = number.to_bytes(8, "big")
            opening = protocol.Open("study", digest, number, 0, 0)
            reception.handle(identity, [protocol.encode(opening), b""])
            if number % 5 == 0:
                reception.give_up(number)
                continue
            header = protocol.Steps(number, 0, 0, 1, 4)
            reception.handle(identity, [protocol.encode(header), bytes(4)])
            reception.handle(identity, [protocol.encode(protocol.End(number, 1))])

    def traced():
        """Bytes that were taken in the stream's code; other threads take some too."""
        ours = tracemalloc.Filter(True, "*/surrogate_flow/*")
        found = tracemalloc.take_snapshot().filter_traces([ours]).statistics("filename")
        return sum(entry.size for entry in found)

    warm, count = 4_000 * world, 20_000 * world
    tracemalloc.start()
    try:
        simulate(range(0, warm, world))
        before = traced()
        simulate(range(warm, count, world))
        after = traced()
    finally:
        tracemalloc.stop()
    assert reception.stats().finished == 16_000
    for number, kind in ((world, protocol.Welcome), (5 * world, protocol.Stop)):
        opening = protocol.Open("study", digest, number, 1, 0)
        reception.handle(b"again", [protocol.encode(opening), b""])
        assert isinstance(replies[-1], kind)
        assert getattr(replies[-1], "complete", True)
    assert after - before < 2 * 16_000, "two bytes a simulation"


def test_the_stream_imports_without_torch():
    """Workers that only simulate never load it."""
    code = (
        "import sys, surrogate_flow.stream; "
        "print([m for m in ('torch', 'pytorch_lightning') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


FEW_FILES = """
import resource, sys, time
from surrogate_flow.fields import FieldSpec, Variable
from surrogate_flow.stream import Discard, Inlet

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
spec = FieldSpec((), (Variable("u"),), (), (), (0.0,))
host = sys.argv[1] or None
with Inlet(spec, Discard(), host=host) as inlet:
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
    inlet.check()
    connections = [open("/dev/null") for _ in range(140)]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            inlet.check()
        except RuntimeError as error:
            said = str(error)
            break
        time.sleep(0.05)
    checkpoint = open("/dev/null")
    try:
        Inlet(spec, Discard(), host=host).__enter__()
    except RuntimeError as error:
        assert "ulimit -n" in str(error)
        raise SystemExit(said) from None
"""


@pytest.mark.parametrize("host", ["", "127.0.0.1"], ids=["ipc", "tcp"])
def test_few_files_end_the_reception_while_some_are_left(host):
    """The soft limit is raised; near the hard one there is an error, and room for a checkpoint."""
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, host],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert re.match(
        r"Files .* may still open: expected at least 50, got \d+ of 200\. .*ulimit -n",
        said,
    )
