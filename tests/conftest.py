"""What several tests share."""

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
