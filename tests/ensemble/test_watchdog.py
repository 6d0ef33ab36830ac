"""Solvers that hang are stopped, and those that do not are left alone."""

import csv
import ctypes
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
from distributed import Client, LocalCluster
from test_ensemble import Ledger, whole
from troubled import STEPS, Troubled, Wave

from surrogate_flow.cluster.open import open_cluster
from surrogate_flow.ensemble.ensemble import Ensemble
from surrogate_flow.ensemble.failures import Failures
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.task import run
from surrogate_flow.ensemble.watchdog import Watchdog
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.stream import Inlet

LIMIT = 2.0  # seconds without a step


class Slow(Wave):
    """A wave whose steps, one at a time or all together, take their time.

    Parameters
    ----------
    step, start : float
        Seconds for each step, and before the first.
    fails : bool
        The first attempt does, at the last step; there is a file to know it by.
    """

    def __init__(self, step, start=0.0, fails=""):
        self.pace, self.start, self.fails = step, start, fails

    def solve(self, parameters):
        time.sleep(self.start)
        for k, t in enumerate(self.spec.times):
            if k == STEPS - 1 and self.fails:
                try:
                    with open(self.fails, "x"):
                        raise ArithmeticError("the first attempt")
                except FileExistsError:
                    pass
            time.sleep(self.pace)
            yield self.step(parameters["phase"], t)


class Stubborn(Troubled):
    """A wave that hangs and keeps the GIL."""

    def gil(self, phase):
        yield self.step(phase, 1.0)
        ctypes.PyDLL(None).sleep(10_000)


