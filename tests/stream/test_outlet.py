"""Outlets, against a real inlet on a unix socket."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from peers import Ledger, RawOutlet

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.stream import (
    Endpoint,
    Inlet,
    Outlet,
    SpecMismatch,
    StreamRefused,
    StreamStopped,
    StreamTimeout,
    Timing,
    protocol,
)
from surrogate_flow.testing.store import parameters, trajectory

SPEC = FieldSpec(
    parameters=(Parameter("a", 0.0, 1.0),),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(5,),
    times=tuple(np.arange(1, 101) / 10),
)


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


def outlet_of(inlet, simulation=1, attempt=0, **options):
    endpoint = inlet.endpoint if isinstance(inlet, Inlet) else inlet
    vector = parameters(SPEC, simulation)
    return Outlet(endpoint, SPEC, simulation, attempt, vector, **options)


def send_all(outlet, simulation=1, block=1, start=0, stop=SPEC.steps):
    for first in range(start, stop, block):
        count = min(block, stop - first)
        outlet.send(trajectory(SPEC, simulation, first, count))


@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize("size", [1, 4, 13, 10_000])
def test_steps_arrive_whatever_their_grouping(inlet, ledger, block, size):
    """Blocks and messages of any size carry the same steps."""
    with outlet_of(inlet, coalesce_bytes=size * SPEC.step_bytes) as outlet:
        assert (outlet.next_step, outlet.complete) == (0, False)
        send_all(outlet, block=block)
    assert ledger.steps.total() == SPEC.steps == len(ledger.steps)
    assert ledger.closed == {(1, True): 1}


@pytest.mark.parametrize("size", [2, 10_000])
def test_small_steps_are_copied(inlet, ledger, size):
    """An array of less than a message may be written to after all."""
    memory = np.empty((1, 1, 5), np.float32)
    with outlet_of(inlet, coalesce_bytes=size * SPEC.step_bytes) as outlet:
        for step in range(SPEC.steps):
            memory[:] = trajectory(SPEC, 1, step, 1)
            outlet.send(memory)
            memory[:] = np.nan
    assert ledger.steps.total() == SPEC.steps


def test_large_steps_leave_from_where_they_lie():
    """A step of megabytes is not copied, and its memory is given back once it left."""
    spec = FieldSpec((), (Variable("u"),), ("x",), (500_000,), tuple(range(8)))
    ledger = Ledger(spec)
    lent = []
    with Inlet(spec, ledger) as inlet:  # noqa: SIM117
        with Outlet(inlet.endpoint, spec, 1, 0, np.empty(0)) as outlet:
            for step in range(8):
                fields = trajectory(spec, 1, step, 1)
                before = sys.getrefcount(fields)
                outlet.send(fields)
                assert step or sys.getrefcount(fields) > before
                lent.append(weakref.ref(fields))
                del fields
                # This one, the one before it, and one that is just being given back.
                assert sum(array() is not None for array in lent) <= 3
    ledger.end()
    assert not ledger.wrong
    assert ledger.steps.total() == 8


def test_arrays_that_are_not_contiguous_are_taken(inlet, ledger):
    """Views with strides go the long way."""
    with outlet_of(inlet) as outlet:
        wide = np.repeat(trajectory(SPEC, 1, 0, SPEC.steps), 2, axis=2)
        outlet.send(wide[:1, :, ::2])
        outlet.send(wide[1:, :, ::2])
    assert ledger.steps.total() == SPEC.steps


def test_a_quiet_solver_does_not_hold_steps_back(inlet, ledger):
    """The time limit sends what was gathered, without another call."""
    with pytest.raises(SpecMismatch), outlet_of(inlet, coalesce_seconds=0.02) as outlet:
        send_all(outlet, stop=3)
        ledger.wait_for(3)


@pytest.mark.parametrize("block", [1, 4])
def test_a_solver_that_rests_now_and_then(inlet, ledger, block):
    """Messages sent because of the time limit and of the size hold each step once."""
    size = 20 * SPEC.step_bytes
    with outlet_of(inlet, coalesce_bytes=size, coalesce_seconds=0.02) as outlet:
        for start, stop in ((0, 3), (3, 7), (7, 19), (19, 31), (31, 100)):
            send_all(outlet, block=block, start=start, stop=stop)
            ledger.wait_for(stop)
    assert ledger.steps.total() == SPEC.steps == len(ledger.steps)


def test_a_retry_goes_on_where_the_inlet_is(inlet, ledger):
    """Steps that have arrived are skipped, in blocks that end anywhere."""
    with pytest.raises(KeyError), outlet_of(inlet, coalesce_bytes=1) as outlet:
        send_all(outlet, stop=33)
        ledger.wait_for(33)
        raise KeyError("solver")
    with outlet_of(inlet, attempt=1) as outlet:
        assert outlet.next_step == 33
        send_all(outlet, block=10)
    assert ledger.steps.total() == SPEC.steps
    assert inlet.stats().duplicates == 0


def test_a_finished_simulation_is_complete(inlet):
    """A task that runs again needs to compute nothing, and may leave at once."""
    with outlet_of(inlet) as outlet:
        send_all(outlet)
    with outlet_of(inlet, attempt=1) as outlet:
        assert outlet.complete
    with outlet_of(inlet, attempt=2) as outlet:
        send_all(outlet)
    assert inlet.stats().finished == 1


@pytest.mark.parametrize(
    ("stop", "words"), [(0, "yielded nothing at all"), (40, "yielded 40 of 100 steps")]
)
def test_missing_steps_are_an_error(inlet, stop, words):
    """A simulation that ends early is not finished."""
    with pytest.raises(SpecMismatch, match=words), outlet_of(inlet) as outlet:
        send_all(outlet, stop=stop)
    assert inlet.stats().finished == 0


@pytest.mark.parametrize("block", [1, 7])
def test_an_early_end_is_complete_and_says_why(inlet, ledger, block):
    """Where a solver says that it has ended, its steps are all that there are."""
    with outlet_of(inlet) as outlet:
        send_all(outlet, block=block, stop=40)
        outlet.end("steady")
    assert ledger.steps == {(1, step): 1 for step in range(40)}
    assert (ledger.closed, ledger.early) == ({(1, True): 1}, {1: "steady"})
    assert inlet.stats().finished == 1
    with outlet_of(inlet, attempt=1) as outlet:
        assert outlet.complete


def test_an_early_end_has_a_step(inlet, ledger):
    """Of a simulation without any there is nothing to learn: it has failed."""
    words = r"ended before its first step \(steady\)"
    with pytest.raises(SpecMismatch, match=words), outlet_of(inlet) as outlet:
        outlet.end("steady")
    assert not ledger.closed


@pytest.mark.parametrize("ends", [20, 40, 60, 100])
@pytest.mark.parametrize("resumes", [False, True])
def test_a_retry_may_end_elsewhere(inlet, ledger, ends, resumes):
    """No step that has arrived is taken back, and none arrives twice."""
    with pytest.raises(ArithmeticError), outlet_of(inlet) as outlet:
        send_all(outlet, stop=40)
        raise ArithmeticError
    with outlet_of(inlet, attempt=1) as outlet:
        if resumes:
            outlet.skip()
        send_all(outlet, start=40 * resumes, stop=ends)
        outlet.end("steady")
    last = max(40, ends)
    assert ledger.steps == {(1, step): 1 for step in range(last)}
    assert ledger.closed == {(1, True): 1}
    assert ledger.early == ({1: "steady"} if last < 100 else {})


def test_too_many_steps_are_an_error(inlet):
    """There is no step beyond the spec."""
    with outlet_of(inlet) as outlet:
        send_all(outlet)
        for count in (1, 2):
            with pytest.raises(SpecMismatch, match="expected 100 steps in all, got 10"):
                outlet.send(trajectory(SPEC, 1, 0, count))


@pytest.mark.parametrize(
    "steps",
    [
        np.zeros((1, 1, 5)),
        np.zeros((1, 1, 4), "f4"),
        np.zeros((1, 5), "f4"),
        np.zeros((1, 1, 5), ">f4"),
    ],
)
def test_other_arrays_are_refused(inlet, steps):
    """Only float32 of the spec's shape goes out, on the short way and on the long one."""
    with outlet_of(inlet) as outlet:
        with pytest.raises(
            SpecMismatch, match=r"float32 steps of the shape \('time', 1"
        ):
            outlet.send(steps)
        send_all(outlet)


