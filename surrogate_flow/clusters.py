"""Opens the cluster that a recipe names."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

import dask
from distributed import LocalCluster
from distributed.deploy.cluster import Cluster

__all__ = ["is_local", "open_cluster"]

_SETTINGS = {
    # A solver may hold the GIL for longer than any heartbeat; a lost worker shows in
    # its connection.
    "distributed.scheduler.worker-ttl": None,
    # After this time a cluster gives up workers that its nannies are just restarting.
    "distributed.deploy.lost-worker-timeout": "1 day",
}


def open_cluster(factory: Callable[[], Cluster] | None) -> Cluster:
    """Build the cluster, or one single-threaded worker a core on this machine.

    Raises
    ------
    RuntimeError
        If the cluster's class refuses its arguments, or does not start.
    """
    dask.config.set(_SETTINGS)
    try:
        with _deaf_to_interrupts(), warnings.catch_warnings():
            # Another run has the usual port; the address is printed anyhow.
            warnings.filterwarnings("ignore", r"\s*Port \d+ is already in use")
            if factory is not None:
                return factory()
            return LocalCluster(
                threads_per_worker=1,
                dashboard_address="127.0.0.1:8787",
                # The ensemble says what fails, once and with its parameters.
                silence_logs=logging.CRITICAL,
            )
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"The cluster did not start: {type(error).__name__}: {error} Check the "
            "arguments under data.cluster."
        ) from error


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have processes and threads that start meanwhile never see SIGINT.

    A terminal sends Ctrl-C to the workers too, but the trainer alone decides how a
    study ends, and tells the simulations. One that comes meanwhile is delivered after.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Starting it, which the first worker would, unblocks SIGINT.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_local(cluster: Cluster) -> bool:
    """Whether all workers share this machine's file system and sockets."""
    return isinstance(cluster, LocalCluster)
