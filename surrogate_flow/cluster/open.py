"""Opens the cluster that a recipe names."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import LocalCluster, Nanny
from distributed.deploy.cluster import Cluster

from surrogate_flow.cluster import priority, security
from surrogate_flow.cluster.batch import batch_system
from surrogate_flow.cluster.config import (
    DASHBOARD,
    ClusterConfig,
    as_written,
    start,
    thread_variables,
)

__all__ = ["ClusterSource", "is_local", "open_cluster"]

logger = logging.getLogger(__name__)

ClusterSource = ClusterConfig | Callable[..., Cluster] | None
"""What a recipe may have as its cluster: None is this machine."""

# Logs of Dask's developers, of which every process keeps the last 1,000 entries (some
# kilobytes each, one a second or a task) and 7,200 (two a second): memory would grow
# for an hour before they are full. What a user has set stays.
_SHORT_LOGS = {"low-level-log-length": 100, "system-monitor": {"log-length": 600}}
dask.config.update_defaults({"distributed": {"admin": _SHORT_LOGS}})


_KILLED = 60.0  # seconds for a process to end after SIGKILL

_prepared: Any = spawn.get_preparation_data
_opened = 0  # clusters of ours that are open
_opening = threading.Lock()


def _without_script(name: str) -> dict[str, Any]:
    script = "init_main" if name.startswith("Dask Worker") else "nothing"
    return {k: v for k, v in _prepared(name).items() if not k.startswith(script)}


@contextmanager
def _no_scripts() -> Iterator[None]:
    """Have Dask's workers not import the script that runs, at no start, for a while.

    It may lack `if __name__ == "__main__"`, and imports torch. What it defines is
    pickled by value.
    """
    global _opened
    with _opening:
        _opened += 1
        vars(spawn)["get_preparation_data"] = _without_script
    try:
        yield
    finally:
        with _opening:
            _opened -= 1
            if not _opened:
                vars(spawn)["get_preparation_data"] = _prepared


class PatientNanny(Nanny):
    """Waits for a worker that it has killed as long as a busy machine may take.

    Dask's own waits 5 s: then closing a cluster raises, though all work is done.
    """

    async def kill(self, timeout: float = 5, reason: str = "nanny-kill") -> None:
        process = self.process
        try:
            await super().kill(timeout, reason)
        except TimeoutError:
            assert process is not None, "it is what super() has waited for"
            await asyncio.wait_for(process.stopped.wait(), _KILLED)


@contextmanager
def open_cluster(
    source: ClusterSource,
    folder: Path = Path(),
    worker_ttl: float | None = None,
    *,
    cores_per_simulation: int = 1,
    trainers: int = 1,
) -> Iterator[Any]:
    """Open a cluster, without jobs if it is a batch system's.

    Its parts use TLS with new keys, unless the recipe says ``security: false`` or the
    class takes no `security`; a warning then names what is open.

    Parameters
    ----------
    source : ClusterConfig, callable or Cluster, optional
        Builds the cluster, or is one, which stays open. By default single-threaded
        workers on all cores of this machine but the trainers'.
    folder : Path
        Folder of the run, where workers that other programs start find their keys.
    worker_ttl : float, optional
        Seconds without a heartbeat after which a worker's process is restarted; never
        by default, since a solver may hold the GIL for as long as a step takes.
    cores_per_simulation : int
        Cores of each worker, for OpenMP, MKL and OpenBLAS.
    trainers : int
        Number of processes that train on this machine: each has a core to itself.

    Yields
    ------
    distributed.deploy.Cluster or Existing

    Raises
    ------
    ClusterError
        If the cluster's class refuses its arguments, or the cluster does not start.
    """
    dask.config.set(
        {
            # A lost worker closes its connection, a stopped one only its heartbeat.
            "distributed.scheduler.worker-ttl": worker_ttl,
            # Otherwise a cluster gives up workers that their nannies are restarting.
            "distributed.deploy.lost-worker-timeout": "1 day",
        }
    )
    cores = cores_per_simulation
    opened: AbstractContextManager[Any]
    if isinstance(source, ClusterConfig):
        opened = source.open(folder, cores)
    elif system := batch_system(source):
        opened = system.open(folder, cores)
    elif isinstance(source, Cluster):
        # Whoever has opened it closes it.
        opened = nullcontext(source)
    else:
        opened = _built(source or _local_cluster(cores, trainers), folder, cores)
    with opened as cluster:
        if not security.requires_keys(cluster):
            logger.warning(
                "The scheduler at %s asks for no keys: whoever reaches this address "
                "can run code as you on every worker%s. Expected a cluster that takes "
                "`security`, and a recipe without `security: false`, in a queue's "
                "options either.",
                cluster.scheduler_address,
                "" if is_local(cluster) else ", and can read the keys of the stream",
            )
        host = security.dashboard_host(cluster)
        if host in ("", "0.0.0.0", "[::]"):
            host = "{host}"
            logger.warning(
                "Dask's dashboard at %s listens on every interface of this machine, "
                "and asks for no password: whoever reaches it sees what the study does."
                " Set dashboard_address: %s (of a queue, in scheduler_options of its "
                "options).",
                cluster.dashboard_link,
                DASHBOARD,
            )
        # Dask names the host to which workers come, where the dashboard may not listen.
        name = "distributed.dashboard.link"
        with dask.config.set({name: dask.config.get(name).replace("{host}", host)}):
            yield cluster


def is_local(cluster: Any) -> bool:
    """Whether all workers share this machine's file system and sockets."""
    return isinstance(cluster, LocalCluster)


