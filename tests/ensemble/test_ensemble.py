"""The ensemble and the stream together, on a real cluster, counted by a ledger of the tests' own."""

import collections
import contextlib
import csv
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster
from troubled import STEPS, Leisurely, Returning, Troubled, Wave

from surrogate_flow.ensemble.deaths import WorkerDied
from surrogate_flow.ensemble.ensemble import Ensemble, EnsembleError, Tasks
from surrogate_flow.ensemble.events import (
    Exhausted,
    Failed,
    FailureLog,
    Finished,
    Retried,
    Submitted,
)
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import Ledger, RecordingSink
from surrogate_flow.ensemble.placement import Place, Placement
from surrogate_flow.ensemble.task import on_workers
from surrogate_flow.ensemble.watchdog import Watchdog
from surrogate_flow.ensemble.workers import Workers
from surrogate_flow.fields.errors import MissingFileError
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.solvers import Program
from surrogate_flow.solvers.programs.process import ProcessError
from surrogate_flow.stream import Discard, Inlet

PATIENCE = 150.0  # seconds, for machines that do other things too


class Arrivals(Discard):
    """Counts every (simulation, step) that arrives, and checks what it holds."""

    def __init__(self):
        self.seen = collections.Counter()
        self.arrived = threading.Event()

    def offer(self, simulation, first, steps, parameters, inputs=None):
        for k, step in enumerate(steps):
            expected = parameters[0] + first + k + 1 + np.arange(step.shape[-1]) / 10
            np.testing.assert_allclose(step[0], expected, rtol=1e-5)
            self.seen[simulation, first + k] += 1
        self.arrived.set()
        return len(steps)


class Planned:
    """A design of given simulations."""

    planned = None

    def __init__(self, simulations):
        self._simulations = iter(simulations)

    def next(self):
        return next(self._simulations, None)


