"""Jobs without a batch system: what is asked for, what is said of them, how many there are."""

import logging
import os
import subprocess
import time
from functools import partial

import dask
import pytest
from dask_jobqueue import PBSCluster, SLURMCluster
from distributed import LocalCluster

from surrogate_flow.cluster.batch import (
    Bounds,
    Refused,
    Request,
    Size,
    Supervisor,
    Waits,
    at_once,
    cancellation,
    processes_of,
)
from surrogate_flow.cluster.batch import batch_queue as queue
from surrogate_flow.cluster.batch import job as jobs
from surrogate_flow.cluster.batch.batch_queue import PBS, Slurm, State
from surrogate_flow.cluster.batch.drain import Departure
from surrogate_flow.cluster.batch.job import Job
from surrogate_flow.cluster.batch.walltime import UNTIL, prologue, walltime_of
from surrogate_flow.cluster.open import open_cluster

SLURM = partial(SLURMCluster, cores=4, memory="4 GB", interface="lo")


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        ({"n_workers": 6}, Bounds(2, 2)),
        ({"n_workers": 6, "minimum_jobs": 1, "maximum_jobs": 8}, Bounds(2, 2)),
        ({"minimum_jobs": 2, "maximum_jobs": 5}, Bounds(2, 5)),
        ({"maximum_jobs": 5}, Bounds(1, 5)),
        ({"minimum_jobs": 3}, Bounds(3, 3)),
    ],
    ids=str,
)
def test_the_number_of_jobs_that_a_recipe_asks_for(asked, bounds):
    """A number of workers, or bounds of jobs; of four processes a job here."""
    assert Request.of(partial(SLURM, **asked)).bounds(4) == bounds


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "How many jobs"),
        ({"minimum_jobs": 3, "maximum_jobs": 2}, "got 3 and 2"),
        ({"minimum_jobs": 0, "maximum_jobs": -1}, "1 <= minimum_jobs"),
    ],
    ids=str,
)
def test_numbers_of_jobs_that_make_no_sense(asked, words):
    """Each is refused in words."""
    with pytest.raises(ValueError, match=words):
        Request.of(partial(SLURM, **asked)).bounds(4)


def test_all_ranks_have_room():
    """However few jobs were asked for."""
    assert Bounds(1, 2).at_least(3) == Bounds(3, 3)
    assert Bounds(1, 5).at_least(3) == Bounds(3, 5)
    assert Bounds(4, 5).at_least(3) == Bounds(4, 5)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dask-worker-17.err", True),
        ("slurm-17.out", True),
        ("dask-worker.e17", True),
        ("17.pbs-server.ER", True),
        ("run-2017.csv", False),
        ("dask-worker-170.err", False),
        ("notes-17.txt", False),
    ],
)
def test_the_end_of_a_job_s_log(name, shown, tmp_path, monkeypatch):
    """Of files as batch systems name them, and of no others."""
    monkeypatch.chdir(tmp_path)
    with open_cluster(SLURM, tmp_path) as cluster:
        job = Job(cluster, 0)
        job._job.job_id = "17"
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / "jobs" / name).write_text("one\ntwo\n\nthree\nfour\nfive\nsix\n")
        (tmp_path / "jobs" / "broken-17.err").symlink_to("nowhere")
        assert job.log().endswith("two\nthree\nfour\nfive\nsix") == shown


def test_a_misspelt_argument_is_named_with_the_nearest():
    """Before a scheduler is started."""
    with pytest.raises(ValueError, match=r"no argument 'walltme'.*mean 'walltime'"):
        Request.of(partial(SLURM, walltme="1"))


def test_other_clusters_have_no_jobs():
    """Nor does none."""
    assert Request.of(None) is None
    assert Request.of(LocalCluster) is None
    assert Request.of(partial(LocalCluster, n_workers=2)) is None


@pytest.mark.parametrize(
    ("cores", "arguments", "processes", "threads"),
    [(1, {}, 4, 1), (2, {}, 2, 1), (4, {}, 1, 1), (1, {"processes": 1}, 1, 4)],
    ids=str,
)
def test_a_job_runs_as_many_simulations_as_fit(
    cores, arguments, processes, threads, tmp_path
):
    """In processes of their own, or in threads where the recipe says so; OpenMP is told."""
    factory = partial(SLURM, **arguments)
    with open_cluster(factory, tmp_path, cores_per_simulation=cores) as cluster:
        script = cluster.job_script()
        assert processes_of(cluster) == processes
        words = script.split()
        assert int(words[len(words) - words[::-1].index("--nthreads")]) == threads
        assert ("--nworkers" in words) == (processes > 1)
        assert at_once(cluster) == processes * threads
        assert f"export OMP_NUM_THREADS={cores}" in script
        assert f"#SBATCH -o {tmp_path}/jobs/" in script


