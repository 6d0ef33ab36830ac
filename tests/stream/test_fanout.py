"""One stream to several inlets: each gets every step, exactly once and in order."""

import contextlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from batch import wait_until
from peers import Ledger

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.stream import Discard, Fanout, Inlet, Outlet, Relay
from surrogate_flow.testing.store import inputs, parameters, trajectory

SPEC = FieldSpec(
    parameters=(Parameter("a", 0.0, 1.0),),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(7,),
    times=tuple(np.arange(1, 61) / 10),
)
SIZE = SPEC.step_bytes
GIVEN = replace(SPEC, inputs=(Variable("p"), Variable("q")))


def simulate(endpoint, number, spec=SPEC, last=SPEC.steps):
    """Send a simulation in pieces of any size; it may end before its last step."""
    chance, step = random.Random(number), 0
    outlet = Outlet(endpoint, spec, number, 0, parameters(spec, number), timeout=30.0)
    with outlet:
        if spec.inputs:
            outlet.give(inputs(spec, number))
        while step < last:
            count = min(chance.choice([1, 1, 3, 9]), last - step)
            outlet.send(trajectory(spec, number, step, count))
            step += count
        outlet.end("steady")


@contextlib.contextmanager
def trials(count, spec=SPEC, host=None, **options):
    """So many ledgers behind inlets, and relays to them."""
    with contextlib.ExitStack() as resources:
        ledgers = [Ledger(spec, seed) for seed in range(count)]
        relays = []
        for ledger in ledgers:
            resources.callback(ledger.end)
            inlet = resources.enter_context(Inlet(spec, ledger, host=host))
            relay = Relay(inlet.endpoint, spec, **options)
            relays.append(resources.enter_context(relay))
        yield ledgers, relays


def whole(*numbers, spec=SPEC):
    """Every step of these simulations, once."""
    return Counter({(n, step): 1 for n in numbers for step in range(spec.steps)})


def arrived(relays):
    """Wait until nothing is on its way; raise what went wrong."""
    wait_until(lambda: all(relay.idle for relay in relays))
    for relay in relays:
        relay.check()
        assert not relay.lost


@pytest.mark.parametrize("spec", [SPEC, GIVEN], ids=["", "inputs"])
@pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["ipc", "tcp"])
def test_every_trial_gets_every_step_once(host, spec):
    """Each takes them at its own pace, input fields too; none holds more than its backlog."""
    with trials(3, spec, host=host, backlog=10 * SIZE) as (ledgers, relays):
        fanout = Fanout()
        for number, relay in enumerate(relays):
            fanout.add(f"trial {number}", relay)
        with Inlet(spec, fanout) as hub, ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(simulate, hub.endpoint, n, spec) for n in range(12)]
            for run in runs:
                run.result()
            hub.check()
        arrived(relays)
        for ledger in ledgers:
            assert not ledger.wrong
            assert ledger.steps == whole(*range(12))
            assert ledger.closed == {(n, True): 1 for n in range(12)}
        assert [*fanout.streamed("trial 0")] == [*range(12)]


def test_the_slowest_holds_up_the_others_or_misses_the_rest():
    """As is asked for; held-out simulations always arrive whole."""
    for late in ("wait", "drop"):
        slow, fast = Ledger(SPEC), Ledger(SPEC)
        slow.room = 25
        fanout = Fanout(late=late, held_out=1)
        fanout.add("slow", slow)
        fanout.add("fast", fast)
        with Inlet(SPEC, fanout) as hub, ThreadPoolExecutor(1) as pool:
            run = pool.submit(simulate, hub.endpoint, 1)
            if late == "wait":
                slow.wait_for(25)
                held = pool.submit(simulate, hub.endpoint, 0)
                assert not run.done()
                slow.make_room(None)
                held.result()
            run.result()
            slow.make_room(None)
            if late == "drop":
                simulate(hub.endpoint, 0)
        assert fast.steps == whole(0, 1)
        missed = [*fanout.dropped("slow")]
        streamed = [*fanout.streamed("slow")]
        if late == "wait":
            assert slow.steps == whole(0, 1)
            assert (missed, streamed) == ([], [0, 1])
        else:
            # In order, up to where it was full.
            assert slow.steps == whole(0) + Counter({(1, s): 1 for s in range(25)})
            assert (missed, streamed) == ([1], [0])
            assert slow.closed == {(1, False): 1, (0, True): 1}
            # What it has missed is known when it comes again.
            fanout.remove("slow")
            fanout.add("slow", Discard())
            assert [*fanout.dropped("slow")] == [1]
        slow.end()
        fast.end()
        assert not slow.wrong


def test_held_out_simulations_overtake_those_that_wait_for_them():
    """A trainer that waits for them before it trains is full, and so is its relay."""

    class Trainer(Ledger):
        def offer(self, simulation, first, steps, vector):
            if simulation:
                return super().offer(simulation, first, steps, vector)
            room, self.room = self.room, None
            taken = super().offer(simulation, first, steps, vector)
            self.room = room
            return taken

        def priority(self, simulation):
            return 0 if simulation else 2

    trainer, small = Trainer(SPEC), {"budget": 8 * SIZE, "coalesce_bytes": SIZE}
    trainer.room = 20
    relay = {"backlog": 16 * SIZE, "held_out": 1}
    with (
        Inlet(SPEC, trainer, **small) as inlet,
        Relay(inlet.endpoint, SPEC, **relay) as relay,
    ):
        fanout = Fanout(held_out=1)
        fanout.add("trial", relay)
        with Inlet(SPEC, fanout, **small) as hub, ThreadPoolExecutor(3) as pool:
            runs = [pool.submit(simulate, hub.endpoint, n) for n in (1, 2)]
            wait_until(fanout.waiting)
            held_out = pool.submit(simulate, hub.endpoint, 0)
            try:
                wait_until(lambda: trainer.closed[0, True])
            finally:
                trainer.make_room(None)
            for run in (held_out, *runs):
                run.result()
        arrived([relay])
    assert trainer.steps == whole(0, 1, 2)
    assert not trainer.wrong
    trainer.end()


