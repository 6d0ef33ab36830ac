"""Opens the cluster that a recipe names."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable

import dask
from distributed import LocalCluster, Worker, WorkerPlugin
from distributed.deploy.cluster import Cluster

__all__ = ["DeafToInterrupts", "is_local", "open_cluster"]

# A solver may hold the GIL for longer than any heartbeat; a lost worker shows in its
# connection.
_SETTINGS = {"distributed.scheduler.worker-ttl": None}


def open_cluster(factory: Callable[[], Cluster] | None) -> Cluster:
    """Build the cluster, or one single-threaded worker a core on this machine.

    Raises
    ------
    RuntimeError
        If the cluster's class refuses its arguments, or does not start.
    """
    dask.config.set(_SETTINGS)
    try:
        if factory is not None:
            return factory()
        with warnings.catch_warnings():
            # Another run has the usual port; the address is printed anyhow.
            warnings.filterwarnings("ignore", r"\s*Port \d+ is already in use")
            return LocalCluster(
                threads_per_worker=1, dashboard_address="127.0.0.1:8787"
            )
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"The cluster did not start: {type(error).__name__}: {error} Check the "
            "arguments under data.init_args.cluster."
        ) from error


class DeafToInterrupts(WorkerPlugin):
    """Workers ignore SIGINT: a terminal sends Ctrl-C to them too.

    The trainer alone decides how a study ends, and tells the simulations.
    """

    name = "surrogate-flow-deaf-to-interrupts"

    def setup(self, worker: Worker) -> None:
        """Ignore it from now on, in a worker that has a process of its own."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_local(cluster: Cluster) -> bool:
    """Whether all workers share this machine's file system and sockets."""
    return isinstance(cluster, LocalCluster)