def test_what_a_site_says_of_all_jobs_stays(tmp_path):
    """Also under the names that dask-jobqueue had for it before, and behind what a study adds."""
    site = {"env-extra": ["module load gcc"], "extra": ["--lifetime", "1h"]}
    with (
        dask.config.set({f"jobqueue.slurm.{k}": v for k, v in site.items()}),
        open_cluster(SLURM, tmp_path) as cluster,
    ):
        script = cluster.job_script()
    assert script.index("OMP_NUM_THREADS") < script.index("module load gcc")
    assert "--lifetime 1h" in script
    threads = partial(SLURM, processes=1, worker_extra_args=["--nthreads", "2"])
    with open_cluster(threads, tmp_path) as cluster:
        assert at_once(cluster) == 2


@pytest.mark.parametrize(
    ("walltime", "text"),
    [(43200, "12:00:00"), (90, "00:01:30"), (90061, "25:01:01"), ("1-0", "1-0")],
)
def test_a_walltime_that_yaml_has_made_a_number_of(walltime, text, tmp_path):
    """12:00:00, which would ask for thirty days; whatever else is text stays."""
    with open_cluster(partial(SLURM, walltime=walltime), tmp_path) as cluster:
        assert f"#SBATCH -t {text}\n" in cluster.job_script()


def test_a_job_with_too_few_cores(tmp_path):
    """The message names both numbers."""
    factory = partial(SLURM, processes=4)
    with (
        pytest.raises(ValueError, match=r"4 cores.*4 simulations.*2 cores each"),
        open_cluster(factory, tmp_path, cores_per_simulation=2),
    ):
        pass


def test_a_job_notes_when_its_time_is_over(tmp_path):
    """As the shell does it."""
    line = prologue(600)
    shell = f"date +%s; {line}; echo ${UNTIL}"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, check=True, timeout=10
    )
    now, until = map(int, done.stdout.split())
    assert 600 <= until - now <= 601
    with open_cluster(partial(SLURM, walltime="00:10:00"), tmp_path) as cluster:
        assert walltime_of(cluster.job_script()) == 600
        assert line in cluster.job_script()


@pytest.fixture
def departure(tmp_path):
    """Of jobs of an hour; and what makes one, by its number and the seconds it has left."""
    with open_cluster(SLURM, tmp_path) as cluster:

        def job(number, left):
            made = Job(cluster, number)
            made.until = time.time() + left
            return made

        yield Departure(cluster, None, 3600.0), job


def test_jobs_leave_before_simulations_are_cut_off(departure):
    """1.2 times the longest one before their end, and 36 s."""
    leaves, job = departure
    assert leaves.due(job(0, 1.2 * 600 + 35), longest=600.0)
    assert not leaves.due(job(0, 1.2 * 600 + 37), longest=600.0)


def test_jobs_that_began_together_leave_one_after_the_other(departure):
    """Over a tenth of the walltime."""
    leaves, job = departure
    early = [
        max(left for left in range(0, 3600, 5) if leaves.due(job(number, left), 0.0))
        for number in range(8)
    ]
    assert len(set(early)) == 8
    assert 300 < max(early) - min(early) < 360


def test_simulations_that_are_as_long_as_a_job_begin_with_it(departure):
    """However long one takes, a job begins some, for a tenth of its time."""
    leaves, job = departure
    assert not leaves.due(job(7, 3500), longest=5000.0)
    assert leaves.due(job(7, 3200), longest=5000.0)


def test_without_a_walltime_no_job_leaves(departure, tmp_path):
    """Nor one of which nobody knows when its time is over."""
    leaves, job = departure
    unknown = job(0, 0)
    unknown.until = None
    assert not leaves.due(unknown, 0.0)
    leaves.walltime = None
    assert not leaves.due(job(0, 0), 0.0)


SQUEUE = """17|RUNNING|None
18|PENDING|Priority
19|COMPLETING|None
20|PENDING|Nodes required for job are DOWN, DRAINED or reserved
21|CONFIGURING|None
"""

# As OpenPBS prints it.
OPENPBS = """Job Id: 17.pbs-server-01
    Job_Name = dask-worker
    job_state = R
    Resource_List.ncpus = 4

Job Id: 18.pbs-server-01
    Job_Name = dask-worker
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus (R: 400 A: 64 T:
\t 64)
    ctime = Sat Nov 21 16:00:00 2026

Job Id: 19.pbs-server-01
    job_state = F
Job Id: 1170.pbs-server-01
    job_state = R
"""

