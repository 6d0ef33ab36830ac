"""Clusters as they are opened for a study."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from dask.system import CPU_COUNT
from dask.utils import key_split
from distributed import Client, LocalCluster, Nanny
from distributed.process import AsyncProcess
from jsonargparse import ArgumentParser
from troubled import STEPS, Wave

from surrogate_flow import ExistingScheduler
from surrogate_flow.cluster import security
from surrogate_flow.cluster.batch import Bounds, batch_system
from surrogate_flow.cluster.open import PatientNanny, open_cluster
from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.workers import Workers
from surrogate_flow.reservoir import FIFO

LENGTH = "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH"


def test_logs_of_every_process_are_short(tmp_path):
    """Scheduler and workers keep 100 entries: memory stops growing after minutes."""
    one = partial(
        LocalCluster, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    with (
        open_cluster(one, tmp_path) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=30)
        kept = client.run(
            lambda dask_worker: (
                dask_worker.profile_history.maxlen,
                dask_worker.state.log.maxlen,
            )
        )
        assert list(kept.values()) == [(100, 100)]
        assert cluster.scheduler.transition_log.maxlen == 100


def test_a_scheduler_forgets_the_tasks_that_are_over(tmp_path):
    """However many were submitted, what is kept of them does not grow."""
    one = partial(
        LocalCluster, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    with (
        open_cluster(one, tmp_path) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def kept():
            (span,) = cluster.scheduler.extensions["spans"].spans.values()
            return len(span.metadata["collections"]), key_split.cache_info().currsize

        # As in a study, one task is always there.
        workers, submitted = Workers(client), 0
        always = client.submit(str, key="study-999", pure=False)
        for _ in range(2):
            submitted += 1000
            workers.trim_scheduler(submitted - 1)
            for number in range(20):
                client.submit(str, number, key=f"study-{number}", pure=False).result(30)
            assert min(kept()) >= 20, "Dask has ceased to: then so may we"
            workers.trim_scheduler(submitted)
            assert max(kept()) < 10
        assert always.result(30) == ""


def test_a_worker_that_takes_long_to_die_fails_no_closing(tmp_path, monkeypatch):
    """A busy machine may need longer for it than Dask's nannies wait."""
    one = partial(
        LocalCluster, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    )
    kill, killed = AsyncProcess.kill, []

    async def late(process):
        # Twice as long as the nanny waits then.
        asyncio.get_running_loop().call_later(1.0, kill, process)
        killed.append(process)

    monkeypatch.setattr(AsyncProcess, "kill", late)
    monkeypatch.setattr(Nanny.close, "__defaults__", (0.5, "nanny-close"))
    with open_cluster(one, tmp_path) as cluster:
        (nanny,) = cluster.workers.values()
        # It does not end when it is asked to.
        os.kill(nanny.process.pid, signal.SIGSTOP)
    assert not killed[0].is_alive()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"processes": True}, True),
        ({"processes": False}, False),
        ({"worker_class": Nanny}, False),
    ],
)
def test_the_worker_class_of_a_recipe_stays(options, expected, tmp_path):
    """Threads of this process, and what a recipe names, are left as Dask has them."""
    one = partial(LocalCluster, n_workers=0, dashboard_address="127.0.0.1:0", **options)
    with open_cluster(one, tmp_path) as cluster:
        assert (cluster.new_spec["cls"] is PatientNanny) == expected
        assert cluster.processes == (options.get("processes") is not False)


