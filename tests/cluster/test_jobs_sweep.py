"""Trials of a sweep as jobs of a real Slurm: by its own commands, and by those of PBS."""

import importlib.metadata
import json
import os
import re
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import batch
import moments
import pytest
import yaml
from batch import wait_until

from surrogate_flow.cli.app import main
from surrogate_flow.cli.sweep.attempt import Attempt
from surrogate_flow.cli.sweep.controller import Controller
from surrogate_flow.cli.sweep.detached import SweepJob
from surrogate_flow.cli.sweep.folder import SweepError, SweepFolder
from surrogate_flow.cli.sweep.places import Jobs
from surrogate_flow.cli.sweep.recipe import SweepRecipe
from surrogate_flow.cluster.batch import JobQueue

pytestmark = pytest.mark.timeout(700)


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_a_trial_is_a_job(slurm, kind, tmp_path, monkeypatch):
    """Its output is in the trial's log; it is found again, and ended, by its id."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.5)
    monkeypatch.chdir(tmp_path)  # where PBS leaves the logs of jobs
    place = Jobs(batch.cluster(kind), tmp_path / "jobs")
    log = tmp_path / "trials" / "0000" / "log.txt"
    # Other fronts of PBS than its own may not read the last two.
    for option in "oe":
        word = {"slurm": "SBATCH", "pbs": "PBS"}[kind]
        assert f"#{word} -{option} {tmp_path / 'jobs'}/" in place.script()

    def start(number, words, log):
        attempt = Attempt(tmp_path / "trials" / f"{number:04d}" / "attempt-0")
        return Attempt(attempt.path, place.start(attempt, words, log))

    short = start(0, ["--version"], log)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "telemetry.csv").write_text("seconds\n1.0\n")
    words = ["watch", str(tmp_path / "run"), "--port", "0"]
    long = start(1, words, tmp_path / "log.txt")
    wait_until(lambda: not place.runs(short), 90)
    version = importlib.metadata.version("surrogate-flow")
    assert log.read_text() == f"surrogate-flow {version}\n"
    wait_until((tmp_path / "log.txt").is_file, 90)
    # As a process that goes on with the sweep would, which has noted nothing.
    again = Jobs(batch.cluster(kind), tmp_path / "jobs")
    wait_until(lambda: Attempt(long.path).trains, 90)
    assert Attempt(long.path).handle["job"] == long.started["job"].partition(".")[0]
    again.end(Attempt(long.path))
    wait_until(lambda: not again.runs(Attempt(long.path)), 90)


def test_a_job_of_another_host_is_looked_up_in_the_queue(slurm, tmp_path, monkeypatch):
    """Whether its host's locks are seen here or not."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.0)
    job = batch.call("sbatch", "--parsable", "--wrap=sleep 600", "-o/dev/null").strip()
    attempt = Attempt(tmp_path / "attempt-0")
    attempt.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": job}))
    place = Jobs(batch.cluster(), tmp_path / "jobs")
    assert not attempt.trains
    assert place.runs(attempt)
    place.end(attempt)
    wait_until(lambda: not place.runs(attempt), 60)