# As Debian's wrapper of Slurm does.
WRAPPED = """Job Id:\t17
\tJob_Name = dask-worker
\tjob_state = R
\tqueue = main

Job Id:\t18
\tjob_state = Q
\tcomment = Resources
\tqueue = main

Job Id:\t19
\tjob_state = C
\tqueue = main
"""


def test_what_slurm_says(monkeypatch):
    """Its states and reasons; what it does not list is gone."""
    monkeypatch.setattr(queue, "_ask", lambda words, **_: SQUEUE)
    told = Slurm().look(["17", "18", "19", "20", "21", "22"])
    assert [told[n].state.name for n in sorted(told)] == [
        "RUNNING",
        "WAITING",
        "GONE",
        "WAITING",
        "WAITING",
        "GONE",
    ]
    assert told["17"].words == "RUNNING"
    assert told["18"].words == "PENDING (Priority)"


@pytest.mark.parametrize(
    ("text", "comment"),
    [(OPENPBS, "ncpus (R: 400 A: 64 T: 64)"), (WRAPPED, ": Resources")],
    ids=["OpenPBS", "Debian"],
)
def test_what_pbs_says(text, comment, monkeypatch):
    """Jobs are known by their numbers; a comment tells why one waits."""
    monkeypatch.setattr(queue, "_ask", lambda words, **_: text)
    told = PBS().look(["17", "18.pbs-server-01", "19", "20"])
    states = [told[n].state for n in sorted(told)]
    assert states == [State.RUNNING, State.WAITING, State.GONE, State.GONE]
    assert told["18.pbs-server-01"].words.endswith(comment)
    assert told["17"].words == "state R"


@pytest.mark.parametrize("queues", [Slurm(), PBS()])
def test_no_answer_is_no_news(queues, monkeypatch):
    """A batch system that is not there says nothing of a job, not that it is gone."""
    monkeypatch.setenv("PATH", "")
    assert queues.look(["17"]) is None


def test_a_server_that_does_not_answer_is_no_news(tmp_path, monkeypatch):
    """As qstat has it, whose exit status tells it from a job that is unknown."""
    script = tmp_path / "qstat"
    monkeypatch.setenv("PATH", str(tmp_path))
    for status, gone in ((111, None), (153, {"17": State.GONE})):
        script.write_text(f"#!/bin/sh\nexit {status}\n")
        script.chmod(0o755)
        told = PBS().look(["17"])
        assert (told and {n: s.state for n, s in told.items()}) == gone


def test_which_queue(tmp_path):
    """By the class of the cluster."""
    with open_cluster(SLURM, tmp_path) as cluster:
        assert isinstance(queue.of(cluster), Slurm)
    pbs = partial(PBSCluster, cores=1, memory="1 GB", interface="lo")
    with open_cluster(pbs, tmp_path) as cluster:
        assert isinstance(queue.of(cluster), PBS)


class Coupled:
    """Jobs that bring samples, a trainer that takes them, and a store between: a second a step.

    Parameters
    ----------
    each, taken : float
        Samples a second, of a job and of the trainer.
    capacity : float
        Of the store.
    delay : float
        Seconds that a new job waits in the queue.
    """

    def __init__(self, each, taken, capacity, size, delay=20.0):
        self.each, self.taken, self.capacity = each, taken, capacity
        self.size, self.delay = size, delay
        self.held = self.hungry = self.full = 0.0
        self.now, self.at_work, self.queued = 0.0, size.wanted, []
        self.wanted = []

    def run(self, seconds):
        for _ in range(seconds):
            self.step()

    def step(self):
        made = self.at_work * self.each
        brought = min(made, self.capacity - self.held + self.taken)
        self.full += float(made > brought)
        taken = min(self.held + brought, self.taken)
        self.hungry += 1 - taken / self.taken
        self.held = min(self.capacity, self.held + brought - taken)
        waits = Waits(self.hungry, self.full)
        wanted = self.size.update(self.now, waits, self.at_work)
        missing = wanted - self.at_work - len(self.queued)
        self.queued += [self.now + self.delay] * missing
        self.at_work = min(self.at_work, wanted)
        self.at_work += sum(at <= self.now for at in self.queued)
        self.queued = [at for at in self.queued if at > self.now]
        self.wanted.append(wanted)
        self.now += 1


def changes(numbers):
    return sum(a != b for a, b in zip(numbers[1:], numbers, strict=False))


