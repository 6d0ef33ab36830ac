"""Jobs without a batch system: what is asked for, what is said of them, how many there are."""

import asyncio
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from functools import partial

import dask
import pytest
from dask_jobqueue import SLURMCluster
from distributed import LocalCluster

from surrogate_flow.cluster.batch import (
    PBS,
    Bounds,
    Job,
    JobCountController,
    JobQueue,
    JobRefused,
    JobTiming,
    Load,
    Slurm,
    Supervisor,
    batch_queue,
    batch_system,
    supervisor,
)
from surrogate_flow.cluster.batch.batch_queue import JobState, qstat, queue_of, squeue
from surrogate_flow.cluster.batch.walltime import UNTIL, Drain, prologue, walltime_of
from surrogate_flow.cluster.open import open_cluster
from surrogate_flow.fields.errors import UserError

SITE = {"cores": 4, "memory": "4 GB", "interface": "lo"}
SLURM = Slurm(**SITE)


def slurm(**options):
    """Return Slurm, with some options of dask-jobqueue's class."""
    return Slurm(**SITE, options=options)


def request(system, folder, cores=1):
    """What a study would request."""
    with open_cluster(system, folder, cores_per_simulation=cores) as cluster:
        return system.request(cluster)


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
def test_the_number_of_jobs_that_a_recipe_asks_for(asked, bounds, tmp_path):
    """A number of workers, or bounds of jobs; of four processes a job here."""
    assert request(Slurm(**SITE, **asked), tmp_path).bounds == bounds


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "n_workers, or minimum_jobs and maximum_jobs"),
        ({"minimum_jobs": 3, "maximum_jobs": 2}, "got 3 and 2"),
        ({"minimum_jobs": 0, "maximum_jobs": -1}, "1 <= minimum_jobs"),
    ],
    ids=str,
)
def test_numbers_of_jobs_that_make_no_sense(asked, words, tmp_path):
    """Each is refused in words."""
    with pytest.raises(UserError, match=words):
        request(Slurm(**SITE, **asked), tmp_path)


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


def test_a_misspelt_option_is_named_with_the_nearest(tmp_path):
    """Before a scheduler is started."""
    with (
        pytest.raises(
            UserError, match=r"unknown argument 'proceses'.*mean 'processes'"
        ),
        open_cluster(slurm(proceses=1), tmp_path),
    ):
        pass


def test_a_class_of_dask_jobqueue_is_its_batch_system():
    """Recipes of version 0.1 name it; any other cluster has no jobs."""
    old = partial(SLURMCluster, cores=2, n_workers=3, processes=1)
    system = batch_system(old)
    assert (system.cluster_class, system.n_workers) == (SLURMCluster, 3)
    assert batch_system(SLURM) is SLURM
    assert batch_system(None) is None
    assert batch_system(LocalCluster) is None
    assert batch_system(partial(LocalCluster, n_workers=2)) is None


def test_any_class_of_dask_jobqueue(tmp_path):
    """By its path, with the same arguments; no other class."""
    system = JobQueue("dask_jobqueue.SGECluster", **SITE, queue="long", n_workers=8)
    asked = request(system, tmp_path, cores=2)
    assert asked.bounds == Bounds(4, 4)
    assert "#$ -q long" in asked.script
    with pytest.raises(UserError, match="a class of dask_jobqueue, got"):
        request(JobQueue("distributed.LocalCluster"), tmp_path)


@pytest.mark.parametrize(
    ("cores", "arguments", "processes", "threads"),
    [(1, {}, 4, 1), (2, {}, 2, 1), (4, {}, 1, 1), (1, {"processes": 1}, 1, 4)],
    ids=str,
)
def test_a_job_runs_as_many_simulations_as_fit(
    cores, arguments, processes, threads, tmp_path
):
    """In processes of their own, or in threads where the recipe says so; OpenMP is told."""
    system = Slurm(**SITE, n_workers=1, options=arguments)
    asked = request(system, tmp_path, cores)
    words = asked.script.split()
    assert int(words[len(words) - words[::-1].index("--nthreads")]) == threads
    assert ("--nworkers" in words) == (processes > 1)
    assert asked.per_job == processes * threads
    assert f"export OMP_NUM_THREADS={cores}" in asked.script
    assert f"#SBATCH -o {tmp_path}/jobs/" in asked.script


