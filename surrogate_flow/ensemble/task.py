"""What a worker keeps: the solvers of a study, and a task for each attempt."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import Client, WorkerPlugin, get_worker
from distributed.protocol.pickle import loads
from distributed.utils import sync

from surrogate_flow.ensemble.attempt import Summary, run
from surrogate_flow.ensemble.deaths import Recorder, dask_is_quiet
from surrogate_flow.ensemble.packed import Packed
from surrogate_flow.ensemble.user_code import user_code
from surrogate_flow.fields.errors import MissingFileError, UserError, line_of
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.sampling import InputSampler
from surrogate_flow.solvers.child_processes import (
    ChildProcesses,
    end_with_parent,
)
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import (
    Endpoint,
)

if TYPE_CHECKING:
    from surrogate_flow.dataset import Writer

__all__ = ["SetupError", "Task", "on_workers"]

logger = logging.getLogger(__name__)

_BANDWIDTH = 1e7  # bytes a second that each worker gets of a solver, at least
# Seconds that workers have to accept and to remove the plugin of a study: one that is
# frozen never answers, and jobs have to be cancelled in time behind it.
_ACCEPT, _REMOVE = 5.0, 10.0
_PLUGIN = 10.0  # seconds in which a worker that has just joined gets it


class SetupError(UserError, RuntimeError):
    """A solver could not be built on a worker, or its `setup` has failed."""


@dataclass(frozen=True)
class Task:
    """(simulation, attempt) -> Summary: what Dask carries to a worker.

    The solver is there already: `on_workers` has sent it, once.

    Attributes
    ----------
    study : str
        Name of the study, which no other one on the cluster has.
    archives : bool
        Whether the simulation goes into the study's data set, if it has one.
    patience : float
        Seconds in which a worker that has just joined gets the solver.
    """

    study: str
    archives: bool = True
    patience: float = _PLUGIN

    def __call__(self, simulation: Simulation, attempt: int) -> Summary:
        """Solve a simulation on a worker; raises as `run`.

        Raises
        ------
        SetupError
            If there is no solver.
        """
        plugins = get_worker().plugins
        deadline = time.monotonic() + self.patience
        while not getattr(plugins.get(self.study), "ready", False):
            if time.monotonic() > deadline:
                raise SetupError(
                    f"Worker {get_worker().address} does not know the study "
                    f"{self.study}, whose solver every worker gets when it joins. "
                    "Usual cause: the study has ended, or its scheduler was restarted."
                )
            time.sleep(0.05)
        plugin = plugins[self.study]
        assert isinstance(plugin, _SolverPlugin)
        with plugin.recorder.running(str(get_worker().get_current_task())):
            return plugin.run(simulation, attempt, archives=self.archives)


@contextmanager
def on_workers(
    client: Client,
    solver: Solver | Packed,
    endpoint: Endpoint,
    *,
    cores: int = 1,
    writer: Writer | None = None,
    streams: bool = True,
    inputs: InputSampler | None = None,
    ours: bool = False,
    study: str | None = None,
) -> Iterator[Task]:
    """Have all workers of a cluster, later ones too, keep a study's solver ready.

    Parameters
    ----------
    client : distributed.Client
    solver, endpoint, cores, writer, streams, inputs
        As `run`.
    ours : bool
        Whether the workers are the study's own, and end with it.
    study : str, optional
        Its name, as `Placement` has it: what workers note of deaths is for its nannies.

    Yields
    ------
    Task
        To be submitted for each attempt. On leaving, solvers are closed, each when the
        simulation that it works on has ended.
    """
    study = study or f"surrogate-flow-{secrets.token_hex(4)}"
    packed = Packed.of(solver)
    travels = len(packed.pickle) / _BANDWIDTH
    accept = _ACCEPT + travels
    plugin = _SolverPlugin(
        study, packed, endpoint, cores, writer, streams, inputs, ours
    )
    ask: Any = client
    try:
        try:
            add = ask._register_worker_plugin
            client.sync(add, plugin, study, False, callback_timeout=accept)
        except (OSError, TimeoutError) as error:
            # The scheduler has it, and a task waits for it on its worker.
            logger.warning(
                "Some worker has not accepted the solver within %.0f s: %r",
                accept,
                error,
            )
        yield Task(study, patience=_PLUGIN + travels)
    finally:
        if client.status == "running":
            try:
                remove = ask._unregister_worker_plugin
                client.sync(remove, study, callback_timeout=_REMOVE)
            except (OSError, TimeoutError) as error:
                logger.warning(
                    "Some worker has not closed its solver within %g s: %r",
                    _REMOVE,
                    error,
                )
            except ValueError as error:
                logger.debug("The scheduler was restarted since: %r", error)


class _SolverPlugin(WorkerPlugin):
    """The solvers of one study on one worker, one for each simulation at a time.

    The first task unpickles the solver, and fails if its imports or `setup` do.
    """

    _cast = ""  # said of a simulation
    ready = False  # Dask shows it to tasks before it has called `setup`.

    def __init__(
        self,
        study: str,
        solver: Packed,
        endpoint: Endpoint,
        cores: int,
        writer: Writer | None,
        streams: bool,
        inputs: InputSampler | None,
        ours: bool,
    ) -> None:
        self._study, self._ours = study, ours
        self._trainer = socket.gethostname(), os.getpid()
        self._solver, self._name = solver.pickle, solver.name
        self._endpoint, self._writer = endpoint, writer
        self._cores, self._streams, self._inputs = cores, streams, inputs

    def setup(self, worker: Any) -> None:
        """Begin on a worker."""
        self._worker = worker
        self._lock = threading.Lock()
        self._idle: list[Solver] = []
        self._busy = 0
        self._ended = False
        self._quiet = dask_is_quiet(self._study)
        self._quiet.__enter__()
        self.recorder = Recorder(worker, self._study)
        # Of the trainer, which has processes of its own.
        threads = self._trainer == (socket.gethostname(), os.getpid())
        self._children = ChildProcesses(marks=not threads)
        if self._ours and not threads:
            if worker.nanny is not None:
                end_with_parent()
            # Pools start processes between simulations, too.
            self._children.mark()
        # Nannies' processes are daemons, which may not use multiprocessing.
        current: Any = multiprocessing.current_process()
        current._config["daemon"] = False
        self.ready = True

    async def teardown(self, worker: Any) -> None:
        """Close what is idle; the others are closed when their simulations end.

        What these have started ends now: they may wait for it for ever.
        """
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
        for solver in idle:
            await asyncio.to_thread(self._close, solver)
        await asyncio.to_thread(self._end_children)
        self.recorder.close()
        self._quiet.__exit__(None, None, None)

    def run(self, simulation: Simulation, attempt: int, *, archives: bool) -> Summary:
        """Solve a simulation with an idle solver, or a new one."""
        with self._lock:
            solver = self._idle.pop() if self._idle else None
            self._busy += 1
        keep = False
        try:
            with self._children.marked():
                solver = self._build() if solver is None else solver
                summary = run(
                    solver,
                    self._endpoint,
                    simulation,
                    attempt,
                    cores=self._cores,
                    writer=self._writer if archives else None,
                    streams=self._streams,
                    inputs=self._inputs,
                )
            with self._lock:
                keep = not self._ended
                if keep:
                    self._idle.append(solver)
                said, self._cast = self._cast, summary.cast or self._cast
            if said != self._cast:
                self._worker.log_event(self._study, {"cast": summary.cast})
            return summary
        finally:
            if solver is not None and not keep:
                self._close(solver)
            with self._lock:
                self._busy -= 1
                if not self._busy and not self._idle:
                    self._end_children()

    def _end_children(self) -> None:
        """End what solvers have started and left; a kept solver may need its own."""
        if self._ended and not self._busy:
            self._children.close()
        else:
            self._children.kill()

    def _build(self) -> Solver:
        try:
            # Where Dask unpickles: modules may set signal handlers in the main thread.
            solver: Solver = sync(self._worker.loop, self._load)
            with user_code():
                type(solver).setup(solver, self._cores)
        except MissingFileError:
            raise
        except Exception as error:
            raise SetupError(
                f"{self._name} could not be set up on {socket.gethostname()}: "
                f"{type(error).__name__}: {error}{line_of(error)}"
            ) from error
        return solver

    async def _load(self) -> Any:
        with user_code():
            return loads(self._solver)

    def _close(self, solver: Solver) -> None:
        try:
            with self._children.marked(), user_code():
                type(solver).close(solver)
        except Exception:
            logger.exception("%s.close() has failed", self._name)