def test_steps_wait_for_the_first_trial_and_one_that_comes_later_begins_with_the_next():
    """What it has missed is said."""
    first, later = Ledger(SPEC), Ledger(SPEC)
    fanout = Fanout()
    with Inlet(SPEC, fanout) as hub, ThreadPoolExecutor(1) as pool:
        run = pool.submit(simulate, hub.endpoint, 0)
        wait_until(lambda: hub.stats().waiting)
        assert "nobody" in fanout.waiting()
        first.room = 5
        fanout.add("first", first)
        first.wait_for(5)
        fanout.add("later", later)
        with pytest.raises(ValueError, match="there already"):
            fanout.add("later", later)
        first.make_room(None)
        run.result()
        simulate(hub.endpoint, 1)
    assert first.steps == whole(0, 1)
    assert later.steps == whole(1)
    assert [*fanout.streamed("later")] == [1]
    first.end()
    later.end()


def test_one_that_is_removed_holds_up_nobody():
    """In the middle of a simulation; without any other its rest is let go."""
    stuck, other = Ledger(SPEC), Ledger(SPEC)
    stuck.room = 5
    fanout = Fanout()
    fanout.add("stuck", stuck)
    with Inlet(SPEC, fanout) as hub, ThreadPoolExecutor(1) as pool:
        run = pool.submit(simulate, hub.endpoint, 0)
        stuck.wait_for(5)
        fanout.remove("stuck")
        fanout.remove("stuck")
        fanout.add("other", other)
        run.result()
        simulate(hub.endpoint, 1)
    assert other.steps == whole(1)
    assert [*fanout.streamed("other")] == [1]
    stuck.end()
    other.end()


def test_an_inlet_that_is_gone_is_lost_and_takes_everything():
    """After the time it had to answer."""
    with Inlet(SPEC, Discard()) as inlet:
        endpoint = inlet.endpoint
    with Relay(endpoint, SPEC, timeout=1.0, backlog=4 * SIZE) as relay:
        fanout = Fanout()
        fanout.add("gone", relay)
        with Inlet(SPEC, fanout) as hub:
            simulate(hub.endpoint, 0)
        assert "never answered" in relay.lost
        assert relay.waiting() == ""


def test_a_trial_goes_on_where_it_was_and_may_want_no_more():
    """It wants the steps from its next one on; then it stops."""

    class Half(Ledger):
        def open(self, simulation):
            self.steps.update((simulation, step) for step in range(30))
            return 30

    half = Half(SPEC)
    with Inlet(SPEC, half) as inlet, Relay(inlet.endpoint, SPEC) as relay:
        fanout = Fanout()
        fanout.add("half", relay)
        with Inlet(SPEC, fanout) as hub:
            simulate(hub.endpoint, 0)
            arrived([relay])
            assert half.steps == whole(0)
            inlet.stop_outlets("the training has ended")
            simulate(hub.endpoint, 1)
        arrived([relay])
    assert half.steps == whole(0)
    assert not half.wrong
    half.end()


def test_a_simulation_that_fails_is_left_in_all():
    """Its connection is closed, and the backlog is free again."""
    with trials(2) as (ledgers, relays):
        fanout = Fanout()
        for number, relay in enumerate(relays):
            fanout.add(f"{number}", relay)
        with Inlet(SPEC, fanout) as hub:
            with (
                pytest.raises(ZeroDivisionError),
                Outlet(hub.endpoint, SPEC, 0, 0, parameters(SPEC, 0)) as outlet,
            ):
                outlet.send(trajectory(SPEC, 0, 0, 9))
                raise ZeroDivisionError
            for ledger in ledgers:
                ledger.wait_for(9)
            hub.give_up(0)
            arrived(relays)
            simulate(hub.endpoint, 1)
        arrived(relays)
        assert all(ledger.closed == {(1, True): 1} for ledger in ledgers)


def test_an_early_end_is_one_in_all():
    """Each trial hears after how many steps, and why."""
    with trials(2, backlog=10 * SIZE) as (ledgers, relays):
        fanout = Fanout()
        for number, relay in enumerate(relays):
            fanout.add(f"{number}", relay)
        with Inlet(SPEC, fanout) as hub:
            for number in (1, 30, SPEC.steps):
                simulate(hub.endpoint, number, last=number)
        arrived(relays)
        for ledger in ledgers:
            steps = Counter((n, k) for n in (1, 30, SPEC.steps) for k in range(n))
            assert ledger.steps == steps
            assert ledger.early == {1: "steady", 30: "steady"}


def test_two_ranks_deal_the_simulations_among_them():
    """By number; what a rank that is not there yet would get is let go."""
    sinks = [Ledger(SPEC) for _ in range(2)]
    fanout = Fanout()
    with Inlet(SPEC, fanout) as hub:
        fanout.add("0", sinks[0], (0, 2))
        simulate(hub.endpoint, 1)
        fanout.add("1", sinks[1], (1, 2))
        for number in (2, 3, 4):
            simulate(hub.endpoint, number)
    assert [sink.steps for sink in sinks] == [whole(2, 4), whole(3)]
    for sink in sinks:
        sink.end()
