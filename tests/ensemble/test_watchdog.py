"""Solvers that hang are stopped, and those that do not are left alone."""

import ctypes
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace

import batch
import pytest
from distributed import Client, LocalCluster
from test_ensemble import PATIENCE, Full, Run, whole
from troubled import Troubled, Wave

from surrogate_flow.cluster.open import open_cluster
from surrogate_flow.ensemble.attempt import run
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import SimulationState
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.solvers.solver import Recorded
from surrogate_flow.stream import Discard

LIMIT = 4.0  # seconds without a step
# Steps of a slow simulation, together longer than the limit; each may take nine times as
# long on a busy machine, and is no hang.
SLOW, PACE = 12, LIMIT / 10


class Slow(Wave):
    """A wave whose steps take their time.

    Parameters
    ----------
    fails : str
        A file by which the first attempt is known, which fails at the last step.
    greedy : bool
        Whether the solver holds the GIL meanwhile, but for moments.
    """

    spec = replace(Wave.spec, times=tuple(float(k + 1) for k in range(SLOW)))

    def __init__(self, fails="", greedy=False):
        self.fails, self.greedy = fails, greedy

    def solve(self, parameters):
        for k, t in enumerate(self.spec.times):
            if k == SLOW - 1 and self.fails:
                with suppress(FileExistsError), open(self.fails, "x"):
                    raise ArithmeticError("the first attempt")
            if self.greedy:
                for _ in range(4):
                    ctypes.PyDLL(None).usleep(int(PACE / 4 * 1e6))
                    time.sleep(0)
            else:
                time.sleep(PACE)
            yield self.step(parameters["phase"], t)


class Stubborn(Troubled):
    """A wave that hangs and keeps the GIL."""

    def gil(self, phase):
        yield self.step(phase, 1.0)
        ctypes.PyDLL(None).sleep(10_000)


def watched(client, solver, count, folder, looks=None, **options):
    """A run of so many simulations with a watchdog."""
    simulations = [
        Simulation(n, "training", {"phase": n / count}) for n in range(count)
    ]
    looks = {"poll": 0.25, **(looks or {})}
    options = {"retries": 1, "step_timeout": LIMIT, "looks": looks} | options
    # Workers import this file before the time of a simulation counts.
    client.run(type, solver)
    return Run(client, solver, simulations, folder, **options)


def workers(threads=1, nanny=True):
    """A cluster of the test's own, whose workers come back."""
    return open_cluster(
        lambda: LocalCluster(
            n_workers=2 // threads,
            threads_per_worker=threads,
            processes=nanny,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
            preload=[__name__],
        )
    )


@pytest.mark.parametrize(
    ("solver", "word", "threads"),
    [
        (Troubled("hangs", above=0.85), "in hangs", 1),
        (Troubled("hangs", above=0.85), "in hangs", 2),
        (Stubborn("gil", above=0.85), "holds the GIL", 1),
    ],
    ids=["hangs", "beside others", "holds the GIL"],
)
def test_a_simulation_that_hangs_is_retried_then_fails(tmp_path, solver, word, threads):
    """Its failures say where it hung; the others, on the same worker too, arrive once."""
    with (
        workers(threads) as cluster,
        Client(cluster, set_as_default=False) as client,
        watched(client, solver, 10, tmp_path) as study,
    ):
        assert study.ensemble.wait(PATIENCE)
        study.ensemble.check()
        assert not any(client.processing().values())
    assert study.failed == [9]
    rows = study.rows()
    assert [(row["error"], row["outcome"]) for row in rows] == [
        ("TimeoutError", "retried"),
        ("TimeoutError", "failed permanently"),
    ]
    for attempt, row in enumerate(rows):
        assert f"Simulation 9, attempt {attempt}: no step" in row["message"]
        assert f"faults.step_timeout={LIMIT:g} s" in row["message"]
        assert word in row["message"]
    arrived = {key: n for key, n in study.arrivals.seen.items() if key[0] != 9}
    assert arrived == whole(range(9))
    assert max(study.arrivals.seen.values()) == 1


def test_a_worker_that_dies_as_it_is_restarted_ends_no_watch(tmp_path, monkeypatch):
    """Both simulations that hang are reported."""
    with (
        workers() as cluster,
        Client(cluster, set_as_default=False) as client,
        watched(
            client, Troubled("hangs", above=0.75), 10, tmp_path, retries=0
        ) as study,
    ):

        def too_late(*_, **__):
            # What Dask raises for a worker that has gone.
            restart(*_, **__)
            raise KeyError("tcp://127.0.0.1:1")

        restart = client.restart_workers
        monkeypatch.setattr(client, "restart_workers", too_late)
        assert study.ensemble.wait(PATIENCE)
        study.ensemble.check()
        study.watchdog.check()
    assert sorted(study.failed) == [8, 9]


