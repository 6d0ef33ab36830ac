"""A solver on its worker: built once, kept for all simulations, closed at the end."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import active_children, get_context
from types import SimpleNamespace
from unittest import mock

import numpy as np
import psutil
import pytest
import xarray as xr
from batch import wait_until
from distributed import Client, LocalCluster
from troubled import STEPS, Wave

from surrogate_flow.ensemble.attempt import run
from surrogate_flow.ensemble.deaths import Recorder, Reporter, dask_is_quiet
from surrogate_flow.ensemble.placement import Placement
from surrogate_flow.ensemble.task import SetupError, Task, on_workers
from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.solvers import HeatPlate
from surrogate_flow.solvers.solver import Stopped
from surrogate_flow.stream import Inlet

LOCAL = partial(LocalCluster, dashboard_address="127.0.0.1:0")


class Journal(Wave):
    """A wave that notes in a file what happens to it, and in which process and object."""

    def __init__(self, path, payload=b"", broken=False, fails_at=-1.0):
        self.path = path
        self.payload = payload
        self.broken = broken
        self.fails_at = fails_at

    def note(self, word):
        with open(self.path, "a") as file:
            file.write(f"{word} {os.getpid()} {id(self)}\n")

    def __setstate__(self, state):
        # Modules that it imports may set signal handlers.
        assert threading.current_thread() is threading.main_thread()
        self.__dict__.update(state)
        self.note("built")

    def setup(self, cores):
        self.note(f"setup-{cores}")
        if self.broken:
            raise ArithmeticError("no licence")

    def solve(self, parameters):
        self.note("solve")
        time.sleep(0.05)
        for step in super().solve(parameters):
            if parameters["phase"] == self.fails_at:
                raise ArithmeticError("negative density")
            yield step

    def close(self):
        self.note("close")


class Patient(Wave):
    """A wave that waits for ever before its last step, and asks whether it is wanted."""

    def __init__(self, path):
        self.path = path

    def start(self, run):
        assert run.folder.is_dir()
        (run.folder / "scratch").touch()
        (self.path / "folder").write_text(str(run.folder))
        try:
            yield from list(self.solve(run.parameters))[:-1]
            while True:
                run.check()
                time.sleep(0.01)
        except Stopped as error:
            (self.path / "stopped").write_text(str(error))
            raise


class Restarting(Wave):
    """A wave that begins where the last attempt ended, and says so."""

    def __init__(self, path):
        self.path = path

    def start(self, run):
        with self.path.open("a") as file:
            file.write(f"{run.simulation} {run.attempt} {run.first_step} {run.cores}\n")
        for step in list(self.solve(run.parameters))[run.first_step :]:
            yield step
            if run.attempt == 0 and float(step.time[0]) == 2.0:
                raise ArithmeticError("no convergence")


class Starts(Wave):
    """A wave with a pool that it keeps, and a program that it leaves or waits for."""

    def __init__(self, path):
        self.path = path
        self.pool = None

    def solve(self, parameters):
        self.pool = self.pool or get_context("fork").Pool(1)
        program = subprocess.Popen(["sleep", "7777"], start_new_session=True, env={})
        with self.path.open("a") as file:
            file.write(f"{self.pool.apply(os.getpid)} {program.pid}\n")
        yield from super().solve(parameters)
        if parameters["phase"] == 0.02:
            raise ArithmeticError("negative density")
        if parameters["phase"] == 0.03:
            program.wait()


def simulation(number):
    return Simulation(number, "training", {"phase": number / 100})


def words(path):
    return [line.split() for line in path.read_text().splitlines()]


class Kept(dict):
    """A sink: (simulation, step) -> values of the step."""

    def open(self, simulation):
        return sum(number == simulation for number, _ in self)

    def offer(self, simulation, first, steps, parameters, inputs=None):
        self.update(
            {(simulation, first + i): step.copy() for i, step in enumerate(steps)}
        )
        return len(steps)

    def close(self, simulation, complete):
        pass

    def priority(self, simulation):
        return 0

    def waiting(self):
        return ""

    def on_room(self, wake):
        pass


@pytest.fixture
def inlet():
    with Inlet(Wave.spec, Kept(), host=None) as inlet:
        yield inlet


def gone(pid):
    """Whether a process has ended; its parent need not know."""
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def await_end(pids):
    """Wait until processes have ended."""
    for pid in pids:
        deadline = time.monotonic() + 20
        while not gone(pid):
            assert time.monotonic() < deadline, pid
            time.sleep(0.01)


def active():
    """Living processes that multiprocessing has started here; runs on a worker."""
    return [p.pid for p in active_children() if not gone(p.pid)]


def fresh(client, path):
    """Workers whose processes have built no solver."""
    built = {pid for _, pid, _ in words(path)}
    return [w for w, pid in client.run(os.getpid).items() if str(pid) not in built]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_solver_is_built_once_for_each_thread_of_a_worker(inlet, tmp_path, threads):
    """Twenty tasks: each object serves one simulation at a time, and is closed once."""
    path = tmp_path / "journal"
    with (
        LOCAL(n_workers=2, threads_per_worker=threads) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with on_workers(client, Journal(path), inlet.endpoint, cores=3) as task:
            futures = [client.submit(task, simulation(n), 0) for n in range(20)]
            assert [s.steps for s in client.gather(futures)] == [STEPS] * 20
        noted = words(path)
    objects = {tuple(place) for word, *place in noted if word == "built"}
    assert len({pid for pid, _ in objects}) == 2
    assert 2 <= len(objects) <= 2 * threads
    for word in ("built", "setup-3", "close"):
        assert sorted(tuple(p) for w, *p in noted if w == word) == sorted(objects), word
    assert sum(word == "solve" for word, *_ in noted) == 20


def test_what_dask_carries_is_small(inlet, tmp_path):
    """The solver travels once, whatever its size; a task is a name and two numbers."""
    path = tmp_path / "journal"
    solver = Journal(path, payload=os.urandom(1 << 20))
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        on_workers(client, solver, inlet.endpoint) as task,
    ):
        assert len(pickle.dumps(task)) < 200
        assert task.patience > Task("").patience, "a big one takes longer to arrive"
        assert client.submit(task, simulation(0), 0).result().steps == STEPS


def test_a_worker_that_joins_later_gets_the_solver_too(inlet, tmp_path):
    """And one that is restarted, which a killed process is."""
    path = tmp_path / "journal"
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        on_workers(client, Journal(path), inlet.endpoint) as task,
    ):
        client.submit(task, simulation(0), 0).result()
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        (new,) = fresh(client, path)
        client.submit(task, simulation(1), 0, workers=[new], pure=False).result()
        client.restart_workers([new])
        client.wait_for_workers(2, timeout=60)
        # It has another address and another process.
        (again,) = fresh(client, path)
        client.submit(task, simulation(2), 0, workers=[again], pure=False).result()
        assert sum(word == "built" for word, *_ in words(path)) == 3


def test_two_studies_of_one_cluster_do_not_mix(inlet, tmp_path):
    """Each has its own solvers; the end of one leaves the other alone."""
    paths = [tmp_path / "one", tmp_path / "two"]
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        on_workers(client, Journal(paths[0]), inlet.endpoint) as first,
    ):
        client.submit(first, simulation(0), 0).result()
        with on_workers(client, Journal(paths[1]), inlet.endpoint) as second:
            client.submit(second, simulation(1), 0).result()
        assert [w for w, *_ in words(paths[1])][-1] == "close"
        client.submit(first, simulation(2), 0).result()
        assert [w for w, *_ in words(paths[0])] == [
            "built",
            "setup-1",
            "solve",
            "solve",
        ]
        with pytest.raises(SetupError, match="does not know the study"):
            client.submit(Task(second.study), simulation(3), 0).result()


def test_a_solver_that_cannot_be_set_up_is_named(inlet, tmp_path):
    """With what its setup has raised, in the task that wanted it."""
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        on_workers(
            client, Journal(tmp_path / "a", broken=True), inlet.endpoint
        ) as task,
        pytest.raises(
            SetupError,
            match=r"Journal could not be set up on .*ArithmeticError: no lic",
        ),
    ):
        client.submit(task, simulation(0), 0).result()


def test_after_an_error_the_next_simulation_gets_a_new_solver(inlet, tmp_path):
    """Whatever the error has left in the old one, which is closed."""
    path = tmp_path / "journal"
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        on_workers(client, Journal(path, fails_at=0.01), inlet.endpoint) as task,
    ):
        with pytest.raises(ArithmeticError, match="negative density"):
            client.submit(task, simulation(1), 0).result()
        client.submit(task, simulation(2), 0).result()
    once = ["built", "setup-1", "solve", "close"]
    assert [word for word, *_ in words(path)] == 2 * once


def test_what_a_solver_starts_ends_with_it(inlet, tmp_path):
    """Pool and program may serve the next simulation, but no program the next solver."""
    path = tmp_path / "pids"
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with on_workers(client, Starts(path), inlet.endpoint) as task:
            for n in (0, 1):
                client.submit(task, simulation(n), 0).result()
            (pool, first), (again, second) = words(path)
            assert pool == again
            assert psutil.Process(int(first)).is_running()
            with pytest.raises(ArithmeticError, match="negative density"):
                client.submit(task, simulation(2), 0).result()
            assert all(map(gone, (first, second)))
            waits = client.submit(task, simulation(3), 0)
            while len(words(path)) < 4:
                time.sleep(0.01)
        # The worker lives, as one of others' clusters does.
        assert waits.result().steps == STEPS
        await_end(pid for line in words(path) for pid in line)
        with on_workers(client, Starts(path), inlet.endpoint, ours=True) as task:
            client.submit(task, simulation(4), 0).result()
            # Its pool starts another.
            first = int(words(path)[-1][0])
            os.kill(first, signal.SIGKILL)
            while (again := client.run(active).popitem()[1]) in ([], [first]):
                time.sleep(0.01)
            os.kill(client.run(os.getpid).popitem()[1], signal.SIGKILL)
            await_end(again)
    await_end(pid for line in words(path) for pid in line)


def test_a_run_stops_when_the_study_ends(inlet, tmp_path):
    """Though it yields nothing; its scratch folder is removed."""
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        on_workers(client, Patient(tmp_path), inlet.endpoint) as task,
    ):
        future = client.submit(task, simulation(0), 0)
        while not any(p.next_step == STEPS - 1 for p in inlet.progress()):
            time.sleep(0.01)
        inlet.stop_outlets("the study has ended")
        assert future.result(timeout=30).stopped
    assert "the study has ended" in (tmp_path / "stopped").read_text()
    assert not os.path.exists((tmp_path / "folder").read_text())


def test_a_second_attempt_may_begin_where_the_first_ended(tmp_path):
    """Every step arrives exactly once, and none that had arrived is computed again."""
    path = tmp_path / "journal"
    got = Kept()
    with Inlet(Wave.spec, got, host=None) as inlet:
        with pytest.raises(ArithmeticError):
            run(Restarting(path), inlet.endpoint, simulation(7), 0)
        assert sorted(got) == [(7, 0), (7, 1)]
        again = run(Restarting(path), inlet.endpoint, simulation(7), 1, cores=2)
        assert again.steps == STEPS - 2
    assert words(path) == [list("7001"), list("7122")]
    truth = xr.concat(Wave().solve({"phase": 0.07}), "time").u
    np.testing.assert_allclose([got[7, k][0] for k in range(STEPS)], truth, rtol=1e-6)


def count_factorisations():
    """From now on, in this process; runs on a worker."""
    from surrogate_flow.solvers import heat_plate

    heat_plate.splu = mock.Mock(side_effect=heat_plate.splu)


def factorisations():
    from surrogate_flow.solvers import heat_plate

    return heat_plate.splu.call_count


def test_the_plate_is_factorised_once_for_all_simulations():
    """The promise of HeatPlate, on a worker."""
    solver = HeatPlate(cells=(8, 2), steps=2)
    temperatures = {p.name: 300.0 for p in solver.spec.parameters}
    simulations = [Simulation(n, "training", temperatures) for n in range(5)]
    with (
        LOCAL(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
        Inlet(solver.spec, Kept(), host=None) as inlet,
        on_workers(client, solver, inlet.endpoint) as task,
    ):
        client.run(count_factorisations)
        client.gather([client.submit(task, s, 0) for s in simulations])
        assert list(client.run(factorisations).values()) == [1]


@pytest.mark.parametrize("given", [{"time": [3.0]}, None, Wave().step(0.1, 3.0).u])
def test_what_is_no_dataset_is_named_with_the_line_that_yields_it(given, inlet):
    """In a retry too, where its time is looked at first."""

    class Wrong(Wave):
        def start(self, run):
            if run.attempt == 0:
                yield self.step(0.1, 1.0)
                raise ArithmeticError
            yield given

    with pytest.raises(ArithmeticError):
        run(Wrong(), inlet.endpoint, simulation(0), 0)
    line = r"\nAt .*test_workers_solvers.py:\d+, in start: yield given"
    with pytest.raises(SpecMismatch, match=rf"expected an xarray.Dataset.*{line}"):
        run(Wrong(), inlet.endpoint, simulation(0), 1)


def test_a_frozen_worker_holds_up_neither_begin_nor_end(inlet, tmp_path, caplog):
    """It answers nobody; the others work, and the study says so within seconds."""
    with (
        LOCAL(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        (_, pid), (alive, _) = client.run(os.getpid).items()
        os.kill(pid, signal.SIGSTOP)
        begin = time.monotonic()
        try:
            with on_workers(client, Journal(tmp_path / "j"), inlet.endpoint) as task:
                future = client.submit(task, simulation(0), 0, workers=[alive])
                assert future.result(timeout=60).steps == STEPS
            # Each wait was a minute, and took it whole.
            assert time.monotonic() - begin < 60
        finally:
            os.kill(pid, signal.SIGCONT)
    assert "has not accepted the solver within 5 s" in caplog.text
    assert "has not closed its solver within 10 s" in caplog.text


def test_nothing_is_left_of_what_runs_on_a_worker_that_does_not_close(
    inlet, tmp_path, monkeypatch
):
    """Its nanny removes it with the study; the worker may end later, or be killed."""
    monkeypatch.setattr("surrogate_flow.ensemble.task._REMOVE", 0.5)
    local = tmp_path / "local"
    with (
        LOCAL(n_workers=1, threads_per_worker=1, local_directory=str(local)) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with (
            Placement(client) as placement,
            on_workers(client, Wave(), inlet.endpoint, study=placement.study) as task,
        ):
            # The nanny's, whether or not the worker's file lies in it by now.
            wait_until(lambda: [*local.rglob(f"{task.study}-*")])
            (pid,) = client.run(os.getpid).values()
            os.kill(pid, signal.SIGSTOP)
        left = [*local.rglob(f"{task.study}-*")]
        os.kill(pid, signal.SIGCONT)
        client.run(os.getpid)
    assert not left
    assert not [*local.rglob("surrogate-flow-*")]


def records(local, nanny, study):
    """Note an attempt and be killed, as a worker and its nanny with a machine."""
    worker = SimpleNamespace(
        nanny=nanny, local_directory=f"{local}/worker-1", id="Worker-1"
    )
    with Recorder(worker, study).running("attempt"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_two_studies_on_a_worker_see_one_death(tmp_path):
    """Each hears whose attempt it was, though a worker has begun beside it meanwhile."""
    plugins = {n: Reporter(n) for n in "ab"}
    nanny = SimpleNamespace(
        local_directory=str(tmp_path),
        address="tcp://10.0.0.1:7",
        plugins=plugins,
        process=None,
        _on_worker_exit_sync=mock.Mock(),
        log_event=mock.Mock(),
    )
    for reporter in plugins.values():
        reporter.setup(nanny)
    fork, given = get_context("fork"), (tmp_path, nanny.address, "a")
    process = fork.Process(target=records, args=given)
    process.start()
    process.join()
    # In a process of its own, as a lock is no obstacle to whoever holds it.
    begin = (
        "import sys; from distributed.diskutils import WorkSpace;"
        "WorkSpace(sys.argv[1]).new_work_dir(prefix='worker-').release()"
    )
    subprocess.run([sys.executable, "-c", begin, str(tmp_path)], check=True)
    nanny._on_worker_exit_sync(-9)
    told = {study: death for (study, death), _ in nanny.log_event.call_args_list}
    death = {"died": "Worker-1", "code": -9, "ran": {"attempt": ""}}
    assert told == {"a": death, "b": death}
    for reporter in plugins.values():
        reporter.teardown(nanny)
    assert not [*tmp_path.glob("[ab]-*")]


def test_dask_does_not_say_again_what_fails():
    """In its own words, in the worker and at the scheduler; of other tasks it does."""
    noisy = [logging.getLogger(f"distributed.{n}") for n in ("scheduler", "worker")]
    keys = ["wave-training-1-0-study-a", "wave-training-1-0-study-b"]

    def said():
        heard = mock.Mock(level=logging.ERROR)
        for each in noisy:
            each.addHandler(heard)
            for key in keys:
                each.error("Compute Failed\nKey:       %s", key)
            each.removeHandler(heard)
        return [record.args[0] for (record,), _ in heard.handle.call_args_list]

    with dask_is_quiet("study-a"):
        assert said() == keys[1:] * 2
    assert said() == keys * 2