def _local_cluster(cores: int, trainers: int) -> Callable[..., Cluster]:
    return partial(
        LocalCluster,
        # Each trainer needs one, to run its simulations.
        n_workers=max(1, trainers, (CPU_COUNT - trainers) // cores),
        threads_per_worker=1,
        security=security.in_memory(),
        # The ensemble logs what fails, once and with its parameters.
        silence_logs=logging.CRITICAL,
    )


@contextmanager
def _built(
    factory: Callable[..., Cluster], folder: Path, cores: int
) -> Iterator[Cluster]:
    """Open what a class of `distributed`, or a function, builds."""
    build = as_written(factory)
    parameters = inspect.signature(build.func).parameters.values()
    known = {p.name: p.default for p in parameters} | build.keywords
    chosen: dict[str, Any] = {}
    # Dask's default, which is every interface.
    if known.get("dashboard_address") == ":8787":
        chosen["dashboard_address"] = DASHBOARD
    if build.func is LocalCluster and not build.args and known["worker_class"] is None:
        # Without processes its workers are threads here, and nobody is killed.
        chosen["worker_class"] = None if known["processes"] is False else PatientNanny
    with ExitStack() as resources:
        # As long as nannies may start workers anew.
        resources.enter_context(_no_scripts())
        if "security" in known:
            keys = security.keys_for(known["security"], folder)
            chosen["security"] = resources.enter_context(keys)
        # Nannies take variables from this process rather than from Dask's settings, and
        # keep them (os.environ.update in WorkerProcess.start). A fit that this process
        # starts later would give memory back after each tensor, at twice its time.
        # Nannies take from it, too, what is loaded first: it lets the trainer go first.
        preload = [*dask.config.get("distributed.worker.preload"), priority.__name__]
        with (
            _environment({**_of_nannies(), **thread_variables(cores)}),
            dask.config.set({"distributed.worker.preload": preload}),
        ):
            cluster = resources.enter_context(start(partial(build, **chosen)))
        yield cluster


def _of_nannies() -> dict[str, str]:
    """Return the variables that Dask sets for its workers."""
    given = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {name: str(value) for name, value in given.items()}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while; here they are for the training."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
