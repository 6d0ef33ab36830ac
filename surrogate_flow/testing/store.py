"""The laws of the reservoir's store, under any policy, window and memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Float64

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.reservoir import Draw, Store
from surrogate_flow.testing.law import Laws

__all__ = [
    "Producer",
    "check_draw",
    "check_store",
    "inputs",
    "parameters",
    "run_store",
    "samples_of",
    "trajectory",
]

_SIMULATIONS, _PATIENCE = 12, 30.0
_REFUSED = 300  # offers in a row of which a store takes nothing
_SHOWN = 5  # differences that a message shows


def check_store(make: Callable[[], Store], *, once: bool = False) -> list[str]:
    """Try a store under its policy: filled and drawn from at random, waited for, ended.

    Parameters
    ----------
    make : callable
        Returns a new small store, such as one of 40 steps, always with the same seed.
        It is filled with twelve simulations of its spec.
    once : bool
        Whether the policy promises that each sample is drawn exactly once, rather than
        at least once.

    Returns
    -------
    list of str
        The laws that it keeps.

    Raises
    ------
    LawBroken
        If it breaks one.

    Examples
    --------
    >>> from surrogate_flow.fields import Direct, Variable
    >>> from surrogate_flow.reservoir import FIFO
    >>> spec = FieldSpec((), (Variable("u"),), ("x",), (3,), tuple(range(1, 21)))
    >>> check_store(lambda: Store(spec, Direct(), 4, FIFO(capacity=40)), once=True)[2]
    'each sample is drawn exactly once'
    """
    laws = Laws()
    with laws.law("a store can be made of it"):
        store = make()
    with laws.law(
        "the population stays within the capacity, and each count adds up, at all times"
    ):
        draws = run_store(store, _SIMULATIONS, early=True)
    times = Counter(sample for draw in draws for sample in samples_of(draw))
    window, spec = store.window, store.spec
    with laws.law(f"each sample is drawn {'exactly' if once else 'at least'} once"):
        expected = {
            (s, k * window.stride)
            for s in range(_SIMULATIONS)
            for k in range(window.samples(_length(spec, s)))
        }
        _require_equal("(simulation, first step) that were drawn", set(times), expected)
        assert not once or set(times.values()) == {1}, (
            f"Expected 1 draw of each, got up to {max(times.values())}."
        )
    with laws.law("it counts how often each sample was drawn"):
        histogram = Counter(min(n, 64) for n in times.values())
        counted = store.stats().times_seen
        _require_equal("times_seen", counted, tuple(histogram[n] for n in range(65)))
    with laws.law("a batch holds what was put, and shares no memory with another"):
        # All batches are still held, so shared memory would show.
        for draw in draws:
            check_draw(store, draw)
    with laws.law("the same seed and the same offers give the same batches"):
        again = run_store(make(), _SIMULATIONS, early=True)
        _require_equal("Number of batches", len(again), len(draws))
        for one, other in zip(draws, again, strict=True):
            _require_equal("Samples", samples_of(other), samples_of(one))
    with laws.law("a wait ends at its deadline, and has a reason and a counter"):
        waiting, producer = _check_waits(make())
    with laws.law("stop ends every wait"):
        _check_stop(make(), waiting, producer)
    return laws


def _length(spec: FieldSpec, simulation: int) -> int:
    """Return how many steps a simulation has of which each fourth one ends early."""
    early = simulation % 4 == 3 and spec.steps > 1
    return 1 + simulation % (spec.steps - 1) if early else spec.steps


def trajectory(
    spec: FieldSpec, simulation: int, first: int, count: int
) -> Float32[np.ndarray, "time channel *space"]:
    """Return steps whose every value says which simulation, step and place it is of."""
    step = simulation * 512 + first + np.arange(count)
    place = np.arange(np.prod(spec.step_shape)).reshape(spec.step_shape) % 8
    return (step.reshape(-1, *(1 for _ in spec.step_shape)) * 8 + place).astype("f")


def parameters(spec: FieldSpec, simulation: int) -> Float64[np.ndarray, " parameter"]:
    """Return values of the parameters that say which simulation they are of."""
    return simulation + np.arange(len(spec.parameters)) / 4


def inputs(
    spec: FieldSpec, simulation: int
) -> Float32[np.ndarray, " input *space"] | None:
    """Return input fields that say which simulation they are of; None without any."""
    if not spec.inputs:
        return None
    place = np.arange(np.prod(spec.input_shape)).reshape(spec.input_shape) % 8
    return (simulation * 8 + place).astype("f")


def samples_of(draw: Draw) -> list[tuple[int, int]]:
    """Return (simulation, first step) of the samples of a batch."""
    return list(zip(draw.simulation.tolist(), draw.step.tolist(), strict=True))


def check_draw(store: Store, draw: Draw) -> None:
    """Check that every sample of a batch is what `trajectory` has put.

    Raises
    ------
    AssertionError
        If one is not.
    """
    fields = np.asarray(draw.fields)
    shape = (len(draw.step), store.window.span, *store.spec.step_shape)
    _require_equal("Shape of the fields", fields.shape, shape)
    types = {fields.dtype, draw.parameters.dtype}
    _require_equal("Types", types, {np.dtype(np.float32)})
    types = {draw.simulation.dtype, draw.step.dtype}
    _require_equal("Types of the numbers", types, {np.dtype(np.int64)})
    for i, (simulation, step) in enumerate(samples_of(draw)):
        expected = trajectory(store.spec, simulation, step, store.window.span)
        np.testing.assert_array_equal(fields[i], expected)
        np.testing.assert_array_equal(
            draw.parameters[i], parameters(store.spec, simulation).astype("f")
        )
        if (given := inputs(store.spec, simulation)) is not None:
            assert draw.inputs is not None, "The batch has no input fields."
            np.testing.assert_array_equal(np.asarray(draw.inputs)[i], given)


def run_store(
    store: Store, simulations: int, seed: int = 0, *, early: bool = False
) -> list[Draw]:
    """Offer the steps of simulations, interleaved at random, and draw between.

    Returns
    -------
    list of Draw
        All batches, until the store is empty.

    Raises
    ------
    AssertionError
        If a count of the store is wrong at any moment.
    TimeoutError
        If it takes no step and gives no batch.
    """
    random = np.random.default_rng(seed)
    next_step = dict.fromkeys(range(simulations), 0)
    draws, refused = [], 0
    while next_step:
        simulation = int(random.choice(list(next_step)[:3]))
        first = next_step[simulation]
        last = _length(store.spec, simulation) if early else store.spec.steps
        count = min(int(random.integers(1, 9)), last - first)
        steps = trajectory(store.spec, simulation, first, count)
        vector = parameters(store.spec, simulation)
        given = inputs(store.spec, simulation)
        taken = store.offer(simulation, first, steps, vector, given)
        assert 0 <= taken <= count, f"Of {count} steps it took {taken}."
        next_step[simulation] += taken
        refused = 0 if taken else refused + 1
        assert refused < _REFUSED, (
            f"{refused} times in a row it took no step, with draws between. Usual "
            "cause: drawn samples stay, and the policy's evict returns none. "
            "Override evict, or let take remove what it draws."
        )
        steps[:] = np.nan  # a store copies what it takes
        if given is not None:
            given[:] = np.nan
        _check_counts(store)
        if next_step[simulation] == last:
            del next_step[simulation]
            store.close(simulation, complete=True)
            assert simulation in store.finished, "It is complete, and not finished."
        if taken < count or random.random() < 0.3:
            try:
                draws.append(store.draw(timeout=0))
            except TimeoutError:
                if taken < count and len(next_step) <= 1:
                    raise
            _check_counts(store)
    store.end_reception()
    while (draw := store.draw(timeout=0)) is not None:
        draws.append(draw)
        _check_counts(store)
    left = store.stats()
    held = left.population, left.steps, left.inputs
    _require_equal("Samples, steps and inputs left", held, (0, 0, 0))
    return [draw for draw in draws if draw is not None]


class Producer:
    """Puts all steps into a store, as an inlet does: again whenever there is room."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.room = threading.Event()
        store.on_room(self.room.set)

    def put(self, simulation: int, first: int, count: int, timeout: float = 30) -> int:
        """Return how many steps were taken within `timeout` seconds."""
        spec, end = self.store.spec, time.monotonic() + timeout
        steps = trajectory(spec, simulation, first, count)
        vector, done = parameters(spec, simulation), 0
        given = inputs(spec, simulation)
        while True:
            self.room.clear()
            left = steps[done:]
            done += self.store.offer(simulation, first + done, left, vector, given)
            if done == count or not self.room.wait(max(0, end - time.monotonic())):
                return done


