"""The stores between simulations and training."""

import contextlib
import gc
import itertools
import math
import threading
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct, Window
from surrogate_flow.reservoir import (
    FIFO,
    FIRO,
    DeviceMemory,
    HostMemory,
    Memory,
    Reservoir,
    SamplesPerInsert,
    Store,
    stats,
)
from surrogate_flow.testing import store as laws


@dataclass(frozen=True)
class Sliding(Window):
    """A window of somebody else: any span and stride, unchecked."""

    span_: int = 3
    stride_: int = 1

    @property
    def inputs(self):
        return self.span_ - 1

    @property
    def outputs(self):
        return 1

    @property
    def stride(self):
        return self.stride_


def make_spec(steps=20, cells=3, inputs=()):
    """A spec of two variables and two parameters."""
    return FieldSpec(
        parameters=(Parameter("a", 0, 1), Parameter("b", 0, 1)),
        variables=(Variable("u"), Variable("v")),
        dims=("x",),
        shape=(cells,),
        times=tuple(float(t) for t in range(steps)),
        inputs=inputs,
    )


#: Three, where a step has two variables.
INPUTS = (Variable("p"), Variable("q"), Variable("r"))
WINDOWS = [
    Direct(),
    Autoregressive(2),
    Autoregressive(1, 2, stride=2),
    Autoregressive(1, 1, stride=3),
    Autoregressive(3, 1, stride=4),
    Autoregressive(1, 1, unroll=2),
]


def make_store(
    policy,
    window,
    steps=20,
    capacity=40,
    batch_size=4,
    seed=0,
    inputs=(),
    simulations=None,
    **options,
):
    """A small store of the named policy."""
    spec = make_spec(steps, inputs=inputs)
    if policy == "FIFO":
        memory = options.get("memory", HostMemory)
        policy = FIFO(capacity=capacity, memory=memory)
        return Store(spec, window, batch_size, policy, simulations)
    options = {"capacity": capacity, "threshold": 6, "seed": seed, **options}
    if policy == "FIRO":
        return Store(spec, window, batch_size, FIRO(**options), simulations)
    if policy == "device":
        options = {"memory": DeviceMemory, **options}
    if policy == "limited":
        options = {"limiter": SamplesPerInsert(2.0, 6.0), **options}
    return Store(spec, window, batch_size, Reservoir(**options), simulations)


def offer(store, simulation, first, count):
    """Offer steps that tell what they are."""
    return store.offer(
        simulation,
        first,
        laws.trajectory(store.spec, simulation, first, count),
        laws.parameters(store.spec, simulation),
        laws.inputs(store.spec, simulation),
    )


