"""The ledger of simulations: states that only go forward, whoever asks, in little memory."""

import inspect
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from surrogate_flow.ensemble.ledger import Ledger, SimulationState
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.quantities import Simulation


def simulation(number):
    return Simulation(number, "training", {"phase": number / 8})


def ledger_of(running=(), complete=(), failed=()):
    ledger = Ledger()
    for number in (*running, *complete, *failed):
        ledger.begin(simulation(number))
    for number in complete:
        ledger.complete(number)
    for number in failed:
        ledger.fail(number)
    return ledger


STEPS = {
    "begin": lambda ledger: ledger.begin(simulation(7)),
    "complete": lambda ledger: ledger.complete(7),
    "fail": lambda ledger: ledger.fail(7),
}
AFTER = {
    "begin": SimulationState.RUNNING,
    "complete": SimulationState.COMPLETE,
    "fail": SimulationState.FAILED,
}
FORWARD = {
    SimulationState.PLANNED: {"begin"},
    SimulationState.RUNNING: {"complete", "fail"},
    SimulationState.COMPLETE: set(),
    SimulationState.FAILED: set(),
}
PATHS = {
    SimulationState.PLANNED: {},
    SimulationState.RUNNING: {"running": [7]},
    SimulationState.COMPLETE: {"complete": [7]},
    SimulationState.FAILED: {"failed": [7]},
}


@pytest.mark.parametrize("state", SimulationState)
@pytest.mark.parametrize("step", STEPS)
def test_a_simulation_only_moves_forward(state, step):
    """Each step is allowed from one state only, and any other leaves the ledger as it was."""
    ledger = ledger_of(**PATHS[state])
    before = ledger.counts()
    if step in FORWARD[state]:
        STEPS[step](ledger)
        assert ledger.state(7) is AFTER[step]
    else:
        with pytest.raises(RuntimeError, match=f"Simulation 7.* it is {state.value}"):
            STEPS[step](ledger)
        assert ledger.state(7) is state
        assert ledger.counts() == before


def test_it_knows_what_runs_and_what_has_ended():
    """Those that run are there with their parameters, in order; the others by their number."""
    ledger = ledger_of(running=[4, 2], complete=[0, 1], failed=[3])
    assert ledger.running() == [simulation(4), simulation(2)]
    assert ledger.counts() == (2, 2, 1)
    assert [n for n in range(6) if n in ledger] == [0, 1, 3]
    assert ledger.to_plain() == {"complete": [(0, 2)], "failed": [(3, 4)]}


def test_a_new_ledger_goes_on_from_plain_values():
    """What had ended stays so; what ran, and what comes, may begin."""
    before = ledger_of(running=[4], complete=[0, 1], failed=[3])
    ledger = Ledger()
    ledger.restore(before.to_plain())
    assert ledger.to_plain() == before.to_plain()
    assert ledger.counts() == (0, 2, 1)
    ledger.begin(simulation(4))
    with pytest.raises(RuntimeError, match="it is complete"):
        ledger.begin(simulation(1))
    with pytest.raises(ValueError, match="in use"):
        ledger.restore(before.to_plain())
    with pytest.raises(ValueError, match=r"complete and failed: \[1\]"):
        Ledger().restore({"complete": [(0, 2)], "failed": [(1, 2)]})


def test_a_million_that_have_ended_take_little_memory():
    """Less than a byte each in memory, and less than a thousand ranges in a checkpoint."""
    tracemalloc.start()
    try:
        ledger = Ledger()
        for number in range(100_000):
            ledger.begin(simulation(number))
            if number % 1000:
                ledger.complete(number)
            else:
                ledger.fail(number)
        ours = [tracemalloc.Filter(True, inspect.getfile(c)) for c in (Ledger, IntSet)]
        kept = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
    finally:
        tracemalloc.stop()
    # Threads that other tests of this process have left allocate memory, too.
    assert 0 < sum(file.size for file in kept) < 100_000
    assert sum(map(len, ledger.to_plain().values())) == 200


def test_waiting_ends_with_the_last_that_runs():
    """Whoever waits wakes up when nothing runs, and not before."""
    ledger = ledger_of(running=[0, 1])
    assert not ledger.wait(0.01)
    thread = threading.Timer(0.1, ledger.fail, [0])
    thread.start()
    assert not ledger.wait(0.3)
    thread = threading.Timer(0.1, ledger.complete, [1])
    thread.start()
    assert ledger.wait(30)
    assert ledger.wait(0)


def test_threads_see_one_book():
    """Each number begins and ends once, and no moment shows more than have begun."""
    ledger, count, wrong = Ledger(), 4000, []
    over = threading.Event()

    def run(numbers):
        for number in numbers:
            ledger.begin(simulation(number))
            (ledger.fail if number % 7 == 0 else ledger.complete)(number)

    def watch():
        last = 0
        while not over.is_set():
            running, complete, failed = ledger.counts()
            if running > 4 or complete + failed < last:
                wrong.append((running, complete, failed, last))
            last = complete + failed

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, [range(k, count, 4) for k in range(4)]))
    over.set()
    watcher.join()
    assert not wrong
    failed = len(range(0, count, 7))
    assert ledger.counts() == (0, count - failed, failed)


def test_early_ends_are_counted_by_reason(caplog):
    """Reasons that differ in numbers are one, each is logged once; a run that goes on has them."""
    caplog.set_level("INFO")
    ledger = Ledger()
    for number in range(5):
        ledger.begin(simulation(number))
        ledger.complete(
            number, ["steady at t=0.1", "steady at t=2", "", "cold", "7"][number]
        )
    assert ledger.counts_early() == {"steady at ...": 2, "cold": 1, "7": 1}
    assert [record.args for record in caplog.records] == [
        (0, "steady at t=0.1"),
        (3, "cold"),
        (4, "7"),
    ]
    again = Ledger()
    # One of them runs again.
    again.restore({"complete": [(1, 5)], "failed": []}, ledger.early())
    assert again.counts_early() == {"steady at ...": 1, "cold": 1, "7": 1}
    assert again.early()["steady at ..."] == [(1, 2)]