@pytest.mark.parametrize("kind", [Slurm, PBS])
def test_paths_of_a_job_may_have_blanks(kind, tmp_path):
    """Of its logs and keys: directives and shell split at them."""
    folder = tmp_path / "my runs"
    script = request(kind(**SITE, n_workers=1), folder).script
    directives = [
        line for line in script.splitlines() if re.match(r"#\w+ -[oe] ", line)
    ]
    assert len(directives) == 2
    for line in directives:
        _, _, path = shlex.split(line, comments=False)
        assert path.startswith(f"{folder}/jobs/")
    words = shlex.split(script.splitlines()[-1])
    assert words[0] == sys.executable
    assert "--nthreads" in words
    for name in ("--tls-ca-file", "--tls-cert", "--tls-key"):
        path = words[words.index(name) + 1]
        assert path.startswith(f"{folder}/.keys-")


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
    threads = {"processes": 1, "worker_extra_args": ["--nthreads", "2"]}
    system = Slurm(**SITE, n_workers=1, options=threads)
    assert request(system, tmp_path).per_job == 2


def test_what_a_site_says_goes_where_the_recipe_says_nothing(tmp_path):
    """Queue and account of the configuration; the recipe's own go before them."""
    site = {"queue": "compute", "account": "physics", "cores": 8, "memory": "8 GB"}
    settings = {f"jobqueue.slurm.{k}": v for k, v in site.items()}
    with dask.config.set(settings):
        asked = request(Slurm(account="maths", interface="lo", n_workers=8), tmp_path)
    assert "#SBATCH -p compute" in asked.script
    assert "#SBATCH -A maths" in asked.script
    assert asked.bounds == Bounds(1, 1)
    assert asked.resources.startswith("8 cores, 8 GB")


@pytest.mark.parametrize(
    ("walltime", "text"),
    [
        (43200, "12:00:00"),
        (90, "00:01:30"),
        (90061, "25:01:01"),
        ("2h", "02:00:00"),
        ("1-0", "1-0"),
    ],
)
def test_a_walltime_is_a_duration_or_a_number_of_seconds(walltime, text, tmp_path):
    """YAML makes a number of 12:00:00, which would ask for thirty days; other text stays."""
    with open_cluster(Slurm(**SITE, walltime=walltime), tmp_path) as cluster:
        assert f"#SBATCH -t {text}\n" in cluster.job_script()


