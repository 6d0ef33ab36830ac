"""The thread that draws ahead ends with the study, whoever iterates or does not."""

import threading

import numpy as np
from laws import parameters, trajectory
from troubled import STEPS, Wave

from surrogate_flow.data.online_loader import OnlineLoader
from surrogate_flow.data.ranks import Ranks, State
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import FIFO, PendingBatches


def test_a_trainer_that_failed_leaves_no_thread_behind():
    """A batch that nobody will fetch, since an error holds the iterator, ends no later."""
    store = FIFO(Wave.spec, Direct(), 1, capacity=4 * STEPS)
    for n in range(4):
        steps = trajectory(Wave.spec, n, 0, STEPS)
        assert store.offer(n, 0, steps, parameters(Wave.spec, n)) == STEPS
    stopped = threading.Event()
    loader = OnlineLoader(
        store,
        Direct(),
        flight=PendingBatches(),
        stopped=stopped.is_set,
        check=lambda: None,
    )
    before = set(threading.enumerate())
    batches = iter(loader)
    next(batches)
    (thread,) = set(threading.enumerate()) - before
    stopped.set()
    store.stop()
    thread.join(20)
    assert not thread.is_alive()
    batches.close()


def test_what_an_iteration_did_not_give_comes_in_the_next():
    """Epochs that end early lose no batch that was drawn ahead, and train none twice."""
    spec = FieldSpec((), (Variable("u"),), (), (), tuple(range(60)))
    store, flight = FIFO(spec, Direct(), 4, capacity=60), PendingBatches()
    steps = np.arange(60, dtype="f").reshape(60, 1)
    assert store.offer(0, 0, steps, np.zeros(0, dtype="f")) == 60
    store.end_reception()
    loader = OnlineLoader(store, Direct(), flight=flight, check=lambda: None)
    trained = []
    for epoch in range(6):
        for n, batch in enumerate(loader):
            trained += batch.step.tolist()
            if n == 2 and epoch < 5:
                break
    assert trained == list(range(60))


class BesideAFullOne(Ranks):
    """The first of two ranks; the other one is full, and trains whatever this one has."""

    def gather_states(self, state):
        return [state, State.FULL]


def test_batches_of_weight_zero_count_for_nothing():
    """They are in no reservoir: what a checkpoint has, and what is drawn again, is all the rest."""
    spec = FieldSpec((), (Variable("u"),), (), (), tuple(range(40)))
    store, flight = FIFO(spec, Direct(), 4, capacity=40), PendingBatches()
    steps, nothing = np.arange(40, dtype="f").reshape(40, 1), np.zeros(0, dtype="f")
    processed, trained, zero = 0, [], 0
    loader = OnlineLoader(
        store,
        Direct(),
        flight=flight,
        trained=lambda: processed,
        ranks=BesideAFullOne(0, 1),
        check=lambda: None,
    )
    batches = iter(loader)
    while len(trained) < 20:
        batch = next(batches)
        trained += batch.step.int().tolist() if batch.weight else []
        zero += not batch.weight
        processed += 1
        if zero == 2 and store.open(0) == 0:
            assert store.offer(0, 0, steps, nothing) == 40
    assert zero >= 2
    assert loader.trained() == 5
    flight.settle(loader.trained())
    held = store.save(flight, lambda chunk: None)
    again = held.again_step.tolist() + held.step[held.members].tolist()
    assert trained + again == list(range(40))
    batches.close()
    assert [step for draw in flight.draws for step in draw.step][:4] == [20, 21, 22, 23]