def test_without_a_nanny_the_failure_says_so(tmp_path):
    """The simulation has failed all the same; its thread stays lost."""
    release = threading.Event()
    Forgiving.release = release
    with (
        workers(threads=2, nanny=False) as cluster,
        Client(cluster, set_as_default=False) as client,
        watched(client, Forgiving("hangs", above=0.85), 10, tmp_path) as study,
    ):
        while not study.failures.exists():
            assert not study.ensemble.wait(0.05)
        release.set()
        assert study.ensemble.wait(PATIENCE)
    assert "has no nanny" in study.rows()[0]["message"]
    assert study.arrivals.seen == whole(range(10))


class Forgiving(Troubled):
    """A wave that hangs, in threads of this process, until it is released."""

    release = threading.Event()

    def hangs(self, phase):
        yield self.step(phase, 1.0)
        self.release.wait()
        for t in self.spec.times[1:]:
            yield self.step(phase, t)


def test_an_attempt_that_hangs_after_another_brought_all_steps_ends(tmp_path):
    """Nothing more is expected of it, but it holds a worker, and the study's end."""
    with (
        workers() as cluster,
        Client(cluster, set_as_default=False) as client,
        watched(client, Troubled("hangs", above=0.85), 10, tmp_path) as study,
    ):
        ninth = Simulation(9, "training", {"phase": 0.9})
        while not any(
            p.simulation == 9 and p.next_step for p in study.inlet.progress()
        ):
            assert not study.ensemble.wait(0.01)
        run(Wave(), study.inlet.endpoint, ninth, 0)
        assert study.ledger.state(9) is SimulationState.COMPLETE
        assert study.ensemble.wait(PATIENCE)
        study.ensemble.check()
        assert study.ensemble.stats().done == 10
        # The scheduler is told of the end a moment later.
        batch.wait_until(lambda: not any(client.processing().values()))
    assert not study.failed
    assert not study.failures.exists()
    assert study.arrivals.seen == whole(range(10))


def test_waiting_for_a_thread_is_no_silence(client, tmp_path):
    """Attempts that are queued for longer than the limit are looked at, and left alone."""
    with quiet(client, Slow(), tmp_path, count=4) as study:
        pass
    assert not study.failures.exists()
    assert study.watchdog.queued


def test_waiting_behind_a_solver_that_holds_the_gil_is_no_silence(client, tmp_path):
    """Its worker answers no questions, but its steps arrive: nobody is restarted."""
    looks = {"answer": 0.1}
    with quiet(client, Slow(greedy=True), tmp_path, count=4, looks=looks) as study:
        pass
    assert not study.failures.exists()


@contextmanager
def quiet(client, solver, tmp_path, count=4, **options):
    """Run to the end; nothing may be taken for a hang."""
    with watched(client, solver, count, tmp_path, **options) as study:
        yield study
        assert study.ensemble.wait(PATIENCE)
        study.ensemble.check()
    assert study.arrivals.seen == whole(range(count), len(solver.spec.times))


def test_steps_that_are_gathered_are_no_silence(client, tmp_path):
    """An outlet that may gather all steps into one message sends what it has in time."""
    with quiet(client, Slow(), tmp_path, count=2) as study:
        pass
    assert not study.failures.exists()


def test_steps_that_are_computed_again_are_no_silence(client, tmp_path):
    """A retry that takes longer than the limit to come back to where it was goes on."""
    solver = Slow(fails=str(tmp_path / "failed"))
    with quiet(client, solver, tmp_path, count=1) as study:
        pass
    (row,) = study.rows()
    assert row["error"] == "ArithmeticError"


class Counted(Discard):
    """Counts every (simulation, step)."""

    def __init__(self):
        self.seen = Counter()

    def offer(self, simulation, first, steps, parameters, inputs=None):
        self.seen.update((simulation, first + k) for k in range(len(steps)))
        return len(steps)


def test_steps_that_are_not_kept_are_no_silence(client, tmp_path):
    """Of all that a simulation makes in longer than the limit, the last alone is sent."""
    solver = Recorded(Slow(), SLOW)
    with quiet(client, solver, tmp_path, count=1, sink=Counted()) as study:
        pass
    assert not study.failures.exists()


def test_waiting_for_room_is_no_silence(client, tmp_path):
    """Outlets that wait for a trainer longer than the limit are left alone, and after it."""
    sink, never = Full(), threading.Event()
    small = {"budget": 32, "coalesce_bytes": 16}
    with quiet(client, Wave(), tmp_path, sink=sink, stream=small) as study:
        while study.inlet.stats().waiting < 2:
            never.wait(0.01)
        never.wait(1.5 * LIMIT)
        sink.empty.set()
        sink.room()
    assert not study.failures.exists()


def test_settings_that_make_no_sense_are_refused():
    """The limit is at least a second and below the patience for the whole study."""
    with pytest.raises(ValueError, match=r"step_timeout < patience.*got 0\.5 s"):
        Faults(step_timeout=0.5)
    with pytest.raises(ValueError, match=r"patience \(60 s.*got 90 s"):
        Faults(step_timeout=90.0, patience=60.0)
