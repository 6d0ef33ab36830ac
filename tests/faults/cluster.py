"""The cluster that many trials share."""

import logging
import multiprocessing
from multiprocessing import forkserver

import dask
from distributed import LocalCluster

from surrogate_flow.cluster.open import open_cluster

WORKERS = 3


def shared_cluster():
    """Open workers that a fault may take, and that start again in half a second."""
    # A fork server has imported what a task needs; it is no fork of this process. A worker
    # that imports it under load takes seconds, and looks like one that hangs.
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    needed = ["distributed", "dask.array", "surrogate_flow.ensemble.attempt"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(needed)
    forkserver.ensure_running()
    return open_cluster(
        lambda: LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    )