@pytest.mark.parametrize(("set_to", "expected"), [(None, "100"), ("5000", "5000")])
def test_what_the_user_has_set_stays(set_to, expected):
    """Only Dask's default is replaced."""
    code = (
        "import dask, surrogate_flow.cluster.open; "
        "print(dask.config.get('distributed.admin.low-level-log-length'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != LENGTH}
    if set_to is not None:
        environment[LENGTH] = set_to
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == expected


OLD = {
    "class_path": "dask_jobqueue.SLURMCluster",
    "dict_kwargs": {
        "cores": 2,
        "memory": "4 GB",
        "walltime": "04:00:00",
        "minimum_jobs": 1,
        "maximum_jobs": 8,
    },
}


@pytest.mark.parametrize("old", [False, True], ids=["shipped", "0.1"])
def test_a_queue_s_cluster_is_named_by_its_class(old, tmp_path):
    """Recipes, shipped or of version 0.1, give a job script with their resources, and keys."""
    path = Path(__file__).parents[2] / "workflows" / "clusters" / "slurm.yaml"
    recipe = OLD if old else yaml.safe_load(path.read_text())
    arguments = recipe["dict_kwargs" if old else "init_args"]
    arguments["interface"] = "lo"
    parser = ArgumentParser()
    parser.add_class_arguments(OnlineData, "data")
    data = {"solver": {"class_path": "troubled.Wave"}, "cluster": recipe}
    factory = parser.instantiate(parser.parse_object({"data": data})).data.cluster
    with open_cluster(factory, tmp_path) as cluster:
        script = cluster.job_script()
        assert batch_system(factory).request(cluster).bounds == Bounds(1, 8)
        assert "#SBATCH --cpus-per-task=2" in script
        assert "#SBATCH -t 04:00:00" in script
        assert "--nworkers 2" in script
        assert f"--tls-key {tmp_path}" in script
        assert cluster.scheduler_address.startswith("tls://")


@pytest.fixture
def running(tmp_path):
    """A scheduler and a worker that somebody has started, with keys of their own."""
    with security.in_files(tmp_path / "keys") as keys:
        options = {"dashboard_address": "127.0.0.1:0", "protocol": "tls://"}
        with LocalCluster(
            n_workers=1, threads_per_worker=1, security=keys, **options
        ) as cluster:
            file = tmp_path / "scheduler.json"
            file.write_text(json.dumps({"address": cluster.scheduler_address}))
            config = keys.get_tls_config_for_role("client")
            yield (
                cluster,
                {
                    "scheduler_file": str(file),
                    "tls_ca_file": config["ca_file"],
                    "tls_cert": config["cert"],
                    "tls_key": config["key"],
                },
            )


def test_a_scheduler_that_runs_already(running, tmp_path, monkeypatch):
    """Its workers simulate, and both are there when the study has ended."""
    cluster, arguments = running
    monkeypatch.chdir(tmp_path)
    data = OnlineData(
        Wave(),
        simulations=6,
        held_out=1,
        batch_size=5,
        reservoir=FIFO(capacity=20),
        cluster=ExistingScheduler(**arguments),
    )
    data.setup("fit")
    assert sum(len(each.step) for each in data.train_dataloader()) == 6 * STEPS
    data.close()
    with Client(cluster, set_as_default=False) as client:
        assert client.submit(abs, -1).result(30) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "an address or a scheduler_file"),
        (
            {"address": "tcp://127.0.0.1:1", "scheduler_file": "x", "timeout": 1.0},
            "does not answer within 1 s",
        ),
        ({"scheduler_file": "nowhere.json"}, "not the file of a scheduler"),
    ],
    ids=["neither", "silent", "missing"],
)
def test_a_scheduler_that_is_not_there(arguments, words, tmp_path, monkeypatch):
    """What was asked for, and what it may be."""
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(RuntimeError, match=words),
        open_cluster(ExistingScheduler(**arguments), tmp_path),
    ):
        pass


@pytest.mark.parametrize("recipe", [False, True], ids=["default", "recipe"])
@pytest.mark.parametrize("cores", [1, 2])
def test_local_simulations_have_their_cores(cores, recipe, tmp_path, monkeypatch):
    """Fewer workers, whose OpenMP has their cores, not the trainer's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    factory = partial(LocalCluster, n_workers=1) if recipe else None
    with (
        open_cluster(factory, tmp_path, cores_per_simulation=cores) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=30)
        expected = 1 if recipe else max(1, (CPU_COUNT - 1) // cores)
        assert len(client.nthreads()) == expected
        # The trainer goes first.
        (nice,) = {*client.run(os.nice, 0).values()}
        assert nice == min(19, os.nice(0) + 10)
        assert set(client.run(os.getenv, "OMP_NUM_THREADS").values()) == {str(cores)}
        assert os.environ["OMP_NUM_THREADS"] == "8"
        # Of Dask, for its workers: it makes each training slow that is started later.
        assert "MALLOC_TRIM_THRESHOLD_" not in os.environ


@pytest.mark.parametrize("first", ["dask_jobqueue", "signal"])
def test_an_import_leaves_ctrl_c_as_it_was(first):
    """dask-jobqueue makes SIGINT an end in silence, as if all were well; here it is what it is in Python."""
    code = (
        f"import {first}, signal, surrogate_flow.cli.lightning\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


SCRIPT = """
import sys
from functools import partial
from multiprocessing import spawn
from pathlib import Path
from distributed import Client, LocalCluster, Nanny
from distributed.process import AsyncProcess
from surrogate_flow.cluster.open import PatientNanny, open_cluster
print("script", flush=True)
class Mine:
    def where(self):
        return sys.argv[1:], "torch" in sys.modules
import torch
def changed():
    return spawn.get_preparation_data.__module__ != "multiprocessing.spawn"
options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
given = LocalCluster(**options, processes=False)
with open_cluster(given, Path(sys.argv[1])):
    print(changed())
with open_cluster(partial(LocalCluster, **options), Path(sys.argv[1])) as cluster:
    with Client(cluster, security=cluster.security, set_as_default=False) as client:
        print(client.submit(Mine().where).result(60))
        client.restart_workers(list(client.scheduler_info()["workers"]))
        print(client.submit(Mine().where, pure=False).result(60))
print(changed(), given.status.name)
given.close()
"""


def test_workers_do_not_run_the_script_again(tmp_path):
    """Which needs no `if __name__ == "__main__"`, and whose torch they do not import.

    A cluster that it has opened stays open, and what it starts there is as Dask has it.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    place = f"(['{tmp_path}'], False)"
    lines = ["script", "False", place, place, "False running"]
    assert done.stdout.splitlines() == lines, done.stderr