def test_a_queue_that_does_not_answer_is_warned_of(slurm, tmp_path, monkeypatch):
    """Its jobs are taken to be there: at first, and again where it goes on."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.0)
    attempt = Attempt(tmp_path / "attempt-0")
    attempt.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "17"}))
    place = Jobs(batch.cluster(), tmp_path / "jobs")
    monkeypatch.setenv("PATH", "")
    warned = mock.Mock()
    monkeypatch.setattr("surrogate_flow.cli.sweep.places.logger.warning", warned)
    for _ in range(3):
        assert place.runs(attempt)
    assert warned.call_count == 1
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._REMIND", 0.0)
    assert place.runs(attempt)
    assert warned.call_count == 2
    assert "has not answered for" in warned.call_args[0][0]


def test_an_ensemble_that_jobs_do_not_reach_is_refused(slurm, tmp_path, monkeypatch):
    """Before one is submitted: on this host alone it is for jobs of this host."""
    place = Jobs(batch.cluster(), tmp_path)
    place.require_reachable("tcp://127.0.0.1:8786")
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._HOST", "login.site.org")
    place.require_reachable("tls://10.0.0.1:8786")
    with pytest.raises(SweepError, match=r"on login\.site\.org alone.*data\.cluster"):
        place.require_reachable("tcp://127.0.0.1:8786")


class Killed(Jobs):
    """Its controller is killed when a job is submitted, before that is noted."""

    def start(self, attempt, words, log):
        super().start(attempt, words, log)
        if self.begun:
            wait_until(lambda: attempt.trains, 60)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("begun", [True, False])
def test_a_job_that_nobody_has_noted_trains_once(slurm, begun, tmp_path, monkeypatch):
    """Whether it has begun when its controller is killed, or waits in the queue."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.5)
    recipe = SweepRecipe(
        space={"model.lr": [0.1, 0.2]},
        data="heat2d",
        model="fno",
        share_simulations=False,
        at_once=1,
    )
    folder = SweepFolder.create(tmp_path / "s", recipe)
    later = {} if begun else {"job_extra_directives": ["--begin=now+4"]}
    places = [
        Killed(batch.cluster(**later), folder.path / "jobs"),
        Jobs(batch.cluster(), folder.path / "jobs"),
    ]
    places[0].program = moments.program(2.0 if begun else 0.0)
    places[1].program = moments.program(0.0)
    places[0].begun = begun

    def control():
        Controller(folder, places[0]).run(bool)

    first = get_context("fork").Process(target=control)
    first.start()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    assert len(batch.jobs()) == 1
    Controller(SweepFolder(folder.path), places[1]).run(bool)
    wait_until(lambda: not batch.jobs(), 60)
    assert folder.left == 0
    assert moments.ledger(folder) == {n: ["begins", "ends"] for n in range(2)}


@pytest.fixture
def detached(queue, tmp_path, monkeypatch):
    """Detaches a sweep of two trials, one after the other; returns its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(Jobs, "program", moments.COMMAND)
    system = {"slurm": "Slurm", "pbs": "PBS"}[queue]

    def detach(**changed):
        options = batch.arguments(memory="2 GB", **changed)
        named = {n: options.pop(n) for n in ("cores", "memory", "walltime")}
        job = {"class_path": f"surrogate_flow.cluster.{system}"}
        recipe = {
            "data": "heat2d",
            "model": "fully_connected",
            "space": {"model.optimizer.init_args.lr": [1e-3, 1e-2]},
            "at_once": 1,
            "share_simulations": False,
            "controller": {**job, "init_args": {**named, "options": options}},
        }
        Path("s.yaml").write_text(yaml.safe_dump(recipe))
        main(["sweep", "s.yaml", "--detach"])
        return SweepFolder(Path("sweeps/s"))

    return detach


def test_a_sweep_is_a_job_and_goes_on_in_the_next(detached, capfd):
    """Before its walltime is over; another one is refused, and looks at it."""
    folder = detached()
    (job,) = batch.jobs()
    assert f"The sweep is job {job}" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        main(["sweep", "resume", "sweeps/s"])
    assert f"is run by job {job} (" in capfd.readouterr().err
    try:
        wait_until(lambda: moments.ledger(folder), 200)
        main(["sweep", "status", "sweeps/s"])
        said = capfd.readouterr().out
        assert re.search(rf"run by process \d+ on \S+, job {job} \(", said)
        # What Slurm sends before a walltime is over, where it is asked to.
        batch.call("scancel", "--batch", "--signal=USR1", job)
        states = "PENDING,RUNNING,COMPLETING"
        wait_until(lambda: not folder.left and not batch.jobs(states), 400)
    except AssertionError:
        pytest.fail((folder.path / "sweep.log").read_text())
    said = (folder.path / "sweep.log").read_text()
    assert f"trials are left: job {SweepJob(folder).id} goes on" in said
    assert SweepJob(folder).id != job
    assert [row.state for row in folder.rows()] == ["complete", "complete"]
    assert moments.ledger(folder) == {
        0: ["begins", "begins", "ends"],
        1: ["begins", "ends"],
    }
    main(["sweep", "status", "sweeps/s"])
    assert "run by nobody" in capfd.readouterr().out


def test_a_sweep_that_waits_in_the_queue_is_cancelled(detached, queue, capfd):
    """And says that it waits."""
    detached(job_extra_directives=[{"slurm": "--hold", "pbs": "-h"}[queue]])
    (job,) = batch.jobs()
    main(["sweep", "status", "sweeps/s"])
    assert f"run by job {job} (" in capfd.readouterr().out
    main(["sweep", "stop", "sweeps/s"])
    assert f"Job {job} is cancelled" in capfd.readouterr().out
    wait_until(lambda: not batch.jobs(), 60)
    main(["sweep", "stop", "sweeps/s"])
    assert "Nobody runs sweeps/s" in capfd.readouterr().out


def test_a_sweep_of_jobs_goes_on_with_what_was_killed(
    slurm, tmp_path, monkeypatch, caplog
):
    """And not with what fails; a refusal waits, and no job runs again by itself."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.5)
    recipe = SweepRecipe(
        space={"model.lr": [0.1, -1.0, 0.2]},
        data="heat2d",
        model="fno",
        share_simulations=False,
        at_once=3,
    )
    folder = SweepFolder.create(tmp_path / "a sweep", recipe)
    place = Jobs(batch.cluster(), folder.path / "jobs")
    place.program = moments.program(4.0)
    full = Jobs(batch.cluster(queue="nowhere"), folder.path / "jobs")
    start, refusals = place.start, []

    def started(attempt, words, log):
        # The third trial, once.
        if attempt.path.parent.name == "0002" and not refusals:
            refusals.append(attempt)
            return full.start(attempt, words, log)
        return start(attempt, words, log)

    place.start = started
    shown, jobs = [], {}

    def stopped():
        for number in {0, 2} - {*jobs}:
            attempt = Attempt(folder.attempt(number, 0))
            if folder.validations(number) and attempt.trains:
                job = jobs[number] = attempt.handle["job"]
                shown.append(batch.call("scontrol", "show", "job", job))
                if number:
                    os.kill(attempt.handle["pid"], signal.SIGKILL)
                else:
                    batch.call("scancel", job)
        return False

    controller = Controller(folder, place)
    controller.again = 1.0
    caplog.set_level("INFO")
    controller.run(stopped)
    assert "Requeue=0" in shown[0]
    assert f"Trial 2 was killed (job {jobs[2]}), goes on from its last" in caplog.text
    assert "Trial 0 was killed" not in caplog.text
    assert len(refusals) == 1
    rows = {row.number: row for row in folder.rows()}
    assert [rows[n].state for n in range(3)] == ["complete", "failed", "complete"]
    assert rows[1].why == "a rate is positive"
    noted = moments.ledger(folder)
    assert noted == {n: ["begins", "begins", "ends"] for n in (0, 2)}
    assert len([*folder.path.glob("jobs/*.err")]) == 5


