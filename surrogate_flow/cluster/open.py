"""Opens the cluster that a recipe names."""

from __future__ import annotations

import inspect
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, cast

import dask
from dask.system import CPU_COUNT
from distributed import LocalCluster
from distributed.deploy.cluster import Cluster

from surrogate_flow.cluster import security, threads
from surrogate_flow.cluster.batch import Request, complete
from surrogate_flow.cluster.batch.jobqueue import JobQueueCluster
from surrogate_flow.cluster.batch.request import class_of

__all__ = ["is_local", "open_cluster"]

logger = logging.getLogger(__name__)

_DASHBOARD = "127.0.0.1:8787"

_SETTINGS = {
    # After this time a cluster gives up workers that its nannies are just restarting.
    "distributed.deploy.lost-worker-timeout": "1 day",
}

# Profiles and logs for Dask's own developers, of which every process keeps the last
# 1,000 (one a second or a task, some kilobytes each) and 7,200 (two a second): memory
# would grow for an hour before they are full. What a user has set stays.
_SHORT_LOGS = {"low-level-log-length": 100, "system-monitor": {"log-length": 600}}
dask.config.update_defaults({"distributed": {"admin": _SHORT_LOGS}})


@contextmanager
def open_cluster(
    factory: Callable[..., Cluster] | None,
    folder: Path = Path(),
    worker_ttl: float | None = None,
    *,
    cores_per_simulation: int = 1,
) -> Iterator[Cluster]:
    """Build the cluster, or one single-threaded worker a core on this machine.

    That of a batch system has no jobs yet; what asks for them is left out.

    Its parts speak TLS with keys made here, unless the recipe says ``security: false``
    or the class knows no `security`; then a warning tells what is open.

    Parameters
    ----------
    factory : callable, optional
    folder : Path
        Where workers that other programs start find their keys, in a folder of its own.
    worker_ttl : float, optional
        Seconds without a heartbeat after which a worker's process is restarted; never
        by default, since a solver may hold the GIL for as long as a step takes.
    cores_per_simulation : int
        Of each worker, and what OpenMP, MKL and OpenBLAS are told.

    Raises
    ------
    RuntimeError
        If the cluster's class refuses its arguments, or does not start.
    ValueError
        If a job has fewer cores than its simulations need.
    """
    # A lost worker shows in its connection, a stopped one in its heartbeat only.
    dask.config.set({**_SETTINGS, "distributed.scheduler.worker-ttl": worker_ttl})
    with ExitStack() as resources:
        if factory is not None:
            if Request.of(factory):
                factory = Request.without(factory)
            factory = _on_loopback(_with_keys(_as_written(factory), folder, resources))
        with threads.told(cores_per_simulation):
            cluster = resources.enter_context(_build(factory, cores_per_simulation))
        if isinstance(cluster, JobQueueCluster):
            complete(cluster, cores_per_simulation, folder)
        if not security.is_closed(cluster):
            _warn(cluster)
        if security.is_open_to_all(cluster.dashboard_link):
            _warn_of_dashboard(cluster)
        yield cluster


def _build(factory: Callable[[], Cluster] | None, cores: int) -> Cluster:
    try:
        with _deaf_to_interrupts(), warnings.catch_warnings():
            # Another run has the usual port; the address is printed anyhow.
            warnings.filterwarnings("ignore", r"\s*Port \d+ is already in use")
            if factory is not None:
                return factory()
            return LocalCluster(
                n_workers=max(1, CPU_COUNT // cores),
                threads_per_worker=1,
                dashboard_address=_DASHBOARD,
                security=security.in_memory(),
                # The ensemble says what fails, once and with its parameters.
                silence_logs=logging.CRITICAL,
            )
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"The cluster did not start: {type(error).__name__}: "
            f"{str(error).rstrip('.')}. Check the arguments under data.cluster."
        ) from error


def _as_written(factory: Callable[..., Cluster]) -> Callable[..., Cluster]:
    """Leave out arguments that no recipe sets, of classes behind the cluster's own.

    What jsonargparse builds names all that classes further up take, with their
    defaults; dask-jobqueue hands such arguments on to its jobs, which refuse them.
    """
    words = (factory.func, *factory.args) if isinstance(factory, partial) else ()
    class_ = next((word for word in words if inspect.isclass(word)), None)
    if class_ is None or not isinstance(factory, partial):
        return factory
    own = inspect.signature(class_).parameters
    defaults = {
        key: parameter.default
        for parent in reversed(class_.__mro__[:-1])
        for key, parameter in inspect.signature(parent).parameters.items()
    }
    kept = {
        key: value
        for key, value in factory.keywords.items()
        if key in own or (value is not None and value != defaults.get(key))
    }
    behind = words[words.index(class_) + 1 :]
    written: Callable[..., Cluster] = partial(
        cast(type[Cluster], class_), *behind, **kept
    )
    return written


def _with_keys(
    factory: Callable[..., Cluster], folder: Path, resources: ExitStack
) -> Callable[..., Cluster]:
    """Give the class keys if it knows a `security` that the recipe does not set."""
    arguments = getattr(factory, "keywords", {})
    chosen = arguments.get("security")
    if chosen is False:
        # To some classes it means yes, others know no such value.
        return partial(factory, security=None)
    known = {*arguments, *inspect.signature(factory).parameters}
    if "security" not in known or chosen not in (None, True):
        return factory
    keys = resources.enter_context(security.in_files(folder))
    return partial(factory, security=keys)


def _on_loopback(factory: Callable[..., Cluster]) -> Callable[..., Cluster]:
    """Show the dashboard to this machine only, unless the recipe says more of it."""
    arguments = inspect.signature(factory).parameters.values()
    known = {a.name: a.default for a in arguments}
    known |= getattr(factory, "keywords", {})
    if Request.of(factory):
        options = known.get("scheduler_options") or _of_site(factory, known)
        chosen = {"dashboard_address": _DASHBOARD, **options}
        return partial(factory, scheduler_options=chosen)
    # Dask's default, which is every interface.
    if known.get("dashboard_address") != ":8787":
        return factory
    return partial(factory, dashboard_address=_DASHBOARD)


def _of_site(factory: Callable[..., Cluster], known: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the scheduler that a site's configuration has."""
    class_: Any = class_of(factory)
    name = known.get("config_name") or class_.job_cls.default_config_name()
    return dict(dask.config.get(f"jobqueue.{name}.scheduler-options", None) or {})


def _warn_of_dashboard(cluster: Cluster) -> None:
    logger.warning(
        "Dask's dashboard at %s listens on every interface of this machine, and asks "
        "for no password: whoever reaches it sees what the study does. Set "
        "dashboard_address: %s (of a queue's cluster, within scheduler_options).",
        cluster.dashboard_link,
        _DASHBOARD,
    )


def _warn(cluster: Cluster) -> None:
    logger.warning(
        "Nothing guards the scheduler at %s: whoever reaches this address can run code "
        "as you on every worker%s. Expected a cluster that takes `security`, and a "
        "recipe without `security: false`.",
        cluster.scheduler_address,
        "" if is_local(cluster) else ", and can read the keys of the stream",
    )


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