def test_a_job_with_too_few_cores(tmp_path):
    """The message names both numbers."""
    with (
        pytest.raises(UserError, match=r"4 cores.*4 simulations.*2 cores each"),
        open_cluster(slurm(processes=4), tmp_path, cores_per_simulation=2),
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
    with open_cluster(Slurm(**SITE, walltime="00:10:00"), tmp_path) as cluster:
        script = cluster.job_script()
        assert walltime_of(script) == 600
        assert line in script
        # From where the scheduler has it.
        assert f"--resources {UNTIL}=${UNTIL}" in script


@pytest.fixture
def drain(tmp_path):
    """Of jobs of an hour; and what makes one, by its number and the seconds it has left."""
    with open_cluster(SLURM, tmp_path) as cluster:

        def job(number, left):
            made = Job(cluster, number)
            made.ends_at = time.time() + left
            return made

        yield Drain(cluster, 3600.0), job


def test_jobs_leave_before_simulations_are_cut_off(drain):
    """1.2 times the longest one before their end, and 36 s."""
    leaves, job = drain
    assert leaves.due(job(0, 1.2 * 600 + 35), longest=600.0)
    assert not leaves.due(job(0, 1.2 * 600 + 37), longest=600.0)


def test_jobs_that_began_together_leave_one_after_the_other(drain):
    """Over a tenth of the walltime."""
    leaves, job = drain
    early = [
        max(left for left in range(0, 3600, 5) if leaves.due(job(number, left), 0.0))
        for number in range(8)
    ]
    assert len(set(early)) == 8
    assert 300 < max(early) - min(early) < 360


def test_simulations_that_are_as_long_as_a_job_begin_with_it(drain):
    """However long one takes, a job begins some, for a tenth of its time."""
    leaves, job = drain
    assert not leaves.due(job(7, 3500), longest=5000.0)
    assert leaves.due(job(7, 3200), longest=5000.0)


def test_without_a_walltime_no_job_leaves(drain, tmp_path):
    """Nor one of which nobody knows when its time is over."""
    leaves, job = drain
    unknown = job(0, 0)
    unknown.ends_at = None
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
Job Id: 21.pbs-server-01
    job_state = E
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

Job Id:\t21
\tjob_state = E
\tqueue = main
"""


def test_what_slurm_says(monkeypatch):
    """Its states and reasons; what it does not list is gone."""
    monkeypatch.setattr(batch_queue, "_run", lambda words, **_: SQUEUE)
    told = squeue(["17", "18", "19", "20", "21", "22"])
    assert [told[n].state.name for n in sorted(told)] == [
        "RUNNING",
        "WAITING",
        "ENDING",
        "WAITING",
        "WAITING",
        "GONE",
    ]
    assert told["17"].text == "RUNNING"
    assert told["18"].text == "PENDING (Priority)"


@pytest.mark.parametrize(
    ("text", "comment"),
    [(OPENPBS, "ncpus (R: 400 A: 64 T: 64)"), (WRAPPED, ": Resources")],
    ids=["OpenPBS", "Debian"],
)
def test_what_pbs_says(text, comment, monkeypatch):
    """Jobs are known by their numbers; a comment tells why one waits."""
    monkeypatch.setattr(batch_queue, "_run", lambda words, **_: text)
    told = qstat(["17", "18.pbs-server-01", "19", "20", "21"])
    assert [told[n].state.name for n in sorted(told)] == [
        *("RUNNING", "WAITING", "GONE", "GONE", "ENDING")
    ]
    assert told["18.pbs-server-01"].text.endswith(comment)
    assert told["17"].text == "state R"


@pytest.mark.parametrize("query", [squeue, qstat])
def test_no_answer_is_no_news(query, monkeypatch):
    """A batch system that is not there says nothing of a job, not that it is gone."""
    monkeypatch.setenv("PATH", "")
    assert query(["17"]) is None


def test_a_server_that_does_not_answer_is_no_news(tmp_path, monkeypatch):
    """As qstat has it, whose exit status tells it from a job that is unknown."""
    script = tmp_path / "qstat"
    monkeypatch.setenv("PATH", str(tmp_path))
    for status, gone in ((111, None), (153, {"17": JobState.GONE})):
        script.write_text(f"#!/bin/sh\nexit {status}\n")
        script.chmod(0o755)
        told = qstat(["17"])
        assert (told and {n: s.state for n, s in told.items()}) == gone


def test_which_queue(tmp_path):
    """By the class of the cluster."""
    with open_cluster(SLURM, tmp_path) as cluster:
        assert queue_of(type(cluster)) is squeue
    with open_cluster(PBS(**SITE), tmp_path) as cluster:
        assert queue_of(type(cluster)) is qstat


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
        load = Load(self.hungry, self.full)
        wanted = self.size.update(self.now, load, self.at_work)
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
    size = JobCountController(Bounds(1, 100), settle=30)
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
    size = JobCountController(Bounds(2, 50), settle=30)
    study = Coupled(10.0, 200.0, 6000, size)
    study.run(3600)
    assert 19 <= study.wanted[-1] <= 21
    study.taken = 5.0
    study.run(3 * 3600)
    assert study.wanted[-1] == 2


def test_no_more_jobs_than_simulations_are_left():
    """The last ones need no further jobs, and free those that are idle."""
    size = JobCountController(Bounds(1, 50), settle=10)
    hungry = [Load(10.0 * n, 0.0) for n in range(20)]
    wanted = [size.update(10.0 * n, w, size.wanted) for n, w in enumerate(hungry)]
    assert wanted[-1] == 50
    assert size.update(200.0, Load(200.0, 0.0, simulations_left=3), 50) == 3


def test_jobs_that_never_come_are_given_up_first():
    """A site that allows five of eight: when the trainer slows down, the others are no longer asked for."""
    size = JobCountController(Bounds(1, 50), settle=10)
    size.wanted = 8
    wanted = [size.update(10.0 * n, Load(0.0, 10.0 * n), 5) for n in range(6)]
    assert wanted == [8, 5, 4, 3, 2, 1]


def test_jobs_that_wait_in_the_queue_ask_for_no_others():
    """However long the trainer waits meanwhile."""
    size = JobCountController(Bounds(1, 50), settle=10)
    size.update(0.0, Load(0.0, 0.0), 1)
    assert size.update(10.0, Load(10.0, 0.0), 1) == 2
    for now in range(20, 1000, 10):
        assert size.update(float(now), Load(float(now), 0.0), 1) == 2


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


def test_a_job_that_is_taken_too_late_is_cancelled(scripted, tmp_path):
    """Nobody waits for the batch system for ever, and nothing of it is left."""
    cancelled = tmp_path / "cancelled"
    scripted("sbatch", "sleep 1; echo Submitted batch job 41")
    scripted("scancel", f"echo $1 > {cancelled}.part; mv {cancelled}.part {cancelled}")
    with open_cluster(SLURM, tmp_path) as cluster:
        with pytest.raises(JobRefused, match="no answer within"):
            Job(cluster, 0, timeout=0.2).submit()
        # Not before scancel has ended, which the scheduler's loop waits for.
        deadline = time.monotonic() + 30
        while is_submitting(cluster):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert cancelled.read_text() == "41\n"


def is_submitting(cluster):
    tasks = asyncio.all_tasks(cluster.loop.asyncio_loop)
    return any(task.get_coro().__name__ == "_submit" for task in tasks)


@pytest.fixture
def said(monkeypatch):
    """What the end of a study warns of; Dask silences the handlers that pytest gives it."""
    lines, handler = [], logging.Handler(logging.WARNING)
    monkeypatch.setattr(
        handler, "emit", lambda record: lines.append(record.getMessage())
    )
    logger = logging.getLogger(supervisor.__name__)
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def end_one_job(cluster):
    """Supervise a job, and cancel it at once."""
    with Supervisor(cluster, Bounds(1, 1), timing=JobTiming(cancel=1.0)):
        pass


def test_a_job_that_cannot_be_cancelled_is_named(scripted, tmp_path, said):
    """With what a person can type, when the study ends."""
    scripted("sbatch", "echo Submitted batch job 41")
    scripted("squeue", "echo '41|PENDING|Priority'")
    scripted("scancel", "exit 1")
    with open_cluster(SLURM, tmp_path) as cluster:
        end_one_job(cluster)
    (line,) = said
    assert "Job 41 may still be in the queue (PENDING (Priority))" in line
    assert "scancel 41" in line


def test_a_queue_that_does_not_answer_is_no_end(scripted, tmp_path, said):
    """Whether jobs are gone is not known then, and is said."""
    scripted("sbatch", "echo Submitted batch job 41")
    scripted("squeue", "exit 1")
    scripted("scancel", "exit 0")
    with open_cluster(SLURM, tmp_path) as cluster:
        end_one_job(cluster)
    (line,) = said
    assert "the queue does not answer" in line