def test_another_study_is_refused(inlet):
    """An outlet left over from another run gets no further than the opening."""
    endpoint = inlet.endpoint
    other = Endpoint(endpoint.address, "other", endpoint.spec)
    with pytest.raises(StreamRefused, match="left over"), outlet_of(other):
        pass


def test_another_spec_is_refused(inlet):
    """The solver on the worker must announce what the trainer expects."""
    endpoint = inlet.endpoint
    other = Endpoint(endpoint.address, endpoint.study, "0123456789abcdef")
    with pytest.raises(StreamRefused, match="differs from the trainer's"):
        outlet_of(other).__enter__()


def stopped_by_flusher(outlet):
    """Wait until the flusher has received an error for the outlet."""
    end = time.monotonic() + 10
    while outlet._error is None and time.monotonic() < end:
        threading.Event().wait(0.005)
    return outlet._error is not None


def test_stop_reaches_a_solver_that_computes(inlet, ledger):
    """The next send after the study's end raises, with the reason."""
    with pytest.raises(StreamStopped, match="max_steps reached"):  # noqa: SIM117
        with outlet_of(inlet, coalesce_seconds=0.01) as outlet:
            send_all(outlet, stop=3)
            ledger.wait_for(3)
            inlet.stop("max_steps reached")
            assert stopped_by_flusher(outlet)
            outlet.send(trajectory(SPEC, 1, 3, 1))


