"""The cluster that many trials share."""

import logging

import dask
from distributed import LocalCluster

from surrogate_flow.cluster.open import open_cluster

WORKERS = 3


def shared_cluster():
    """Open workers that a fault may take, and that start again in half a second."""
    # A fork server has imported Dask already; it is no fork of this process.
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    return open_cluster(
        lambda: LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    )