@pytest.mark.parametrize("capacity", [100, 6000, 60_000])
@pytest.mark.parametrize("needed", [1.0, 5.0, 7.5, 70.0])
def test_the_number_of_jobs_settles_at_what_the_training_needs(needed, capacity):
    """Within one job of it, and hardly ever changed later; the trainer waits little."""
    size = Size(Bounds(1, 100), settle=30)
    study = Coupled(10.0, 10 * needed, capacity, size)
    study.run(3600)
    hungry = study.hungry
    study.run(6 * 3600)
    assert abs(study.wanted[-1] - needed) <= 1
    assert hungry < 400
    assert study.hungry - hungry < 0.05 * 6 * 3600
    # Two attempts at fewer, and back, of which each comes twice as late.
    assert changes(study.wanted[3600:]) <= 12


def test_the_number_of_jobs_follows_a_trainer_that_slows_down():
    """Fewer jobs, one after the other, and not below the minimum."""
    size = Size(Bounds(2, 50), settle=30)
    study = Coupled(10.0, 200.0, 6000, size)
    study.run(3600)
    assert 19 <= study.wanted[-1] <= 21
    study.taken = 5.0
    study.run(3 * 3600)
    assert study.wanted[-1] == 2


def test_no_more_jobs_than_simulations_are_left():
    """The last ones need no further jobs, and free those that are idle."""
    size = Size(Bounds(1, 50), settle=10)
    hungry = [Waits(10.0 * n, 0.0) for n in range(20)]
    wanted = [size.update(10.0 * n, w, size.wanted) for n, w in enumerate(hungry)]
    assert wanted[-1] == 50
    assert size.update(200.0, Waits(200.0, 0.0, useful=3), 50) == 3


def test_jobs_that_never_come_are_given_up_first():
    """A site that allows five of eight: when the trainer slows down, the others are no longer asked for."""
    size = Size(Bounds(1, 50), settle=10)
    size.wanted = 8
    wanted = [size.update(10.0 * n, Waits(0.0, 10.0 * n), 5) for n in range(6)]
    assert wanted == [8, 5, 4, 3, 2, 1]


def test_jobs_that_wait_in_the_queue_ask_for_no_others():
    """However long the trainer waits meanwhile."""
    size = Size(Bounds(1, 50), settle=10)
    size.update(0.0, Waits(0.0, 0.0), 1)
    assert size.update(10.0, Waits(10.0, 0.0), 1) == 2
    for now in range(20, 1000, 10):
        assert size.update(float(now), Waits(float(now), 0.0), 1) == 2


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """A batch system of small scripts, each with its shell lines."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name, lines):
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)

    return add


def test_a_job_that_is_taken_too_late_is_cancelled(scripted, tmp_path, monkeypatch):
    """Nobody waits for the batch system for ever, and nothing of it is left."""
    cancelled = tmp_path / "cancelled"
    scripted("sbatch", "sleep 1; echo Submitted batch job 41")
    scripted("scancel", f"echo $1 > {cancelled}.part; mv {cancelled}.part {cancelled}")
    monkeypatch.setattr(jobs, "ANSWER", 0.2)
    with open_cluster(SLURM, tmp_path) as cluster:
        with pytest.raises(Refused, match="no answer within"):
            Job(cluster, 0).submit()
        deadline = time.monotonic() + 30
        while not cancelled.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert cancelled.read_text() == "41\n"


@pytest.fixture
def said(monkeypatch):
    """What the end of a fleet warns of; Dask silences the handlers that pytest gives it."""
    lines, handler = [], logging.Handler(logging.WARNING)
    monkeypatch.setattr(
        handler, "emit", lambda record: lines.append(record.getMessage())
    )
    logger = logging.getLogger(cancellation.__name__)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_a_job_that_cannot_be_cancelled_is_named(scripted, tmp_path, monkeypatch, said):
    """With what a person can type, when the study ends."""
    scripted("sbatch", "echo Submitted batch job 41")
    scripted("squeue", "echo '41|PENDING|Priority'")
    scripted("scancel", "exit 1")
    monkeypatch.setattr(cancellation, "_CANCEL", 1.0)
    with open_cluster(SLURM, tmp_path) as cluster, Supervisor(cluster, Bounds(1, 1)):
        pass
    (line,) = said
    assert "Job 41 may still be in the queue (PENDING (Priority))" in line
    assert "scancel 41" in line


def test_a_queue_that_does_not_answer_is_no_end(scripted, tmp_path, monkeypatch, said):
    """Whether jobs are gone is not known then, and is said."""
    scripted("sbatch", "echo Submitted batch job 41")
    scripted("squeue", "exit 1")
    scripted("scancel", "exit 0")
    monkeypatch.setattr(cancellation, "_CANCEL", 1.0)
    with open_cluster(SLURM, tmp_path) as cluster, Supervisor(cluster, Bounds(1, 1)):
        pass
    (line,) = said
    assert "the queue has said nothing" in line
