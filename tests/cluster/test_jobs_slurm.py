"""Studies on a real Slurm, whose jobs are killed, whose nodes fail, whose time runs out."""

import os
import shutil
import threading
import time
from collections import Counter

import batch
import pytest
from troubled import STEPS, Booked, Leisurely, Parallel, Threads, Wave

from surrogate_flow.cluster.batch import JobError, JobTiming
from surrogate_flow.cluster.batch.walltime import Drain
from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.ensemble import EnsembleError
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.reservoir import FIFO

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.fixture
def opened(tmp_path, monkeypatch, slurm):
    """Makes data modules whose study is open on the batch system, and closes them."""
    # Of two words, as folders of users may be.
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    modules = []

    def make(solver, kind="slurm", cluster=None, timing=None, **kwargs):
        defaults = {"simulations": 12, "held_out": 1, "batch_size": 4}
        data = OnlineData(
            solver,
            reservoir=FIFO(capacity=40),
            cluster=batch.cluster(kind, timing, **(cluster or {})),
            **{**defaults, **kwargs},
        )
        modules.append(data)
        data.setup("fit")
        return data

    yield make
    for data in modules:
        data.close()
    assert "jobs" not in [thread.name for thread in threading.enumerate()]
    assert not batch.jobs()
    # Nor keys: only logs and failures.
    assert not list(folder.glob(".keys-*"))


def counts(batches):
    """How often each (phase, step) was drawn."""
    drawn = {}
    for each in batches:
        for phase, step in zip(each.parameters[:, 0], each.step, strict=True):
            key = round(float(phase), 5), int(step)
            drawn[key] = drawn.get(key, 0) + 1
    return drawn


def check_all_once(drawn, simulations):
    assert len(drawn) == simulations * STEPS
    assert set(drawn.values()) == {1}


def begin_to_train(data):
    """Wait for the first batches, so that simulations are under way."""
    data.val_dataloader()
    loader = iter(data.train_dataloader())
    return [next(loader)], loader


@pytest.mark.parametrize(
    ("kind", "processes", "size"),
    [
        pytest.param("slurm", 1, {"n_workers": 2}, marks=pytest.mark.bench),
        pytest.param("slurm", 2, {"n_workers": 4}, marks=pytest.mark.bench),
        ("slurm", 2, {"minimum_jobs": 2, "maximum_jobs": 3}),
        pytest.param(
            "pbs", 1, {"minimum_jobs": 2, "maximum_jobs": 3}, marks=pytest.mark.pbs
        ),
    ],
    ids=str,
)
def test_a_job_that_is_killed_is_replaced(opened, kind, processes, size):
    """scancel or qdel amid simulations, with one process a job and two: nothing lost or doubled."""
    data = opened(
        Leisurely(),
        kind,
        cluster={"cores": processes, "memory": f"{processes} GB", **size},
        simulations=10,
    )
    batches, loader = begin_to_train(data)
    victim = min(batch.jobs("RUNNING"), key=int)
    batch.call("scancel" if kind == "slurm" else "qdel", victim)
    batch.wait_until(lambda: victim not in batch.jobs())
    batch.wait_until(lambda: len(batch.jobs("RUNNING")) >= 2, 120)
    batches += loader
    check_all_once(counts(batches), 10)
    assert data.source.study.cluster.jobs.replaced == 1


def test_a_node_goes_down(opened):
    """Its job is put back into the queue by Slurm, and given up; others bring what is missing."""
    data = opened(
        Leisurely(),
        cluster={"cores": 6, "processes": 1, "n_workers": 2},
        simulations=48,
    )
    batches, loader = begin_to_train(data)
    batch.wait_until(lambda: len(batch.jobs("RUNNING")) == 2)
    where = batch.call("squeue", "-h", "--nodelist=n1", "-o", "%i").strip()
    batch.call("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    try:
        batches += loader
    finally:
        # It comes back by itself when its daemon answers, unless it was quicker than that.
        batch.call("scontrol", "update", "nodename=n1", "state=resume", check=False)
    check_all_once(counts(batches), 48)
    assert where not in batch.jobs()
    assert data.source.study.cluster.jobs.replaced == 1


def test_a_study_outlives_its_walltimes(opened, tmp_path, monkeypatch):
    """Jobs of 40 seconds leave in time and are replaced; no simulation is cut off."""
    book, left = tmp_path / "book", []
    close = Drain.close

    def note(drain, job):
        left.append(job.ends_at - time.time())
        close(drain, job)

    # Slurm itself counts in minutes, and kills later still.
    monkeypatch.setattr(Drain, "close", note)
    data = opened(
        Booked(str(book)),
        cluster={"walltime": "00:00:40", "minimum_jobs": 2, "maximum_jobs": 2},
        # A busy machine may need twice as long to close a job.
        timing=JobTiming(notice=15.0),
        simulations=400,
    )
    batches, jobs = [], data.source.study.cluster.jobs
    for batch_ in data.train_dataloader():
        batches.append(batch_)
        if jobs.replaced >= 2 and len(left) >= 2:
            break
    assert set(counts(batches).values()) == {1}
    assert min(left) > 0
    # One that is cut off begins again.
    assert set(Counter(book.read_text().split()).values()) == {1}


@pytest.mark.parametrize("kind", ["slurm", pytest.param("pbs", marks=pytest.mark.pbs)])
def test_a_queue_that_refuses_says_so_in_its_own_words(opened, kind):
    """An unknown partition: nothing begins, and the error is Slurm's."""
    with pytest.raises(JobError, match="invalid partition specified: nowhere"):
        opened(Wave(), kind, cluster={"queue": "nowhere", "n_workers": 1})
    assert not batch.jobs()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"memory": "500 GB"}, "Memory specification can not be satisfied"),
        ({"walltime": "tomorrow"}, "Invalid --time specification"),
        ({"account": "nobody"}, "Invalid account or account/partition combination"),
    ],
    ids=["memory", "walltime", "account"],
)
def test_what_a_site_has_not(opened, wrong, words):
    """More than there is: the scheduler's words, and no job."""
    with pytest.raises(JobError, match=words):
        opened(Wave(), cluster={"n_workers": 1, **wrong})