def test_a_job_that_cannot_begin_says_why(slurm, tmp_path, monkeypatch):
    """At its first attempt; and a queue that accepts nothing ends the sweep."""
    monkeypatch.setattr("surrogate_flow.cli.sweep.places._QUERY", 0.5)
    recipe = SweepRecipe(
        space={"model.lr": [0.1]}, data="heat2d", model="fno", share_simulations=False
    )
    folder = SweepFolder.create(tmp_path / "s", recipe)
    full = Jobs(batch.cluster(queue="nowhere"), folder.path / "jobs")
    with pytest.raises(SweepError, match="refuses trial-0000"):
        Controller(folder, full).run(bool)
    assert folder.left == 1
    place = Jobs(batch.cluster(), folder.path / "jobs")
    place.program = ["/no/such/python"]
    Controller(folder, place).run(bool)
    (row,) = folder.rows()
    assert row.state == "failed"
    assert "/no/such/python: No such file" in row.why


def test_a_queue_that_cannot_be_asked_is_refused(tmp_path):
    """Nobody would know when a trial has ended."""
    system = JobQueue("dask_jobqueue.SGECluster", cores=1, memory="1 GB")
    with pytest.raises(SweepError, match=r"jobs: expected Slurm or PBS.*SGECluster"):
        Jobs(system, tmp_path / "jobs")


def test_a_job_that_the_queue_refuses_is_one_line(slurm, tmp_path):
    """With the queue's own words."""
    place = Jobs(batch.cluster(queue="nowhere"), tmp_path / "jobs")
    with pytest.raises(SweepError, match=r"refuses trial-0000: .*nvalid partition"):
        place.start(
            Attempt(tmp_path / "0000" / "attempt-0"),
            ["--version"],
            tmp_path / "log.txt",
        )
