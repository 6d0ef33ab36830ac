"""One study: a cluster, an inlet and an ensemble, opened and closed together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from surrogate_flow.cluster.batch import Load, Supervisor, batch_system
from surrogate_flow.cluster.existing import Existing
from surrogate_flow.cluster.open import ClusterSource, is_local, open_cluster
from surrogate_flow.dataset import Writer
from surrogate_flow.ensemble.attempt import receipts
from surrogate_flow.ensemble.ensemble import (
    Ensemble,
    EnsembleError,
    EnsembleStats,
    Tasks,
)
from surrogate_flow.ensemble.events import Event, Failed, FailureLog, Listener
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import Ledger, RecordingSink
from surrogate_flow.ensemble.packed import Packed
from surrogate_flow.ensemble.placement import Placement
from surrogate_flow.ensemble.task import on_workers
from surrogate_flow.ensemble.watchdog import Watchdog
from surrogate_flow.ensemble.workers import Workers
from surrogate_flow.fields.quantities import counted
from surrogate_flow.sampling import Design, InputSampler
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Inlet, Sink

__all__ = ["OpenCluster", "Study", "StudySettings", "StudyTimeout"]


class StudyTimeout(EnsembleError, TimeoutError):
    """Simulations run, and none of them has made a step for too long."""


@dataclass(frozen=True)
class StudySettings:
    """How a study runs.

    Attributes
    ----------
    name : str
        Of the workflow, in the names of tasks.
    folder : Path
        Of the run, for `failures`, and for the keys of workers.
    failures : str
        Name of the table of attempts that failed.
    cores : int
        For each simulation.
    ahead : int
        Simulations in flight for each worker thread.
    share : int
        Number of studies that share the workers evenly.
    writer : Writer, optional
        Of a data set that the simulations go into, too.
    archives_all : bool
        Whether the study ends when that cannot be written any more.
    streams : bool
        Whether fields arrive in the sink, or only `receipts`: then the data set must be
        writable, or the study ends.
    inputs : InputSampler, optional
        Draws the input fields of the simulations, on the workers.
    """

    name: str
    folder: Path
    failures: str = "failures.csv"
    cores: int = 1
    ahead: int = 2
    share: int = 1
    writer: Writer | None = None
    archives_all: bool = False
    streams: bool = True
    inputs: InputSampler | None = None


@dataclass(frozen=True)
class OpenCluster:
    """A cluster that is open, for one study or for several that share it.

    Attributes
    ----------
    address : Existing
        Where its scheduler is.
    jobs : Supervisor, optional
        Of its jobs, in the process that submits them.
    """

    address: Existing
    jobs: Supervisor | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, cluster: ClusterSource, settings: StudySettings, faults: Faults
    ) -> Iterator[Self]:
        """Open a cluster, with workers for all studies that share it; then close it."""
        with contextlib.ExitStack() as resources:
            opened = resources.enter_context(
                open_cluster(
                    cluster,
                    settings.folder,
                    faults.worker_ttl,
                    cores_per_simulation=settings.cores,
                    trainers=settings.share if settings.streams else 0,
                )
            )
            jobs = None
            if system := batch_system(cluster):
                supervised = system.supervise(opened, at_least=settings.share)
                jobs = resources.enter_context(supervised)
            known = Existing.of(opened, local=is_local(opened), jobs=jobs is not None)
            known.ours = known.ours and opened is not cluster
            yield cls(known, jobs)


class Study:
    """Simulations run, and their steps arrive in a sink, from `start` to `close`.

    As a context manager it does both.

    Parameters
    ----------
    solver : Solver
    design : Design
        Which simulations.
    sink : Sink
        Where the steps go.
    cluster : ClusterConfig, callable or OpenCluster, optional
        Opens the cluster; on this machine by default. One that is
        open stays so.
    faults : Faults
    settings : StudySettings
    listeners : sequence of Listener
        Called with each event, behind the table of failures.

    Attributes
    ----------
    ledger : Ledger
        Which simulations run, are complete or have failed.
    inlet : Inlet
    client : distributed.Client
        Of the cluster.
    dashboard_link : str
        Address of Dask's dashboard.
    """

    def __init__(
        self,
        solver: Solver | Packed,
        design: Design,
        sink: Sink,
        *,
        cluster: ClusterSource | OpenCluster,
        faults: Faults,
        settings: StudySettings,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.ledger = Ledger()
        self._faults, self._share = faults, settings.share
        self._resources = contextlib.ExitStack()
        self._updated = 0.0
        self._started = False
        self._signs: tuple[object, ...] = ()
        self._since = time.monotonic()
        enter, leave = self._resources.enter_context, self._resources.callback
        solver = Packed.of(solver)
        try:
            if not isinstance(cluster, OpenCluster):
                cluster = enter(OpenCluster.open(cluster, settings, faults))
            self.cluster = cluster
            self.client = client = enter(cluster.address.client())
            self.dashboard_link: str = client.dashboard_link
            placement = enter(Placement(client))
            spec = solver.spec if settings.streams else receipts(solver.spec)
            recorded = RecordingSink(self.ledger, sink)
            self.inlet = enter(Inlet(spec, recorded, host=cluster.address.interface))
            task = enter(
                on_workers(
                    client,
                    solver,
                    self.inlet.endpoint,
                    cores=settings.cores,
                    writer=settings.writer,
                    streams=settings.streams,
                    inputs=settings.inputs,
                    ours=cluster.address.ours,
                    study=placement.study,
                )
            )
            goes_on = settings.streams and not settings.archives_all
            unarchived = replace(task, archives=False) if goes_on else None
            tasks = Tasks(client, task, settings.name, placement, unarchived)
            workers = Workers(
                client,
                jobs=cluster.jobs,
                share=settings.share,
                from_jobs=cluster.address.jobs,
            )
            failures = FailureLog(settings.folder / settings.failures)
            self._ensemble = Ensemble(
                tasks,
                workers,
                design,
                self.ledger,
                faults=faults,
                listeners=[failures, self._give_up, *listeners],
                ahead=settings.ahead,
            )
            self._watchdog = None
            if faults.step_timeout is not None:
                limit = faults.step_timeout
                self._watchdog = Watchdog(tasks, self.inlet, self.ledger, limit)
                leave(self._watchdog.close)
            leave(self._ensemble.close)
            leave(self.inlet.stop_outlets, "the study has ended")
            leave(self._ensemble.halt)
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to submit simulations; may be called again."""
        if not self._started:
            self._started = True
            self._since = time.monotonic()
            self._ensemble.start()
            if self._watchdog is not None:
                self._watchdog.start()

    def _give_up(self, event: Event) -> None:
        if isinstance(event, Failed):
            self.inlet.give_up(event.simulation.number)

    def check(self, load: Load | None = None, *, held_up: bool = False) -> None:
        """Raise what stopped the study, if anything did.

        Parameters
        ----------
        load : Load, optional
            Who has waited for whom; the number of jobs follows it.
        held_up : bool
            Whether simulations wait until the trainer draws.

        Raises
        ------
        StudyTimeout
            If simulations run, nothing holds them up, and yet for ``faults.patience``
            seconds no step has arrived and no attempt has failed, whatever the trainer
            does meanwhile.
        """
        self._ensemble.check()
        self.inlet.check()
        if self._watchdog is not None:
            self._watchdog.check()
        self._update_jobs(load or Load())
        counters, stats = self.inlet.stats(), self.stats()
        # Workers that begin again after a pause have as long as those before.
        paused, live = bool(self._ensemble.waiting()), counters.connections
        signs = (counters.steps, stats.retried, stats.failed, paused, live)
        now, patience = time.monotonic(), self._faults.patience
        if signs != self._signs or held_up or not stats.running:
            self._signs, self._since = signs, now
        elif now - self._since > patience:
            workers = self._ensemble.waiting()
            raise StudyTimeout(
                f"No step for {patience:g} s (faults.patience), though "
                f"{counted(stats.running, 'simulation')} "
                f"{'runs' if stats.running == 1 else 'run'}. "
                f"{self.silent()}{workers and f' {workers}.'} A "
                "solver hangs: set faults.step_timeout to retry such simulations. Or "
                "it takes longer for a step: then raise patience."
            )

    def _update_jobs(self, load: Load) -> None:
        now, jobs = time.monotonic(), self.cluster.jobs
        if jobs is None or now - self._updated < 1.0:
            return
        self._updated = now
        live = [p for p in self.inlet.progress() if p.connected]
        ages = [now - p.opened - p.waited for p in live]
        longest = max([*ages, self.inlet.stats().longest])
        # Of the simulations of other studies this one knows nothing.
        left = self._ensemble.remaining if self._share == 1 else None
        jobs.update(replace(load, simulations_left=left, longest=longest))

    def stats(self) -> EnsembleStats:
        """Count simulations by state."""
        return self._ensemble.stats()

    def wait(self, timeout: float) -> bool:
        """Block until all simulations have ended; return whether they have."""
        return self._ensemble.wait(timeout)

    def waiting(self) -> str:
        """Return what holds up the workers, missing jobs or want of memory, or ""."""
        jobs, missing = self.cluster.jobs, ""
        if jobs and self._ensemble.remaining != 0 and jobs.at_work < jobs.wanted:
            missing = jobs.describe()
        return "; ".join(filter(None, [missing, self._ensemble.waiting()]))

    def silent(self) -> str:
        """Return which simulations run, and how long each has been silent."""
        now = time.monotonic()
        live = sorted(self.inlet.progress(), key=lambda p: p.last)
        if not live:
            return "No simulation is connected: look at the workers' logs."
        described = [
            f"simulation {p.simulation} (step {p.next_step}, {now - p.last:.0f} s ago)"
            for p in live[:5]
        ]
        return f"Silent longest: {', '.join(described)}."

    def close(self) -> None:
        """Stop what runs and free every process, port and file; may be called again."""
        self._resources.close()