def planned(count, part="training", seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield Simulation(number, part, {"phase": float(rng.random())})


class Run:
    """An ensemble on a client, its inlet and what arrives there, until it has ended.

    A watchdog looks after it if `faults` has a `step_timeout`.
    """

    def __init__(
        self,
        client,
        solver,
        simulations,
        folder,
        ahead=2,
        share=1,
        answer=30.0,
        looks=None,
        sink=None,
        stream=None,
        **faults,
    ):
        self.arrivals, self.events = sink or Arrivals(), []
        self.failures, self.ledger = folder / "failures.csv", Ledger()
        recorded = RecordingSink(self.ledger, self.arrivals)
        self.inlet = Inlet(solver.spec, recorded, **stream or {})
        self.inlet.__enter__()
        self.resources = contextlib.ExitStack()
        placement = self.resources.enter_context(Placement(client))
        task = self.resources.enter_context(
            on_workers(client, solver, self.inlet.endpoint, study=placement.study)
        )
        self.tasks = Tasks(client, task, "wave", placement)
        faults = Faults(**faults)
        self.ensemble = Ensemble(
            self.tasks,
            Workers(client, share=share, answer=answer),
            Planned(simulations),
            self.ledger,
            faults=faults,
            listeners=[FailureLog(self.failures), self._give_up, self.events.append],
            ahead=ahead,
        )
        self.watchdog = None
        if faults.step_timeout is not None:
            self.watchdog = Watchdog(
                self.tasks,
                self.inlet,
                self.ledger,
                faults.step_timeout,
                **looks or {},
            )

    def _give_up(self, event):
        if isinstance(event, Failed):
            self.inlet.give_up(event.simulation.number)

    def __enter__(self):
        self.ensemble.start()
        if self.watchdog:
            self.watchdog.start()
        return self

    def __exit__(self, *error):
        self.ensemble.halt()
        self.inlet.stop_outlets("the test has ended")
        self.ensemble.close()
        if self.watchdog:
            self.watchdog.close()
        self.resources.close()
        self.inlet.__exit__(*error)

    def wait(self):
        assert self.ensemble.wait(PATIENCE), "the ensemble did not end"
        self.ensemble.check()
        assert self.events[-1] == Exhausted()
        self.inlet.check()

    def failures_come(self, timeout):
        """Wait until one simulation has failed permanently."""
        deadline = time.monotonic() + timeout
        while not self.failed and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.failed

    @property
    def failed(self):
        """Numbers of the simulations that have failed permanently."""
        return [e.simulation.number for e in self.events if isinstance(e, Failed)]

    def rows(self):
        with self.failures.open(newline="") as file:
            return list(csv.DictReader(file))


def whole(numbers, steps=STEPS):
    return collections.Counter(itertools.product(numbers, range(steps)))


def test_every_step_arrives_exactly_once(client, tmp_path):
    """Forty simulations: each of their steps is in the ledger, once."""
    with Run(client, Wave(), planned(40), tmp_path) as study:
        study.wait()
    assert study.arrivals.seen == whole(range(40))
    assert study.ensemble.stats().done == 40
    assert not study.failures.exists()


FAULTS = {
    "raises": ("ArithmeticError", "negative density"),
    "exits": ("RuntimeError", "sys.exit('CFL number 3.2 in cell 7')"),
    "nan": ("SpecMismatch", "NaN"),
    "array": ("SpecMismatch", "got ndarray"),
    "shape": ("SpecMismatch", "x"),
    "variable": ("SpecMismatch", "'U'"),
    "order": ("SpecMismatch", "time"),
    "nothing": ("SpecMismatch", "nothing"),
    "half": ("SpecMismatch", "2 of 5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_simulations_fail_permanently(client, tmp_path, fault):
    """Whatever a solver does wrong is a row in failures.csv, and the others go on."""
    simulations = list(planned(12))
    bad = [s.number for s in simulations if s.parameters["phase"] > 0.5]
    good = [s.number for s in simulations if s.parameters["phase"] <= 0.5]
    assert bad
    assert good
    with Run(client, Troubled(fault), simulations, tmp_path, retries=1) as study:
        study.wait()
    rows = study.rows()
    error, word = FAULTS[fault]
    assert sorted(study.failed) == bad
    assert len(rows) == (2 if fault in ("raises", "exits") else 1) * len(bad)
    for row in rows:
        assert error in row["error"]
        assert word in row["message"]
        assert "phase" in row["parameters"]
    assert [row["outcome"] for row in rows].count("failed permanently") == len(bad)
    arrived = {key: n for key, n in study.arrivals.seen.items() if key[0] in good}
    assert arrived == whole(good)
    assert max(study.arrivals.seen.values()) == 1


def test_listeners_see_what_happens_in_its_order(client, tmp_path):
    """Each simulation: submitted, retried as often as it fails, then finished or failed."""
    simulations = list(planned(8))
    bad = {s.number for s in simulations if s.parameters["phase"] > 0.5}
    with Run(client, Troubled("raises"), simulations, tmp_path, retries=1) as study:
        study.wait()
    for number in range(8):
        story = [e for e in study.events[:-1] if e.simulation.number == number]
        kinds = [(type(e), e.attempt) for e in story]
        if number in bad:
            middle = [(Submitted, 0), (Retried, 0), (Submitted, 1), (Failed, 1)]
        else:
            middle = [(Submitted, 0), (Finished, 0)]
        assert kinds == middle
    first = [e for e in study.events if isinstance(e, Submitted) and not e.attempt]
    assert [e.simulation for e in first] == simulations
    assert study.ledger.counts() == (0, 8 - len(bad), len(bad))


def test_what_a_failed_simulation_had_sent_still_enters(client, tmp_path):
    """No simulation is left before a full sink has taken that; then it is closed."""
    sink = Full()
    simulations = [Simulation(0, "training", {"phase": 0.9})]
    solver = Troubled("half")
    with Run(client, solver, simulations, tmp_path, sink=sink, retries=0) as study:
        assert study.failures_come(PATIENCE)
        assert not study.ensemble.wait(1.0)
        assert study.ledger.counts() == (1, 0, 0)
        sink.empty.set()
        sink.room()
        study.wait()
    assert study.ledger.counts() == (0, 0, 1)
    assert study.arrivals.seen == {(0, 0): 1, (0, 1): 1}


class Full(Arrivals):
    """A sink that takes nothing until it is emptied."""

    def __init__(self):
        super().__init__()
        self.empty = threading.Event()

    def offer(self, *args):
        return super().offer(*args) if self.empty.is_set() else 0

    def on_room(self, wake):
        self.room = wake


@pytest.mark.parametrize("what", [True, False])
def test_a_solver_without_yield_fails_permanently(client, tmp_path, what):
    """It is told so at once: to try again would not help."""
    with Run(client, Returning(what), planned(3), tmp_path, retries=1) as study:
        study.wait()
    rows = study.rows()
    assert len(rows) == 3
    for row in rows:
        assert row["error"] == "SpecMismatch"
        got = "Dataset" if what else "NoneType"
        assert f"solve returned {got}" in row["message"]
        assert "yield" in row["message"]


def test_too_many_failures_end_the_study(client, tmp_path):
    """Beyond max_failures the study ends, with the last error and where to find all."""
    solver = Troubled("raises", above=0.0)
    with Run(client, solver, planned(50), tmp_path, retries=0, max_failures=3) as study:
        assert study.ensemble.wait(PATIENCE)
        with pytest.raises(
            EnsembleError, match=r"max_failures=3.*negative density"
        ) as e:
            study.ensemble.check()
    assert "troubled.py:" in str(e.value)
    # Two more where a worker was set aside before the other had failed three.
    assert 4 <= len(study.failed) < 12
    values = [s.parameters["phase"] for s in planned(50) if s.number in study.failed]
    within = f"phase {min(values):.4g} to {max(values):.4g}; the last was"
    assert f"--data.faults.max_failures), with {within}" in str(e.value)


def test_a_program_that_is_nowhere_ends_the_study_at_once(client, tmp_path):
    """In one line, without a row: no other attempt would find it."""
    solver = Program(["no-such-program", "{phase}"], Wave.spec)
    with Run(client, solver, planned(50), tmp_path) as study:
        assert study.ensemble.wait(PATIENCE)
        with pytest.raises(
            MissingFileError, match=r"'no-such-program' is not there on "
        ):
            study.ensemble.check()
    assert not [e for e in study.events if isinstance(e, Failed | Retried)]
    assert not study.failures.exists()


def test_parameters_are_drawn_only_when_there_is_room(client, tmp_path):
    """An endless sampler is never run ahead: in flight stays within twice the threads."""
    drawn = itertools.count()
    ahead = []

    def endless():
        for simulation in planned(10**9):
            ahead.append(next(drawn) - study.ensemble.stats().done)
            yield simulation

    study = Run(client, Wave(), endless(), tmp_path)
    with study:
        while study.ensemble.stats().done < 60:
            study.arrivals.arrived.clear()
            assert study.arrivals.arrived.wait(PATIENCE)
    assert max(ahead) <= 2 * 2


def test_a_killed_worker_loses_and_repeats_nothing(tmp_path):
    """SIGKILL of a worker in mid-study: the ledger still has every step once."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        Run(client, Wave(), planned(200), tmp_path) as study,
    ):
        assert study.arrivals.arrived.wait(PATIENCE)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        study.wait()
    assert study.arrivals.seen == whole(range(200))


@pytest.mark.parametrize(
    ("fault", "threads", "words"),
    [
        ("dies", 1, ["exit status 1"]),
        ("crashes", 2, ["signal 11 (SIGSEGV)", "troubled.py:", "in crashes: "]),
    ],
)
def test_a_death_of_a_worker_is_one_attempt_of_what_it_ran(
    fault, threads, words, tmp_path
):
    """Its error says how the process died, and where; nobody else is charged."""
    simulations = [Simulation(n, "training", {"phase": n / 10}) for n in range(8)]
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        Run(client, Troubled(fault, 0.65), simulations, tmp_path, retries=1) as study,
    ):
        study.wait()
    assert study.failed == [7]
    rows = study.rows()
    assert [(row["simulation"], row["error"]) for row in rows] == 2 * [
        ("7", "WorkerDied")
    ]
    for row in rows:
        assert all(word in row["message"] for word in words), row["message"]
        assert (row["worker"], row["host"]) == ("0", "127.0.0.1")
    arrived = {key: n for key, n in study.arrivals.seen.items() if key[0] != 7}
    assert arrived == whole(range(7))


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_where_all_fail_is_set_aside(client, tmp_path, caplog, retries):
    """Another one makes the retries, and failures of one worker alone end no study."""
    solver, faults = Troubled("here", above=-1.0), {"max_failures": 0}
    with Run(client, solver, planned(12), tmp_path, retries=retries, **faults) as study:
        study.wait()
    rows = study.rows()
    assert rows
    assert {(row["worker"], row["error"]) for row in rows} == {("0", "OSError")}
    assert len(study.failed) == (0 if retries else len(rows))
    assert len(rows) < 9
    assert study.arrivals.seen == whole(set(range(12)) - set(study.failed))
    if len(rows) >= 3:
        assert "Worker 0 (127.0.0.1) is set aside for 1 s" in caplog.text
        assert study.ensemble.stats().set_aside == ("Worker 0 (127.0.0.1)",)


def test_a_simulation_that_fails_everywhere_sets_no_worker_aside(
    client, tmp_path, monkeypatch
):
    """The workers are not to blame."""
    monkeypatch.setattr("surrogate_flow.ensemble.ensemble._PAUSE", 0.0)
    solver = Troubled("raises", above=-1.0)
    with Run(client, solver, planned(1), tmp_path, retries=5) as study:
        study.wait()
    assert {row["worker"] for row in study.rows()} == {"0", "1"}
    assert study.ensemble.stats().set_aside == ()


def at(name):
    """Worker 3 is on another host than all others."""
    host = "10.0.0.2" if str(name) == "3" else "10.0.0.1"
    return Place(str(name), f"tcp://{host}:{name}", host)


def fail(known, *names):
    for name in names:
        known.failed(at(name), OSError("no library"))


def placement(*workers):
    known = Placement(None)
    known.present = {p.address: (p.worker, p.host) for p in workers}
    return known


def test_retries_go_to_other_hosts_then_to_other_workers():
    """And to any, where there is no other."""
    near, far = [at(n) for n in (1, 2)], at(3)
    assert placement(*near, far).choose([near[0]]) == [far.address]
    assert placement(*near).choose([near[0]]) == [near[1].address]
    assert placement(*near).choose(near) is None
    assert placement(near[0]).choose(near[:1]) is None
    assert placement(*near, far).choose([None]) is None


def test_a_scheduler_without_this_package_is_said_once(caplog):
    """With what that means; nannies that only start are late, and no trouble."""

    def sync(register, plugin, study, idempotent, callback_timeout):
        if register == "scheduler":
            raise ModuleNotFoundError("No module named 'surrogate_flow'")
        raise TimeoutError

    client = mock.Mock(sync=sync, status="closed")
    client._register_scheduler_plugin = "scheduler"
    with Placement(client):
        (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "scheduler of this cluster cannot load surrogate_flow" in record.message
    assert "several times" in record.message
    assert "Install it there" in record.message


class Killed:
    """A future whose worker has died; its client is too busy to say so at once."""

    status = "error"

    def __init__(self, key, worker, busy=False):
        self.key, self.worker, self.busy = key, worker, busy

    def exception(self, timeout):
        if self.busy:
            raise TimeoutError
        return KilledWorker(self.key, self.worker, 0)

    def add_done_callback(self, note):
        self.busy = False
        note(self)


def test_deaths_wait_for_their_reports_and_hold_up_nothing_else(monkeypatch):
    """Nor does a later worker at the same address take the report of an earlier one."""
    known = placement()
    tasks, (first, *others) = Tasks(None, None, "study", known), planned(50)

    def kill(simulation, identity, nanny, busy=False):
        worker = SimpleNamespace(
            address="tcp://10.0.0.1:1",
            name=1,
            host="10.0.0.1",
            nanny=nanny,
            server_id=identity,
        )
        future = Killed(tasks.key(simulation, 0), worker, busy)
        tasks._in_flight[future.key] = simulation, 0, future
        future.add_done_callback(tasks._note) if not busy else tasks._note(future)

    def ended():
        return {each.simulation.number: each for each in tasks.wait(0.0)}

    monkeypatch.setattr("surrogate_flow.ensemble.tasks._REPORT", math.inf)
    for simulation in others:
        kill(simulation, f"Worker-{simulation.number}", True)
    kill(first, "Worker-0", False, busy=True)
    assert {n: each.charged for n, each in ended().items()} == {0: True}
    began = tasks.key(others[8], 0)
    # To this worker alone it was given, and that has gone.
    tasks._bound[began] = ["tcp://10.0.0.1:1"], math.inf
    for _ in range(2):
        tasks.free()
    for code in (-11, -9):
        ran = {began: ""}
        known._note((0.0, {"died": f"Worker-{-code}", "code": code, "ran": ran}))
    told = ended()
    assert {n: each.charged for n, each in told.items()} == {9: True, 11: False}
    assert "SIGKILL" in str(told[9].error)
    tasks.restarting(["tcp://10.0.0.1:1"])
    monkeypatch.setattr("surrogate_flow.ensemble.tasks._SOON", 0.0)
    monkeypatch.setattr("surrogate_flow.ensemble.tasks._REPORT", 0.0)
    tasks._dying = dict.fromkeys(tasks._dying, 0.0)
    assert not any(each.charged for each in ended().values())
    assert not len(tasks)
    tasks.restarting(["tcp://10.0.0.1:1"])
    kill(first, "Worker-0", False)
    assert ended()[0].charged


def test_a_worker_rests_after_three_failures_in_a_row():
    """So does a host, but not the last one; a failure after a success ends it."""
    workers = [at(n) for n in (1, 2, 3)]
    known = placement(*workers)
    fail(known, 1, 1)
    assert known.choose([]) is None
    fail(known, 1)
    assert known.choose([]) == [workers[2].address]
    fail(known, 3, 3, 3)
    assert known.choose([]) is None
    alone = placement(workers[0])
    fail(alone, *9 * [1])
    assert not alone.set_aside
    known.succeeded(workers[0])
    fail(known, 1)
    assert known.choose([]) == [w.address for w in workers[:2]]
    named = ("Worker 1 (10.0.0.1)", "Host 10.0.0.1", "Worker 3 (10.0.0.2)")
    assert known.set_aside == (*named, "Host 10.0.0.2")
    # Two attempts that one death has ended.
    for _ in range(2):
        known.failed(workers[0], WorkerDied.of(-11))
    assert known.choose([]) == [w.address for w in workers[:2]]


def test_what_one_host_lacks_another_may_have():
    """Nothing is missing for good until no host has it, nor once one has had it."""
    first, second, other = (at(n) for n in (1, 2, 3))
    known = placement(first, second, other)
    assert not known.lacks(first)
    assert not known.lacks(second)
    assert known.lacks(other)
    known = placement(first, other)
    known.succeeded(other)
    assert not known.lacks(first)
    assert not known.lacks(other)


@pytest.mark.parametrize(
    ("present", "failures", "count"),
    [
        ("12", "1 1", 0),
        ("12", "1 2", 2),
        ("12", "12 1", 2),
        ("1", "1 1", 2),
        ("12", "1+ 1 1", 2),
        ("12", "1+ 1 1 1", 0),
        ("12", "?", 1),
        ("123", "1 2", 0),
        ("123", "1 3", 2),
        # One early failure of the other, before or after its first success.
        ("12", "1 1 1 1 2", 1),
        ("12", "2 1 1 1 1 2+", 1),
        ("12", "2 1 1 1 1 2+ 2", 2),
        # What it has failed until it recovers stays its own; all later ones do not.
        ("12", "1 1 1 1+", 0),
        ("12", "1 1 1 1+ 1", 1),
        ("12", "1 1 1+", 2),
        # Two of them are bad, and one is not; then all are.
        ("12456", "4+ 1 1 1 2 2 2", 0),
        ("124", "4+ 1 1 1 2 2 2 4 4 4", 9),
        ("12", "1 1 1 1 1 1 1 1 1 1 2 2 2", 13),
    ],
)
def test_failures_count_that_others_confirm(present, failures, count):
    """A defect of the solver fails everywhere; a bad worker, or host, alone."""
    known = placement(*map(at, present))
    for tried in failures.split():
        if tried.endswith("+"):
            known.succeeded(at(tried[0]))
            continue
        places = [None if name == "?" else at(name) for name in tried]
        fail(known, *tried.strip("?"))
        known.give_up(places)
    assert known.count() == count


def test_the_log_has_one_line_for_what_fails_alike(tmp_path, caplog):
    """The first in full, with the solver's line, then how many; failures.csv has all."""
    log = FailureLog(tmp_path / "failures.csv")
    for simulation in planned(25):
        try:
            list(Troubled("raises", above=-1.0).solve(simulation.parameters))
        except ArithmeticError as error:
            log(Failed(simulation, 0, error, at(1)))
    log(Exhausted())
    first, ten, total = (record.getMessage() for record in caplog.records)
    assert "Simulation 0 (training), attempt 0, failed on worker 1 (10.0.0.1)" in first
    assert "troubled.py:" in first
    assert "in raises: raise ArithmeticError" in first
    assert "10 attempts have failed so: ArithmeticError: negative density" in ten
    assert "troubled.py:" not in ten
    assert "25 attempts failed with ArithmeticError in all" in total
    assert log.path.read_text().count("\nArithmeticError: negative") == 25
    caplog.clear()
    for n in range(300):
        # Its solver wrote into temporary folders; then words that tell nothing apart.
        path = f"/tmp/{chr(97 + n % 26)}x{n}" if n < 100 else "x" * n
        said = f"The program failed.\nNo such file: {path}"
        log(Failed(Simulation(n, "training", {}), 0, OSError(said), None))
    first, ten, hundred, *more = (record.getMessage() for record in caplog.records)
    assert "No such file: /tmp/ax0" in first
    assert (ten[:9], hundred[:10]) == ("10 attemp", "100 attemp")
    assert len(more) <= 102


def test_what_a_program_printed_last_is_never_cut_off(tmp_path, caplog):
    """In the log before its suffix; in failures.csv as it was, with the user's own lines only."""
    log = FailureLog(tmp_path / "failures.csv")
    said = "Program: './x' ended with exit code 3, simulation 3. Its stderr ends:"
    for n in range(11):
        try:
            raise ProcessError(f"{said}\nat t = 0.5\nresidual too large")
        except ProcessError as error:
            # As of a solver of the package: no line of a test, which is the user's.
            again = error.with_traceback(None) if n else error
        log(Failed(Simulation(n, "training", {}), 0, again, None))
    first, _, ten = (record.getMessage() for record in caplog.records)
    end = f"[failed permanently; {log.path}]"
    assert f"{said} at t = 0.5 | residual too large {end}\nAt {__file__}:" in first
    assert ten.endswith("... residual too large")
    with log.path.open(newline="") as file:
        own, *others = csv.DictReader(file)
    assert own["message"] == f"{said}\nat t = 0.5\nresidual too large"
    assert own["traceback"].count(f'File "{__file__}"') == 1
    assert {row["traceback"] for row in others} == {""}
    log(Failed(Simulation(11, "training", {}), 0, KeyError("a defect"), None))
    assert log.path.read_text().rstrip().endswith("KeyError: 'a defect'")


def test_workers_that_are_gone_for_good_end_the_study(tmp_path):
    """When the last worker leaves in mid-study the error comes in start_timeout."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        Run(client, Wave(), planned(10**9), tmp_path, start_timeout=0.5) as study,
    ):
        assert study.arrivals.arrived.wait(PATIENCE)
        cluster.scale(0)
        assert study.ensemble.wait(PATIENCE)
        with pytest.raises(EnsembleError, match="No worker has been at"):
            study.ensemble.check()


def test_an_error_of_the_sampler_is_not_the_schedulers(client, tmp_path):
    """What the sampler raises reaches the user as it is."""

    def broken():
        yield from planned(1)
        raise FileNotFoundError("points.csv")

    with Run(client, Wave(), broken(), tmp_path) as study:
        assert study.ensemble.wait(PATIENCE)
        with pytest.raises(FileNotFoundError, match=r"points\.csv"):
            study.ensemble.check()


def test_no_worker_is_said_in_time(tmp_path):
    """A cluster that stays empty gives an error that names the scheduler, in start_timeout."""
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        Run(client, Wave(), planned(1), tmp_path, start_timeout=0.5) as study,
    ):
        assert study.ensemble.wait(PATIENCE)
        with pytest.raises(EnsembleError, match=r"No worker has been at .* for 0.5 s"):
            study.ensemble.check()


def test_attempts_that_are_stopped_have_not_failed(client, tmp_path):
    """As at Ctrl-C: outlets are told to stop, and tasks end before the cluster does."""
    with Run(client, Leisurely(), planned(10), tmp_path) as study:
        assert study.arrivals.arrived.wait(PATIENCE)
        study.ensemble.halt()
        study.inlet.stop_outlets("Ctrl-C")
        assert study.ensemble.wait(PATIENCE)
        study.ensemble.check()
    assert not study.failures.exists()


@pytest.mark.parametrize(("threads", "room"), [(2, 1), (3, 1), (4, 2)])
def test_two_that_share_threads_have_no_more_in_flight_than_there_are(
    threads, room, tmp_path
):
    """A retry of either must find a thread, or both wait for its turn for ever."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        ahead = []

        def drawn():
            for number, simulation in enumerate(planned(20)):
                ahead.append(number + 1 - study.ensemble.stats().done)
                yield simulation

        study = Run(client, Wave(), drawn(), tmp_path, ahead=1, share=2)
        with study:
            study.wait()
    assert max(ahead) == room


def test_fewer_threads_than_ensembles_in_lockstep_are_said_in_time(client, tmp_path):
    """The cluster has two threads, each of three would need one."""
    with Run(
        client, Wave(), planned(1), tmp_path, ahead=1, share=3, start_timeout=0.5
    ) as study:
        assert study.ensemble.wait(PATIENCE)
        with pytest.raises(EnsembleError, match=r"Only 2 threads .* at least 3"):
            study.ensemble.check()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_scheduler_is_named(how, tmp_path):
    """Killed or standing still, it ends the study with an error that names it."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    options = ["--scheduler-file", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    scheduler = subprocess.Popen(
        [
            *dask,
            "scheduler",
            *options,
            "--host=127.0.0.1",
            "--port=0",
            "--no-dashboard",
        ],
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    worker = subprocess.Popen(
        [*dask, "worker", *options, "--no-nanny", "--nthreads=1", "--no-dashboard"],
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        with Client(
            scheduler_file=str(file), timeout=30, set_as_default=False
        ) as client:
            study = Run(client, Wave(), planned(10**9), tmp_path, answer=3.0)
            with study:
                assert study.arrivals.arrived.wait(PATIENCE)
                scheduler.send_signal(how)
                assert study.ensemble.wait(PATIENCE)
                with pytest.raises(EnsembleError, match=r"Lost the scheduler tcp://"):
                    study.ensemble.check()
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def test_workers_import_neither_torch_nor_lightning(client, tmp_path):
    """A worker that has run simulations has paid for no training library."""
    with Run(client, Wave(), planned(4), tmp_path) as study:
        study.wait()
    for modules in client.run(lambda: list(sys.modules)).values():
        assert "surrogate_flow.stream" in modules
        assert not {"torch", "pytorch_lightning", "lightning"} & set(modules)


def test_tasks_bear_the_names_of_workflow_and_simulation(client, tmp_path):
    """The dashboard shows which simulation of which workflow a task is."""
    with Run(client, Wave(), planned(3, part="validation"), tmp_path) as study:
        study.wait()
        keys = [study.tasks.key(s, 0) for s in planned(3, part="validation")]
        story = client.run_on_scheduler(
            lambda dask_scheduler: [
                str(event) for key in keys for event in dask_scheduler.story(key)
            ]
        )
    assert all(
        any(f"wave-validation-{n}-0" in line for line in story) for n in range(3)
    )


def test_faults_are_checked():
    """Settings that make no sense are refused with both values."""
    with pytest.raises(ValueError, match="retries >= 0"):
        Faults(retries=-1)
    with pytest.raises(ValueError, match="patience > 0"):
        Faults(patience=0)