def test_stop_reaches_a_solver_that_waits(inlet, ledger):
    """Waiting for the sink ends with the study."""
    ledger.room = 10
    stopper = threading.Thread(target=lambda: (ledger.wait_for(10), inlet.stop("end")))
    stopper.start()
    with pytest.raises(StreamStopped, match="end"), outlet_of(inlet) as outlet:
        send_all(outlet)
    stopper.join()


def test_silence_is_a_timeout_that_says_so():
    """Where nobody answers, the opening gives up in time and names usual causes."""
    endpoint = Endpoint("ipc:///tmp/flow-nobody-listens", "study", "digest")
    with pytest.raises(StreamTimeout, match=r"0.2 s. It never answered. Usual cause"):
        outlet_of(endpoint, timeout=0.2).__enter__()


def test_a_timeout_carries_the_last_reason(inlet, ledger, monkeypatch):
    """What the inlet said last is what the user reads."""
    ledger.room = 0
    monkeypatch.setattr("surrogate_flow.stream.reception.Reception._end", ignore)
    with pytest.raises(StreamTimeout) as caught, outlet_of(inlet, timeout=1) as outlet:
        outlet._connection._handle(
            protocol.encode(protocol.Wait("6000 of 6000 unseen"))
        )
        send_all(outlet)
    assert "Its last reason to wait: 6000 of 6000 unseen." in str(caught.value)
    assert isinstance(caught.value, TimeoutError)


def ignore(*_):
    """Do nothing."""


def test_words_keep_a_waiting_outlet_alive(ledger):
    """A full sink is no reason to give up while the inlet says why."""
    ledger.room = 0
    told = threading.Event()
    words = []

    def waiting():
        words.append("full")
        if len(words) == 30:
            told.set()
        return "the store is full"

    ledger.waiting = waiting

    def relieve():
        assert told.wait(20)
        ledger.make_room(None)

    helper = threading.Thread(target=relieve)
    helper.start()
    with (
        Inlet(SPEC, ledger, timing=Timing(tick=0.02)) as inlet,
        outlet_of(inlet, timeout=0.5) as outlet,
    ):
        send_all(outlet)
    helper.join()
    assert ledger.steps.total() == SPEC.steps


def test_an_exception_beats_a_flush_that_waits(ledger):
    """A failing solver leaves at once although its outlet waits for credit."""
    ledger.room = 0
    size = SPEC.step_bytes
    with Inlet(SPEC, ledger, budget=4 * size, coalesce_bytes=2 * size) as inlet:
        with pytest.raises(KeyError), outlet_of(inlet, coalesce_seconds=0.01) as outlet:
            send_all(outlet, stop=3)
            with RawOutlet(inlet.endpoint) as raw:
                raw.open(SPEC, 2)
            raise KeyError("solver")
        ledger.make_room(None)