class Full(Ledger):
    """A ledger that takes nothing until it is opened."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()

    def offer(self, *args):
        return super().offer(*args) if self.open.is_set() else 0

    def on_room(self, wake):
        self.room = wake


class Run:
    """An ensemble with a watchdog."""

    def __init__(self, client, solver, count, folder, ledger=None, **options):
        self.client, self.ledger = client, ledger or Ledger()
        self.path, self.aside = folder / "failures.csv", []
        self.inlet = Inlet(solver.spec, self.ledger, **options)
        self.inlet.__enter__()
        faults = Faults(retries=1, step_timeout=LIMIT)
        self.ensemble = Ensemble(
            client,
            partial(run, solver, self.inlet.endpoint),
            (Simulation(n, "training", {"phase": n / count}) for n in range(count)),
            name="wave",
            faults=faults,
            failures=Failures(self.path),
            is_whole=self.inlet.is_whole,
            on_set_aside=self.aside.append,
            on_end=lambda: None,
            watchdog=Watchdog(client, self.inlet, faults.step_timeout),
        )

    def __enter__(self):
        self.ensemble.start()
        return self

    def __exit__(self, *error):
        self.inlet.dismiss("the test has ended")
        self.ensemble.close()
        self.inlet.__exit__(*error)
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]

    def rows(self):
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))


def workers(threads=1, nanny=True):
    """A cluster of the test's own, whose workers come back."""
    return open_cluster(
        lambda: LocalCluster(
            n_workers=2 // threads,
            threads_per_worker=threads,
            processes=nanny,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
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
def test_a_simulation_that_hangs_is_retried_then_set_aside(
    tmp_path, solver, word, threads
):
    """Its failures say where it hung; the others, on the same worker too, arrive once."""
    with (
        workers(threads) as cluster,
        Client(cluster, set_as_default=False) as client,
        Run(client, solver, 10, tmp_path) as study,
    ):
        assert study.ensemble.wait(60)
        study.ensemble.check()
        assert not any(client.processing().values())
    assert study.aside == [9]
    rows = study.rows()
    assert [(row["error"], row["outcome"]) for row in rows] == [
        ("TimeoutError", "retried"),
        ("TimeoutError", "set aside"),
    ]
    for attempt, row in enumerate(rows):
        assert f"Simulation 9, attempt {attempt}: no step" in row["message"]
        assert "faults.step_timeout=2 s" in row["message"]
        assert word in row["message"]
    arrived = {key: n for key, n in study.ledger.seen.items() if key[0] != 9}
    assert arrived == whole(range(9))
    assert max(study.ledger.seen.values()) == 1


def test_without_a_nanny_the_failure_says_so(tmp_path):
    """The simulation is set aside all the same; its thread stays lost."""
    release = threading.Event()
    Forgiving.release = release
    with (
        workers(threads=2, nanny=False) as cluster,
        Client(cluster, set_as_default=False) as client,
        Run(client, Forgiving("hangs", above=0.85), 10, tmp_path) as study,
    ):
        while not study.path.exists():
            assert not study.ensemble.wait(0.05)
        release.set()
        assert study.ensemble.wait(60)
    assert "has no nanny" in study.rows()[0]["message"]
    assert study.ledger.seen == whole(range(10))


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
        Run(client, Troubled("hangs", above=0.85), 10, tmp_path) as study,
    ):
        ninth = Simulation(9, "training", {"phase": 0.9})
        while not any(
            p.simulation == 9 and p.next_step for p in study.inlet.progress()
        ):
            assert not study.ensemble.wait(0.01)
        run(Wave(), study.inlet.endpoint, ninth, 0)
        assert study.inlet.is_whole(9)
        assert study.ensemble.wait(60)
        study.ensemble.check()
        assert study.ensemble.progress().done == 10
        assert not any(client.processing().values())
    assert not study.aside
    assert not study.path.exists()
    assert study.ledger.seen == whole(range(10))


def test_waiting_for_a_thread_is_no_silence(client, tmp_path, monkeypatch):
    """Attempts that are queued twice as long as the limit are looked at, and left alone."""
    stacks, asked = Watchdog._stacks, []

    async def noted(self, keys):
        answer = await stacks(self, keys)
        asked.extend(answer.values())
        return answer

    monkeypatch.setattr(Watchdog, "_stacks", noted)
    solver = Slow(step=0.6 * LIMIT)
    with quiet(client, solver, tmp_path, count=6) as study:
        pass
    assert not study.path.exists()
    assert [] in asked


class Greedy(Wave):
    """A wave whose steps take a while each, mostly with the GIL held."""

    def solve(self, parameters):
        for t in self.spec.times:
            for _ in range(8):
                ctypes.PyDLL(None).usleep(int(0.1 * LIMIT * 1e6))
                time.sleep(0)
            yield self.step(parameters["phase"], t)


def test_waiting_behind_a_solver_that_holds_the_gil_is_no_silence(
    client, tmp_path, monkeypatch
):
    """Its worker answers no questions, but its steps arrive: nobody is restarted."""
    monkeypatch.setattr("surrogate_flow.ensemble.watchdog._ANSWER", 0.1)
    with quiet(client, Greedy(), tmp_path, count=4) as study:
        pass
    assert not study.path.exists()


@contextmanager
def quiet(client, solver, tmp_path, ledger=None, count=4, **options):
    """Run to the end and return the ledger; nothing may be taken for a hang."""
    with Run(client, solver, count, tmp_path, ledger, **options) as study:
        yield study
        assert study.ensemble.wait(60)
        study.ensemble.check()
    assert study.ledger.seen == whole(range(count))


def test_steps_that_are_gathered_are_no_silence(client, tmp_path):
    """An outlet that may gather all steps into one message sends what it has in time."""
    solver = Slow(step=LIMIT / 3)
    with quiet(client, solver, tmp_path, count=2) as study:
        pass
    assert not study.path.exists()


def test_steps_that_are_computed_again_are_no_silence(client, tmp_path):
    """A retry that takes longer than the limit to come back to where it was goes on."""
    solver = Slow(step=LIMIT / 2, fails=str(tmp_path / "failed"))
    with quiet(client, solver, tmp_path, count=1) as study:
        pass
    (row,) = study.rows()
    assert row["error"] == "ArithmeticError"


def test_waiting_for_room_is_no_silence(client, tmp_path):
    """Outlets that wait for a trainer longer than the limit are left alone, and after it."""
    ledger, never = Full(), threading.Event()
    with quiet(client, Wave(), tmp_path, ledger, budget=32, coalesce_bytes=16) as study:
        while study.inlet.counters().waiting < 2:
            never.wait(0.01)
        never.wait(1.5 * LIMIT)
        ledger.open.set()
        ledger.room()
    assert not study.path.exists()


def test_settings_that_make_no_sense_are_refused():
    """The limit is at least a second and below the patience for the whole study."""
    with pytest.raises(ValueError, match=r"step_timeout < patience.*got 0\.5 s"):
        Faults(step_timeout=0.5)
    with pytest.raises(ValueError, match=r"patience \(60 s.*got 90 s"):
        Faults(step_timeout=90.0, patience=60.0)