class PausedMemory(Memory):
    """Host memory in which one kind of copy waits until it may go on."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.inner = HostMemory(*shape)
        self.paused = ""
        self.begun, self.go_on = threading.Event(), threading.Event()

    def pause(self, copy):
        """Let all copies of a kind wait from now on: write, gather or batch."""
        self.paused = copy

    def _copy(self, name, *arguments):
        if name == self.paused:
            self.begun.set()
            assert self.go_on.wait(30)
        return getattr(self.inner, name)(*arguments)

    def write(self, slots, steps):
        self._copy("write", slots, steps)

    def gather(self, slots, out):
        self._copy("gather", slots, out)

    def batch(self, slots, count):
        return self._copy("batch", slots, count)

    def host(self, fields):
        return fields


def paused_store(policy, window, copy="", **options):
    """A store, and its memory, in which a kind of copy waits."""
    memories = []

    def memory(*shape):
        memories.append(PausedMemory(*shape))
        return memories[0]

    store = make_store(policy, window, memory=memory, **options)
    memories[0].pause(copy)
    return store, memories[0]


POLICIES = ["FIFO", "FIRO", "Reservoir", "limited", "device"]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_laws(policy, window):
    """Every policy obeys the laws, with and without shared steps."""
    once = policy in ("FIFO", "FIRO")
    if policy == "limited":
        # Its simulations wait for the band before the store is full.
        store = make_store(policy, window)
        for draw in laws.run_store(store, 12):
            laws.check_draw(store, draw)
    else:
        laws.check_store(lambda: make_store(policy, window), once=once)


@pytest.mark.parametrize("window", [WINDOWS[0], *WINDOWS[3:]], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_laws_with_input_fields(policy, window):
    """Each sample has those of its simulation, which are held as long as its steps."""
    make = partial(make_store, policy, window, inputs=INPUTS)
    if policy == "limited":
        store = make()
        for draw in laws.run_store(store, 12):
            laws.check_draw(store, draw)
    else:
        laws.check_store(make, once=policy in ("FIFO", "FIRO"))


@pytest.mark.parametrize("policy", POLICIES)
def test_as_many_input_fields_as_steps(policy):
    """Each simulation has a single step: its field leaves with it, and makes room."""
    store = make_store(policy, Direct(), steps=1, inputs=INPUTS)
    draws = laws.run_store(store, 150)
    for draw in draws:
        laws.check_draw(store, draw)
    assert {n for draw in draws for n in draw.simulation.tolist()} == {*range(150)}


def test_input_fields_are_held_once_a_simulation():
    """However many samples of it are held; the batch has the only other copy."""
    store = make_store("FIRO", Direct(), inputs=INPUTS)
    assert offer(store, 0, 0, 20) == offer(store, 1, 0, 20) == 20
    row = store.spec.input_bytes
    assert (store.stats().inputs, store.stats().input_bytes) == (2, 2 * row)
    draw = store.draw(0)
    assert draw.inputs.shape == (4, 3, 3)
    assert draw.inputs.base is not None  # of a pool of batches, not of the store
    assert not np.shares_memory(draw.inputs, store._contents.inputs.slab.memory._steps)
    with pytest.raises(
        ValueError, match=r"expected 3 input fields of \(3,\), got .*None"
    ):
        store.offer(2, 0, laws.trajectory(store.spec, 2, 0, 1), np.zeros(2))


def test_fifo_keeps_the_order():
    """FIFO draws samples in the order in which they became complete."""
    store = make_store("FIFO", Direct())
    arrived, drawn = [], []
    for block in range(10):
        for simulation in (1, 0):
            offer(store, simulation, 2 * block, 2)
            arrived += [(simulation, 2 * block), (simulation, 2 * block + 1)]
        drawn += laws.samples_of(store.draw(0))
    assert drawn == arrived


def test_reservoir_evicts_only_what_was_seen():
    """A full reservoir of unseen samples takes nothing, and a draw makes room."""
    store = make_store("Reservoir", Direct(), capacity=20)
    rooms = []
    store.on_room(lambda: rooms.append(store.stats()))
    assert offer(store, 0, 0, 20) == 20
    assert offer(store, 1, 0, 5) == 0
    assert "20 of 20 samples unseen" in store.waiting()
    seen = set(laws.samples_of(store.draw(0)))
    assert rooms[-1].batches == 1, "called after the draw, without the lock"
    assert offer(store, 1, 0, 20) == len(seen)
    assert seen.isdisjoint(store.samples())
    assert store.stats().evicted == len(seen)


def test_end_of_reception_lets_short_batches_go():
    """Below the threshold nothing is drawn until reception ends, then everything."""
    for policy in POLICIES:
        store = make_store(policy, Direct(), batch_size=6)
        offer(store, 0, 0, 5)
        with pytest.raises(TimeoutError, match="5 of 6 samples"):
            store.draw(0)
        store.end_reception()
        assert store.wait_threshold(None)
        assert len(store.draw(0).step) == 5
        assert store.draw(0) is None
        assert not store.wait_threshold(None)
        with pytest.raises(RuntimeError, match="after the end of reception"):
            offer(store, 0, 5, 1)


def test_close_releases_incomplete_samples():
    """What only incomplete samples hold is free once the simulation is closed."""
    store = make_store("FIFO", Autoregressive(2), batch_size=1)
    offer(store, 0, 0, 4)
    offer(store, 1, 0, 2)
    assert (store.stats().steps, store.stats().unfinished) == (6, 2)
    store.close(0, complete=True)
    store.close(1, complete=True)
    store.close(99, complete=True)
    assert (store.stats().steps, store.stats().unfinished) == (4, 0)
    for _ in range(2):
        laws.check_draw(store, store.draw(0))
    assert store.stats().steps == 0
    assert offer(store, 1, 0, 2) == 2


def test_whole_simulation_holds_no_tail():
    """After its last step a simulation holds nothing for windows to come."""
    store = make_store("FIFO", Autoregressive(2), steps=5, batch_size=3)
    offer(store, 0, 0, 5)
    assert store.stats().unfinished == 0
    assert len(store.draw(0).step) == 3
    assert store.stats().steps == 0


def test_too_many_simulations_wait_for_their_turn():
    """New simulations wait while the unfinished ones could fill the store."""
    store = make_store("FIFO", Autoregressive(4), capacity=20, batch_size=1)
    taken = [offer(store, simulation, 0, 4) for simulation in range(6)]
    assert taken == [4, 4, 4, 4, 0, 0]
    assert "4 unfinished simulations" in store.waiting()
    assert "raise capacity" in store.waiting()
    store.close(0, complete=True)
    assert offer(store, 4, 0, 4) == 4


def test_shared_steps_full_below_the_threshold():
    """A store full of unfinished windows gives what it has rather than wait."""
    store = make_store("FIRO", Autoregressive(2), capacity=13, threshold=10)
    for simulation in range(5):
        offer(store, simulation, 0, 2)
    assert offer(store, 0, 2, 3) == 3
    draw = store.draw(0)
    assert sorted(draw.step) == [0, 1, 2]


@pytest.mark.parametrize("policy", POLICIES)
def test_wrong_steps_are_refused(policy):
    """Steps out of order, beyond the end or of a wrong shape say what was expected."""
    store = make_store(policy, Direct())
    offer(store, 7, 0, 3)
    with pytest.raises(ValueError, match="Simulation 7: expected step 3 next, got st"):
        offer(store, 7, 4, 1)
    with pytest.raises(ValueError, match="Simulation 8: expected step 0 next, got st"):
        offer(store, 8, 1, 1)
    with pytest.raises(ValueError, match="expected 20 steps in all, got steps 3 to 20"):
        offer(store, 7, 3, 18)
    with pytest.raises(
        ValueError, match=r"expected steps of shape \(time, 2, 3\), got"
    ):
        store.offer(7, 3, np.zeros((1, 3, 2), "f"), np.zeros(2))
    with pytest.raises(ValueError, match="expected 2 parameters, got the shape"):
        store.offer(7, 3, np.zeros((1, 2, 3), "f"), np.zeros(3))
    assert offer(store, 7, 3, 0) == 0
    assert offer(store, 7, 3, 2) == 2


@pytest.mark.parametrize(
    ("window", "settings", "words"),
    [
        (Direct(), {"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        (Direct(), {"threshold": 0}, "threshold: expected at least 1, got 0"),
        (Direct(), {"capacity": 0}, "at least one step"),
        (Direct(), {"capacity": 5}, "threshold <= 5 samples"),
        (Direct(), {"batch_size": 41}, "batch_size <= 40 samples"),
        (Direct(), {"capacity": "10 B"}, "at least one step"),
        (Direct(), {"capacity": "100 B"}, "threshold <= 4 samples"),
        (Direct(), {"capacity": "100"}, "with its unit"),
        (Direct(), {"capacity": "much"}, "'2 GiB'"),
        (Autoregressive(5), {"capacity": 5, "threshold": 1}, "capacity >= 6 steps"),
        (Autoregressive(20), {}, "at least 21 steps"),
        (Autoregressive(2, stride=2), {"capacity": 12}, "threshold <= 5 samples"),
        (Sliding(3, 0), {}, "window.stride: expected at least 1"),
        (Direct(), {"limiter": SamplesPerInsert(4.0, 3.9)}, "tolerance >= .* = 4"),
    ],
)
def test_deadlocking_settings_are_refused(window, settings, words):
    """The constructor names the setting, what it got, and what would work."""
    with pytest.raises((UserError, ValueError), match=words):
        make_store("Reservoir", window, **settings)


@pytest.mark.parametrize(("ratio", "tolerance"), [(0, 1), (1, 0), (np.nan, 1)])
def test_limiter_refuses_nonsense(ratio, tolerance):
    """Ratio and tolerance are positive numbers."""
    with pytest.raises(
        UserError, match=r"SamplesPerInsert\.\w+: expected a number > 0"
    ):
        SamplesPerInsert(ratio, tolerance)


def test_capacity_in_bytes():
    """A size in bytes holds as many whole steps as fit."""
    store = make_store("FIFO", Direct(), capacity="1 kB")
    assert store.capacity == 1000 // 24
    assert store.stats().capacity_bytes == 41 * 24


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_accepted_settings_do_not_deadlock(data):
    """Whatever the constructor accepts lets producers and trainer finish."""
    span = data.draw(st.integers(1, 4), "span")
    window = Sliding(span, data.draw(st.integers(1, 5), "stride"))
    steps = data.draw(st.integers(1, 12), "steps")
    policy = data.draw(st.sampled_from(POLICIES), "policy")
    live = data.draw(st.integers(1, 5), "live")
    ratio = data.draw(st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0, 7.0]), "ratio")
    batch_size = data.draw(st.integers(1, 6), "batch_size")
    extra = data.draw(st.sampled_from([0.0, 0.1, 3.0]), "tolerance")
    options = {"threshold": data.draw(st.integers(1, 12), "threshold")}
    if policy == "limited":
        options["limiter"] = SamplesPerInsert(ratio, (ratio + batch_size) / 2 + extra)
    if policy == "FIFO":
        options = {}
    try:
        store = make_store(
            policy,
            window,
            steps=steps,
            capacity=data.draw(st.integers(1, 14), "capacity"),
            batch_size=batch_size,
            seed=data.draw(st.integers(0, 99), "seed"),
            **options,
        )
    except (UserError, ValueError):
        return
    block = data.draw(st.integers(1, 6), "block")
    next_step = dict.fromkeys(range(12), 0)
    seen = set()

    def offer_one(simulation):
        first = next_step[simulation]
        taken = offer(store, simulation, first, min(block, steps - first))
        next_step[simulation] += taken
        if next_step[simulation] == steps:
            del next_step[simulation]
        return taken > 0

    def draw_one():
        try:
            draw = store.draw(0)
        except TimeoutError:
            return False
        laws.check_draw(store, draw)
        assert 1 <= len(draw.step) <= batch_size
        seen.update(laws.samples_of(draw))
        return True

    eager = data.draw(st.sampled_from(["offer", "draw", "both"]), "eager")
    draws = 0
    while next_step:
        offered = False
        for simulation in list(next_step)[:live]:
            offered |= offer_one(simulation)
        drawn = (eager != "offer" or not offered) and draw_one()
        while eager == "draw" and drawn and draws < 2000 and draw_one():
            draws += 1
        assert offered or drawn, f"deadlock: {store.waiting()}"
    store.end_reception()
    while (draw := store.draw(0)) is not None:
        seen.update(laws.samples_of(draw))
    starts = range(0, steps - span + 1, window.stride)
    assert seen == {(simulation, k) for simulation in range(12) for k in starts}


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls, against lists of the samples that should be there."""

    policy = ""

    @initialize(window=st.sampled_from(WINDOWS), seed=st.integers(0, 9))
    def start(self, window, seed):
        """Begin with an empty store and an empty model."""
        options = {"capacity": 16, "batch_size": 3, "threshold": 4, "seed": seed}
        self.store = make_store(self.policy, window, steps=9, **options)
        self.next_step, self.unseen, self.seen = {}, [], set()
        self.born = 0

    def windows(self, steps):
        """The windows that so many first steps complete."""
        window = self.store.window
        return [k for k in range(0, steps, window.stride) if k + window.span <= steps]

    def held(self):
        """The steps that samples and windows to come need."""
        window = self.store.window
        steps = {
            (simulation, k + i)
            for simulation, k in (*self.unseen, *self.seen)
            for i in range(window.span)
        }
        for simulation, end in self.next_step.items():
            done = set(self.windows(end))
            for k in set(self.windows(9)) - done:
                steps |= {(simulation, i) for i in range(k, min(k + window.span, end))}
        return steps

    @rule(which=st.integers(0, 3), count=st.integers(1, 6))
    def offer(self, which, count):
        """Offer the next steps of an old or a new simulation."""
        live = list(self.next_step)
        simulation = live[which] if which < len(live) else self.born
        first = self.next_step.get(simulation, 0)
        count = min(count, 9 - first)
        before = self.store.stats().unfinished
        taken = offer(self.store, simulation, first, count)
        if simulation == self.born and taken:
            self.born += 1
        new = [(simulation, k) for k in self.windows(first + taken)]
        new = new[len(self.windows(first)) :]
        if taken:
            self.next_step[simulation] = first + taken
        present = set(self.store.samples())
        assert set(new) <= present
        assert set(self.unseen) <= present, "an unseen sample is never evicted"
        self.unseen += new
        assert present <= set(self.unseen) | self.seen
        full = len(self.held()) + (count - taken) > 16
        self.seen &= present
        mine = simulation in self.next_step
        crowded = (before + 1) * (self.store.window.span - 1) >= 16 and not mine
        if taken < count and not crowded:
            assert full
            assert not self.seen, "waits only if nothing seen is left"
            assert len(self.held()) == 16

    @rule(which=st.integers(0, 3))
    def forget(self, which):
        """Give up a simulation."""
        live = list(self.next_step)
        if which < len(live):
            self.store.close(live[which], complete=True)
            del self.next_step[live[which]]

    @rule()
    def draw(self):
        """Draw a batch, if there may be one."""
        population = len(self.unseen) + len(self.seen)
        needed = {"FIFO": 3, "FIRO": 4, "Reservoir": 4}[self.policy]
        try:
            draw = self.store.draw(0)
        except TimeoutError:
            assert population < needed
            return
        laws.check_draw(self.store, draw)
        samples = laws.samples_of(draw)
        assert set(samples) <= set(self.unseen) | self.seen
        if self.policy == "FIFO":
            assert samples == self.unseen[:3]
        if self.policy != "Reservoir":
            assert len(set(samples)) == len(samples)
        else:
            self.seen |= set(samples)
        self.unseen = [sample for sample in self.unseen if sample not in samples]

    @invariant()
    def agrees(self):
        """Samples, slots and simulations are those of the model."""
        if not hasattr(self, "store"):
            return
        counters = self.store.stats()
        assert counters.unseen == len(self.unseen)
        assert counters.population == len(self.unseen) + len(self.seen)
        assert sorted(self.store.samples()) == sorted([*self.unseen, *self.seen])
        assert counters.steps == len(self.held())

    def teardown(self):
        """At the end, all that is left is drawn once and every slot is free."""
        if hasattr(self, "store"):
            self.store.end_reception()
            left = []
            while (draw := self.store.draw(0)) is not None:
                laws.check_draw(self.store, draw)
                left += laws.samples_of(draw)
            assert sorted(left) == sorted([*self.unseen, *self.seen])
            assert self.store.stats().steps == 0