def test_what_a_site_has(opened):
    """The same account, if it exists, is charged."""
    data = opened(Wave(), cluster={"n_workers": 1, "account": "physics"}, simulations=2)
    data.val_dataloader()
    assert batch.call("squeue", "-h", "-o", "%a").split() == ["physics"]


def test_a_job_that_does_not_start(opened):
    """Its reason is in the error, and it is cancelled."""
    data = opened(
        Wave(),
        cluster={"n_workers": 1, "job_extra_directives": ["--begin=now+3600"]},
        faults=Faults(start_timeout=8),
    )
    with pytest.raises(EnsembleError, match=r"start_timeout.*PENDING \(BeginTime\)"):
        data.val_dataloader()
    assert batch.jobs()
    data.close()
    assert not batch.jobs()


def test_jobs_that_die_at_their_start(opened):
    """The end of their log says why."""
    data = opened(
        Wave(),
        cluster={"n_workers": 1, "python": "/no/python"},
        timing=JobTiming(retry=0.0),
    )
    with pytest.raises(JobError, match=r"(?s)/no/python.*So have the 2 before"):
        data.val_dataloader()


def test_a_further_job_that_is_refused(opened, monkeypatch, tmp_path):
    """The study goes on with those it has, says so, and has what it asked for when it may."""
    limit = tmp_path / "limit"
    limit.write_text("1")
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(
        "#!/bin/sh\n"
        f'[ "$(squeue -h | wc -l)" -lt "$(cat {limit})" ] && exec {shutil.which("sbatch")} "$@"\n'
        'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    data = opened(
        Leisurely(),
        cluster={"n_workers": 2},
        timing=JobTiming(retry_refused=1.0),
        simulations=12,
    )
    batches, loader = begin_to_train(data)
    batch.wait_until(lambda: "QOSMaxSubmitJobPerUserLimit" in data.source.waiting())
    assert len(batch.jobs()) == 1
    limit.write_text("2")
    batch.wait_until(lambda: len(batch.jobs()) == 2)
    batches += loader
    check_all_once(counts(batches), 12)


@pytest.mark.parametrize("cores", [1, 2])
def test_simulations_know_their_cores(opened, cores, monkeypatch):
    """OpenMP is told of as many as the simulation has, and a job of 4 runs 4 / cores at once."""
    # Of the training.
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    data = opened(
        Threads(),
        cluster={"cores": 4, "memory": "4 GB", "n_workers": 4 // cores},
        cores_per_simulation=cores,
        simulations=4,
    )
    batches = list(data.train_dataloader())
    assert {int(v) for each in batches for v in each.target.unique()} == {cores}
    batch.wait_until(lambda: data.source.stats().workers == 4 // cores)


def test_a_solver_that_is_an_mpi_program(opened):
    """Three ranks in a job of three cores, for one simulation after the other."""
    data = opened(
        Parallel(3),
        cluster={"cores": 3, "n_workers": 1},
        cores_per_simulation=3,
        simulations=4,
    )
    batches = list(data.train_dataloader())
    check_all_once(counts(batches), 4)
    assert {int(v) for each in batches for v in each.target.unique()} == {1 + 2 + 3}
    assert len(batch.jobs()) == 1


def test_the_number_of_jobs_follows_the_training(opened):
    """Slow solvers, a quick trainer: more jobs, up to the maximum; none is left in the end."""
    data = opened(
        Leisurely(),
        cluster={"minimum_jobs": 1, "maximum_jobs": 4},
        timing=JobTiming(settle=2.0),
        simulations=26,
    )
    data.val_dataloader()
    most, drawn = 0, []
    for each in data.train_dataloader():
        drawn.append(each)
        most = max(most, len(batch.jobs("RUNNING")))
    check_all_once(counts(drawn), 26)
    assert 2 <= most <= 4
