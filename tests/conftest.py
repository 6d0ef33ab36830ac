"""What several tests share."""

import logging
import os
import shutil
import signal
import sys
from multiprocessing import forkserver

import batch
import dask
import programs
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# Small tensors gain nothing from a second thread, and tests run on as many cores as
# there are processes. Before torch is imported, here and in the programs they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Page and pictures take three seconds, for each of a hundred fits; some leave them.
os.environ.setdefault("SURROGATE_FLOW_REPORT", "no")

# A suite in the background of a shell ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other programs may use the machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Workers of clusters that tests open themselves are forked from one process that has
# imported Dask, as in Dask's own tests; those of commands start as they do for users.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})


@pytest.fixture(scope="session", autouse=True)
def the_process_that_workers_are_forked_from():
    """It is there before a test counts what processes there are."""
    get_mp_context()
    forkserver.ensure_running()


@pytest.fixture(scope="session")
def cluster():
    """A real cluster of two worker processes."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    """A client of the cluster."""
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        yield client


@pytest.fixture(autouse=True)
def no_run_outlives_its_test():
    """A test that fails half way does not leave its run to disturb the next ones."""
    yield
    if "torch" in sys.modules:
        # A command keeps this for its process, which tests share.
        sys.modules["torch"].set_flush_denormal(False)
    for name in [*logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "surrogate_flow":
            # As MLflow's migrations leave loggers that there were before.
            logging.getLogger(name).disabled = False
    logging.getLogger("surrogate_flow").setLevel(logging.NOTSET)
    programs.end_all()
    for child in psutil.Process().children():
        if (
            child.status() != psutil.STATUS_ZOMBIE
            and "surrogate_flow" in child.cmdline()
        ):
            for process in [*child.children(recursive=True), child]:
                process.kill()


# The longest files, longest first; those that share the batch system go to one process.
LONGEST = (
    *("test_jobs_", "test_watchdog", "test_generate", "test_workers_solvers"),
    *("test_seeds", "test_resume", "test_ranks", "test_end_to_end", "cli/test_sweep"),
    *(
        "test_ensemble.py",
        "test_data.py",
        "test_benchmarks",
        "test_page",
        "test_compare",
    ),
    *("test_live_dashboard", "test_docs", "test_packaging", "test_stored"),
    *("test_full_disk", "test_browser", "test_recipes", "test_trainer", "test_live.py"),
    *(
        "test_mistakes",
        "test_fuzz",
        "test_clusters",
        "test_export",
        "test_autoregressive",
    ),
)


class ByFile(LoadFileScheduling):
    """Files are dealt to the processes that test, in the order of collection."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return "batch system" if "test_jobs_" in file else file


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no process is left with it at the end."""

    def rank(item):
        return next((i for i, f in enumerate(LONGEST) if f in item.nodeid), 99)

    items.sort(key=rank)


def pytest_xdist_make_scheduler(config, log):
    """Deal the tests, where there are several processes (-n)."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def slurm_is_up():
    """A Slurm on this machine, with two virtual nodes."""
    why, stop = batch.start()
    if stop is None:
        pytest.skip(why)
    yield
    stop()


@pytest.fixture
def slurm(slurm_is_up):
    """The same, without jobs before and after."""
    assert not batch.jobs()
    yield
    left = batch.jobs()
    for job in left:
        batch.call("scancel", job)
    batch.wait_until(lambda: not batch.jobs("PENDING,RUNNING,COMPLETING"))
    assert not left


@pytest.fixture(
    params=[
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("pbs", marks=pytest.mark.pbs),
    ]
)
def queue(request, slurm):
    """Slurm by its own command line and by that of PBS."""
    if request.param == "pbs" and shutil.which("qsub") is None:
        pytest.skip("no PBS command line; tests/slurm-local.sh install brings it")
    return request.param