def test_a_flush_that_lacks_credit_asks_for_it(ledger):
    """Steps that wait for their time and for credit leave without another call."""
    size = SPEC.step_bytes
    options = {"budget": 4 * size, "coalesce_bytes": 2 * size}
    with Inlet(SPEC, ledger, **options) as inlet:
        with RawOutlet(inlet.endpoint) as raw:
            raw.open(SPEC, 2)
            with outlet_of(inlet, coalesce_seconds=0.01) as outlet:
                assert outlet._connection._granted == 0, "the other one has it all"
                send_all(outlet, stop=1)
                ledger.wait_for(1)
                send_all(outlet, start=1)
        assert ledger.steps.total() == SPEC.steps


def test_many_outlets_share_one_thread(inlet, ledger):
    """A process with many outlets has one thread for what waits, and then none."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        outlets = [outlet_of(inlet, number, coalesce_seconds=0.02) for number in (1, 2)]
        for outlet in outlets:
            stack.enter_context(outlet)
        for number, outlet in enumerate(outlets, 1):
            send_all(outlet, number, stop=3)
        ledger.wait_for(6)
        more = [thread.name for thread in set(threading.enumerate()) - before]
        assert more == ["flusher"]
        for number, outlet in enumerate(outlets, 1):
            send_all(outlet, number, start=3)
    assert set(threading.enumerate()) == before


def solve_until_killed(endpoint, pipe):
    """Send 30 steps and hang; runs in a process of its own."""
    with outlet_of(endpoint, coalesce_seconds=0.01) as outlet:
        send_all(outlet, stop=30)
        pipe.send("sent")
        threading.Event().wait()


def test_a_killed_process_is_resumed(inlet, ledger):
    """After SIGKILL the next attempt supersedes and goes on."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=solve_until_killed, args=(inlet.endpoint, theirs))
    process.start()
    assert ours.poll(60)
    ledger.wait_for(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with outlet_of(inlet, attempt=1) as outlet:
        assert outlet.next_step == 30
        send_all(outlet, block=9)
    assert ledger.steps.total() == SPEC.steps
    assert inlet.stats().outstanding == 0


def test_an_offer_takes_what_there_is_room_for(ledger):
    """While the sink is full it returns at once; later everything arrives, each step once."""
    ledger.room = 5
    size = SPEC.step_bytes
    options = {"budget": 16 * size, "coalesce_bytes": 4 * size}
    with Inlet(SPEC, ledger, **options) as inlet, outlet_of(inlet) as outlet:
        steps = trajectory(SPEC, 1, 0, SPEC.steps)
        done, pause = 0, threading.Event()
        taken = 1
        while taken:
            begin = time.monotonic()
            taken = outlet.offer(steps[done:])
            assert time.monotonic() - begin < 10
            done += taken
        # What the inlet granted was sent, and one message more waits in the outlet.
        assert 0 < done < SPEC.steps
        ledger.wait_for(5)
        ledger.make_room(None)
        while done < SPEC.steps:
            done += outlet.offer(steps[done : done + 7])
            pause.wait(0.001)
        assert outlet.offer(steps[:0]) == 0
    assert ledger.steps.total() == SPEC.steps == len(ledger.steps)


@pytest.mark.parametrize("size", [1, 8])
def test_offers_and_sends_may_alternate(inlet, ledger, size):
    """Either goes on where the other has stopped, also behind what the inlet has already."""
    with RawOutlet(inlet.endpoint) as raw:
        raw.open(SPEC, 1)
        raw.send(*raw.steps(SPEC, 1, 0, 10))
        ledger.wait_for(10)
    with outlet_of(inlet, attempt=1, coalesce_bytes=size * SPEC.step_bytes) as outlet:
        assert outlet.next_step == 10
        done, chance = 0, random.Random(size)
        while done < SPEC.steps:
            steps = trajectory(
                SPEC, 1, done, min(chance.randint(1, 9), SPEC.steps - done)
            )
            if chance.random() < 0.5:
                done += outlet.offer(steps)
            else:
                outlet.send(steps)
                done += len(steps)
    assert ledger.steps.total() == SPEC.steps == len(ledger.steps)
