"""The thread that draws ahead ends with the study, whoever iterates or does not."""

import threading

from laws import parameters, trajectory
from troubled import STEPS, Wave

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