class FIFOMachine(StoreMachine):
    """Any order of calls of a FIFO."""

    policy = "FIFO"


class FIROMachine(StoreMachine):
    """Any order of calls of a FIRO."""

    policy = "FIRO"


class ReservoirMachine(StoreMachine):
    """Any order of calls of a Reservoir."""

    policy = "Reservoir"


for machine in (FIFOMachine, FIROMachine, ReservoirMachine):
    machine.TestCase.settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None
    )
TestFIFO = FIFOMachine.TestCase
TestFIRO = FIROMachine.TestCase
TestReservoir = ReservoirMachine.TestCase


@pytest.mark.parametrize("producers", [1, 2])
@pytest.mark.parametrize("window", [Direct(), Autoregressive(2)], ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_threads(policy, window, producers):
    """With producers and trainer in threads nothing is lost, torn or drawn unduly."""
    store = make_store(policy, window)
    errors = []
    simulations = 60

    def produce(mine):
        try:
            random, producer = np.random.default_rng(mine[0]), laws.Producer(store)
            for simulation in mine:
                first = 0
                while first < 20:
                    count = min(int(random.integers(1, 12)), 20 - first)
                    assert producer.put(simulation, first, count) == count
                    first += count
                store.close(simulation, complete=True)
        except BaseException as error:
            errors.append(error)
            store.stop()

    threads = [
        threading.Thread(target=produce, args=(range(i, simulations, producers),))
        for i in range(producers)
    ]

    def finish():
        for thread in threads:
            thread.join()
        store.end_reception()

    threads_and_end = [*threads, threading.Thread(target=finish)]
    for thread in threads_and_end:
        thread.start()
    drawn = []
    while (draw := store.draw(timeout=30)) is not None:
        laws.check_draw(store, draw)
        drawn += laws.samples_of(draw)
        counters = store.stats()
        assert counters.steps <= counters.capacity
    threads_and_end[-1].join(30)
    assert not errors
    starts = range(0, 20 - window.span + 1, window.stride)
    assert set(drawn) == {(s, k) for s in range(simulations) for k in starts}
    if policy in ("FIFO", "FIRO"):
        assert len(drawn) == len(set(drawn))
    assert store.stats().steps == 0


def test_a_copy_under_way_outlives_the_end_of_reception():
    """Steps that are being copied in when reception ends are drawn, too."""
    store, memory = paused_store("FIFO", Autoregressive(2), "write")
    thread = threading.Thread(target=offer, args=(store, 0, 0, 5))
    thread.start()
    assert memory.begun.wait(30)
    store.end_reception()
    with pytest.raises(TimeoutError, match="0 of 4 samples"):
        store.draw(0)
    memory.go_on.set()
    draw = store.draw(timeout=30)
    laws.check_draw(store, draw)
    thread.join(30)
    assert draw.step.tolist() == [0, 1, 2]
    assert store.draw(0) is None
    assert store.stats().steps == 0


def test_batches_stay_while_anybody_holds_them():
    """Memory of a batch comes back only when its last array and tensor are gone."""
    store = make_store("Reservoir", Direct())
    offer(store, 0, 0, 20)
    tensor = torch.from_numpy(store.draw(0).fields)[1:3, 0, 1]
    before = tensor.clone()
    addresses = set()
    for _ in range(20):
        draw = store.draw(0)
        addresses.add(draw.fields.ctypes.data)
    assert torch.equal(tensor, before)
    gc.collect()
    assert len(addresses) <= 3, "batches that nobody holds are recycled"
    assert not np.shares_memory(draw.fields, tensor.numpy())


@pytest.mark.parametrize("policy", ["FIRO", "Reservoir"])
def test_draws_are_uniform(policy):
    """Every sample held is drawn equally often, by a chi-square test."""
    times = np.zeros(20)
    for seed in range(300):
        store = make_store(policy, Direct(), seed=seed)
        offer(store, 0, 0, 20)
        np.add.at(times, store.draw(0).step, 1)
    assert scipy.stats.chisquare(times).pvalue > 1e-3


def test_evictions_are_uniform():
    """Every seen sample makes room equally often, whatever its age."""
    spec = make_spec(steps=2000)
    store = Store(spec, Direct(), 40, Reservoir(capacity=20 * 2, threshold=1, seed=3))
    offer(store, 0, 0, 40)
    ranks = np.zeros(20)
    for step in range(40, 2000):
        while store.stats().unseen:
            store.draw(0)
        before = sorted(store.samples())
        offer(store, 0, step, 1)
        (gone,) = set(before) - set(store.samples())
        ranks[before.index(gone) // 2] += 1
    assert scipy.stats.chisquare(ranks).pvalue > 1e-3


def test_limiter_holds_the_ratio():
    """The number of draws keeps within the band around `ratio` times the inserts."""
    limiter = SamplesPerInsert(ratio=4.0, tolerance=12.0)
    store = make_store("Reservoir", Direct(), limiter=limiter, steps=300)
    step, random = 0, np.random.default_rng(0)
    waited = set()
    while step < 300:
        if random.random() < 0.5:
            taken = offer(store, 0, step, 1)
            waited |= {"put"} if not taken else set()
            step += taken
        else:
            try:
                store.draw(0)
            except TimeoutError as error:
                waited |= {"draw"} if "limiter" in str(error) else set()
        now = store.stats()
        if now.inserted > store.threshold:
            assert abs(4.0 * (now.inserted - store.threshold) - now.drawn) <= 12.0
    assert waited == {"put", "draw"}


def test_limiter_does_not_starve_an_empty_store():
    """Where windows to come have pushed out all samples, an insert needs no batch."""
    options = {"capacity": 4, "threshold": 1, "batch_size": 1}
    limiter = SamplesPerInsert(ratio=10.0, tolerance=5.5)
    store = make_store("Reservoir", Autoregressive(2), 4, limiter=limiter, **options)
    step = offer(store, 0, 0, 4)
    while step < 4 or store.stats().unseen:
        if step < 4:
            step += offer(store, 0, step, 1)
        store.draw(0)
    assert offer(store, 1, 0, 3) == 2
    assert store.stats().population == 0
    assert offer(store, 1, 2, 1) == 1


@pytest.mark.parametrize("window", [Direct(), Autoregressive(2)], ids=str)
def test_moments(window):
    """Mean and standard deviation are those of the stored steps, each counted once."""
    store = make_store("FIFO", window)
    with pytest.raises(RuntimeError, match="wait_threshold"):
        store.moments()
    offer(store, 0, 0, 20)
    offer(store, 1, 0, 15)
    steps = np.concatenate(
        [laws.trajectory(store.spec, 0, 0, 20), laws.trajectory(store.spec, 1, 0, 15)]
    ).astype(np.float64)
    mean, std = store.moments()
    np.testing.assert_allclose(mean, steps.mean(axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, steps.std(axis=(0, 2)), rtol=1e-9)
    assert store.stats().steps == 35


def test_waits_are_counted():
    """StoreStats say for how long each side was held up."""
    store = make_store("FIFO", Direct(), capacity=6)
    assert store.stats().put_wait == store.stats().draw_wait == 0
    with pytest.raises(TimeoutError):
        store.draw(0.002)
    assert store.stats().draw_wait >= 0.002
    assert laws.Producer(store).put(0, 0, 10, timeout=0.02) == 6
    assert store.stats().put_wait >= 0.002
    store.draw(0)
    assert offer(store, 0, 6, 2) == 2
    assert store.waiting() == ""


def test_who_is_gone_waits_no_longer():
    """A simulation that was refused and given up holds nobody up, and no clock runs."""
    store = make_store("FIFO", Direct(), capacity=4)
    assert offer(store, 0, 0, 6) == 4
    assert "simulations wait: 4 of 4 samples unseen" in store.waiting()
    store.close(0, complete=True)
    assert store.waiting() == ""
    assert not store.held_up
    waited = store.stats().put_wait
    assert offer(store, 1, 0, 1) == 0
    store.end_reception()
    assert store.waiting() == ""
    after = store.stats().put_wait
    assert waited < after == store.stats().put_wait


def test_who_still_waits_is_told_while_others_are_let_in():
    """The steps of one simulation do not hide that another one waits."""
    store = make_store("FIFO", Autoregressive(4), capacity=20, batch_size=1)
    assert [offer(store, number, 0, 4) for number in range(5)] == [4, 4, 4, 4, 0]
    before = store.stats().put_wait
    assert offer(store, 0, 4, 1) == 1
    assert "4 unfinished simulations hold" in store.waiting()
    assert store.stats().put_wait > before
    for number in range(4):
        store.close(number, complete=True)
    assert offer(store, 4, 0, 4) == 4
    assert store.waiting() == ""


@pytest.mark.parametrize("fails", [0, 7], ids=["complete", "some fail"])
@pytest.mark.parametrize("room", [40, 1000], ids=["displacing", "room for all"])
@pytest.mark.parametrize("policy", ["FIFO", "FIRO", "Reservoir", "limited"])
def test_a_batch_says_how_many_follow_it(policy, room, fails):
    """Exactly while the store drains; before, where half of one in five ends early, too much."""
    simulations, steps = 40, 20
    store = make_store(policy, Direct(), steps, room, simulations=simulations)
    at, said = dict.fromkeys((0, 1), 0), []
    coming = iter(range(2, simulations))

    def draw():
        with contextlib.suppress(TimeoutError):
            drawn = store.draw(0)
            if drawn is None:
                return False
            said.append(drawn.remaining)
        return True

    while at:
        for number in [*at]:
            # Every fifth ends early, of those that do.
            end = fails if fails and number % 5 == 0 else steps
            at[number] += offer(store, number, at[number], min(2, end - at[number]))
            if at[number] == end:
                store.close(number, complete=end == steps)
                del at[number]
                at |= {new: 0 for new in itertools.islice(coming, 1)}
        draw()
    store.end_reception()
    while draw():
        pass
    truth = np.arange(len(said))[::-1]
    drain = 1 if policy == "FIFO" else 10
    assert said[-drain:] == [*range(drain)][::-1]
    error = np.abs(said - truth)[len(said) // 4 :]
    assert error.max() < (0.4 if fails else 0.2) * len(said)
    unknown = make_store(policy, Direct(), steps, room)
    for number in range(3):
        offer(unknown, number, 0, steps)
    assert unknown.draw(0).remaining == math.inf


def test_a_stopwatch_is_read_while_another_thread_stops_it(monkeypatch):
    """The trainer's thread starts and stops it; others, that prefetch and report, read it."""
    watch, moments = stats.Stopwatch(), iter([0.0, 5.0, 7.0, 8.0])

    def stopped_meanwhile():
        moment = next(moments)
        if moment == 5.0:
            watch.stop()
        return moment

    # Not the clock itself: threads of other tests have it.
    clock = SimpleNamespace(monotonic=stopped_meanwhile)
    monkeypatch.setattr(stats, "time", clock)
    watch.start()
    assert watch.total == 5.0
    assert not watch.running
    assert watch.total == 7.0