def _check_counts(store: Store) -> None:
    now = store.stats()
    held = now.inserted - now.evicted - now.removed
    for count, holds in {
        f"{now.population} samples in a capacity of {now.capacity}": (
            0 <= now.population <= now.capacity
        ),
        f"{now.unseen} unseen of {now.population} samples": (
            0 <= now.unseen <= now.population
        ),
        f"{now.steps} steps in a capacity of {now.capacity}": (
            0 <= now.steps <= now.capacity
            and now.steps * store.spec.step_bytes <= now.capacity_bytes
        ),
        f"Input fields of {now.inputs} simulations beside {now.steps} steps": (
            bool(store.spec.inputs and now.population) <= now.inputs <= now.steps
        ),
        f"{now.population} samples, and {held} that entered and did not leave": (
            now.population == held
        ),
        f"{sum(now.times_seen)} samples counted by draws, {now.inserted} inserted": (
            sum(now.times_seen) == now.inserted
        ),
        f"{now.unseen} unseen samples, {now.times_seen[0]} drawn 0 times": (
            now.unseen == now.times_seen[0]
        ),
    }.items():
        assert holds, (
            f"Got {count}. Usual cause: the policy's take or evict returns a place "
            "twice, one that is not below count, or evict one below unseen."
        )


def _check_waits(store: Store) -> tuple[Store, Producer]:
    """Return a store that is full, and who waits for room in it."""
    assert store.waiting() == "", store.waiting()
    for wait in (store.draw, store.wait_threshold):
        try:
            wait(timeout=0.0)
        except TimeoutError as error:
            assert "trainer waits: 0 of " in str(error), error  # noqa: PT017
        else:
            raise AssertionError(f"{wait.__name__} of an empty store does not wait.")
    producer, simulation = Producer(store), 0
    while producer.put(simulation, 0, store.spec.steps, timeout=0) == store.spec.steps:
        simulation += 1
    reason = store.waiting()
    for part in ("simulations wait: ", " samples unseen", "no batch drawn yet"):
        assert part in reason, f"Expected {part!r} in the reason, got {reason!r}."
    assert store.stats().put_wait > 0, "put_wait is 0."
    assert store.wait_threshold(timeout=None), "A full store is below its threshold."
    return store, producer


