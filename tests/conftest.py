"""What several tests share."""

import psutil
import pytest
from distributed import Client, LocalCluster


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
    for child in psutil.Process().children():
        if (
            child.status() != psutil.STATUS_ZOMBIE
            and "surrogate_flow" in child.cmdline()
        ):
            for process in [*child.children(recursive=True), child]:
                process.kill()
