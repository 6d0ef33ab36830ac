"""The cluster of a recipe, and how it starts."""

from __future__ import annotations

import inspect
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from distributed.deploy.cluster import Cluster

from surrogate_flow.fields.errors import UserError

__all__ = [
    "DASHBOARD",
    "ClusterConfig",
    "ClusterError",
    "as_written",
    "start",
    "thread_variables",
]

DASHBOARD = "127.0.0.1:8787"
"""Address of Dask's dashboard: for this machine only."""


class ClusterError(UserError, RuntimeError):
    """The cluster does not start, or does not answer."""


class ClusterConfig(ABC):
    """Where simulations run: the ``data.cluster`` of a recipe."""

    @abstractmethod
    def open(self, folder: Path, cores: int) -> AbstractContextManager[Any]:
        """Open the cluster; it is closed in the end.

        Parameters
        ----------
        folder : Path
            Folder of the run, for keys and logs.
        cores : int
            Cores of each simulation.

        Raises
        ------
        ClusterError
            If it does not start.
        """


def thread_variables(cores: int) -> dict[str, str]:
    """Return the variables with which OpenMP, MKL and OpenBLAS use so many cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(cores))


def start(build: Callable[[], Cluster]) -> Cluster:
    """Start a cluster.

    Raises
    ------
    ClusterError
        If its class refuses its arguments, or it does not start.
    """
    try:
        with _interrupts_blocked(), warnings.catch_warnings():
            # Another run has the usual port; the run prints its own address.
            warnings.filterwarnings("ignore", r"\s*Port \d+ is already in use")
            return build()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ClusterError(
            f"The cluster did not start: {type(error).__name__}: "
            f"{str(error).rstrip('.')}.",
            remedy="Check the arguments under data.cluster.",
        ) from error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT and SIGHUP in processes and threads that start meanwhile.

    A terminal sends them to the workers, too, but the trainer alone decides how a
    study ends. An interrupt that arrives meanwhile is delivered afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The first worker would start it, and that unblocks signals.
    resource_tracker.ensure_running()
    terminals = {signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, terminals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def as_written(factory: Callable[..., Any]) -> partial[Any]:
    """Return the class or function that a recipe names, with the arguments it sets.

    Without arguments of base classes that no recipe sets: jsonargparse names all with
    their defaults, and classes hand unknown ones on to workers, which refuse them.
    """
    if not isinstance(factory, partial):
        return partial(factory)
    given = (factory.func, *factory.args)
    class_ = next((each for each in given if inspect.isclass(each)), None)
    if class_ is None:
        return factory
    own = inspect.signature(class_).parameters
    defaults = {
        name: parameter.default
        for base in reversed(class_.__mro__[:-1])
        for name, parameter in inspect.signature(base).parameters.items()
    }
    kept = {
        name: value
        for name, value in factory.keywords.items()
        if name in own or value not in (None, defaults.get(name))
    }
    return partial(class_, *given[given.index(class_) + 1 :], **kept)