def _check_stop(empty: Store, full: Store, producer: Producer) -> None:
    with ThreadPoolExecutor(2) as pool:
        draw = pool.submit(empty.draw, timeout=None)
        threshold = pool.submit(empty.wait_threshold, timeout=None)
        end = time.monotonic() + _PATIENCE
        try:
            while not empty.waiting():
                assert time.monotonic() < end, "A draw that waits has no reason."
                time.sleep(0.001)
        finally:
            empty.stop()
        ended = (draw.result(_PATIENCE), threshold.result(_PATIENCE))
    _require_equal("Ended waits", ended, (None, False))
    producer.room.clear()
    full.stop()
    assert producer.room.is_set(), "Whoever waits for room is not woken."
    _require_equal("A draw after stop", full.draw(timeout=None), None)
    _require_equal("The threshold", full.wait_threshold(timeout=None), False)
    _require_equal("Steps taken", producer.put(2000, 0, 1, timeout=0), 0)


def _require_equal(what: str, got: object, expected: object) -> None:
    if got == expected:
        return
    if isinstance(got, set) and isinstance(expected, set):
        for name, some in (("missing", expected - got), ("unknown", got - expected)):
            if some:
                first = ", ".join(map(str, sorted(some, key=str)[:_SHOWN]))
                raise AssertionError(f"{what}: {len(some)} are {name}: {first}, ...")
    raise AssertionError(f"{what}: expected {expected}, got {got}.")
