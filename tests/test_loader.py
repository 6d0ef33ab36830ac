"""The thread that draws ahead ends with the study, whoever iterates or does not."""

import threading

import numpy as np
from laws import parameters, trajectory
from troubled import STEPS, Wave

from surrogate_flow.fields import FieldSpec, Variable
from surrogate_flow.loader import OnlineLoader
from surrogate_flow.reservoir import FIFO, Flight
from surrogate_flow.windows import Direct


def test_a_trainer_that_failed_leaves_no_thread_behind():
    """A batch that nobody will fetch, since an error holds the iterator, ends no later."""
    store = FIFO(Wave.spec, Direct(), 1, capacity=4 * STEPS)
    for n in range(4):
        steps = trajectory(Wave.spec, n, 0, STEPS)
        assert store.offer(n, 0, steps, parameters(Wave.spec, n)) == STEPS
    stopped = threading.Event()
    loader = OnlineLoader(
        store, Direct(), flight=Flight(), stopped=stopped.is_set, check=lambda: None
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
    store, flight = FIFO(spec, Direct(), 4, capacity=60), Flight()
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
