"""One study: a cluster, an inlet and an ensemble, opened and closed together."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from surrogate_flow.cluster.batch import Load, Supervisor, batch_system
from surrogate_flow.cluster.existing import Existing
from surrogate_flow.cluster.open import ClusterSource, is_local, open_cluster
from surrogate_flow.data.ranks import RankError, Ranks, State
from surrogate_flow.dataset import Writer
from surrogate_flow.ensemble.ensemble import Ensemble, EnsembleStats
from surrogate_flow.ensemble.failures import Failures
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.task import receipts, run
from surrogate_flow.ensemble.watchdog import Watchdog
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Inlet, NotExpected, Sink

__all__ = ["Study"]

logger = logging.getLogger(__name__)


class Study:
    """Simulations run, and their steps arrive in a sink, from `start` to `close`.

    Parameters
    ----------
    name : str
        Of the workflow.
    solver : Solver
    simulations : iterator of Simulation
    sink : Sink
        Where the steps go.
    cluster : callable, optional
        Builds the cluster; one worker a core on this machine by default.
    faults : Faults
    folder : Path
        Of the run; failures.csv goes there.
    blocked : callable
        Whether simulations that wait for the sink do so for the trainer.
    on_set_aside : callable
        Called with the number of each simulation that failed for good; has the inlet
        give it up, now or later.
    on_end : callable
        Called when the last simulation has ended.
    waits : callable, optional
        Who has waited for whom; the number of jobs follows it.
    cores_per_simulation : int
    ahead : int
        Simulations in flight, for each thread of the workers.
    ranks : Ranks, optional
        The first opens the cluster, and all share its workers.
    writer : Writer, optional
        Of a data set that the simulations go into, too.
    streams : bool
        Whether fields arrive in the sink, or only `receipts`: then the data set must
        be writable, or the study ends.
    """

    def __init__(
        self,
        name: str,
        solver: Solver,
        simulations: Iterator[Simulation],
        sink: Sink,
        *,
        cluster: ClusterSource,
        faults: Faults,
        folder: Path,
        blocked: Callable[[], bool],
        on_set_aside: Callable[[int], None],
        on_end: Callable[[], None],
        waits: Callable[[], Load] | None = None,
        cores_per_simulation: int = 1,
        ahead: int = 2,
        ranks: Ranks | None = None,
        writer: Writer | None = None,
        streams: bool = True,
    ) -> None:
        ranks = ranks or Ranks()
        self._faults = faults
        self._blocked = blocked
        self._on_set_aside = on_set_aside
        self._sink = _Expecting(sink)
        self._waits = waits
        self._world = ranks.world
        self.supervisor: Supervisor | None = None
        self._load_updated = 0.0
        self._resources = contextlib.ExitStack()
        try:
            with ranks.fail_together():
                known = self._open_cluster(cluster, folder, ranks, cores_per_simulation)
            ranks.gather_states(State.READY)
            known = ranks.gather(known)[0]
            with ranks.fail_together():
                self._client = self._resources.enter_context(known.client())
                self.dashboard_link: str = self._client.dashboard_link
                self.inlet = self._resources.enter_context(
                    Inlet(
                        solver.spec if streams else receipts(solver.spec),
                        self._sink,
                        host=known.interface,
                    )
                )
            ranks.gather_states(State.READY)
            plain = partial(run, solver, self.inlet.endpoint)
            self._ensemble = Ensemble(
                self._client,
                partial(plain, writer=writer, streams=streams) if writer else plain,
                self._begin(simulations),
                name=name,
                faults=faults,
                failures=Failures(
                    folder / f"failures{f'_{ranks.rank}' if ranks.rank else ''}.csv"
                ),
                ahead=ahead,
                share=ranks.world,
                is_whole=self.inlet.is_whole,
                on_set_aside=self._set_aside,
                # Behind what the inlet was asked before: it may still be giving up.
                on_end=lambda: self.inlet.call(on_end),
                watchdog=None
                if faults.step_timeout is None
                else Watchdog(self._client, self.inlet, faults.step_timeout),
                supervisor=self.supervisor,
                patient=known.jobs,
                unarchived=plain if streams else None,
            )
            self._resources.callback(self._ensemble.close)
            self._resources.callback(self.inlet.dismiss, "the study has ended")
            self._resources.callback(self._ensemble.halt)
            self._signs, self._since = (0, 0, 0), time.monotonic()
            self._started = False
        except BaseException:
            self._resources.close()
            raise

    def _open_cluster(
        self,
        cluster: ClusterSource,
        folder: Path,
        ranks: Ranks,
        cores: int,
    ) -> Existing | None:
        """Open the cluster on the first rank; it is closed when all have left."""
        known = None
        if ranks.rank == 0:
            opened = self._resources.enter_context(
                open_cluster(
                    cluster, folder, self._faults.worker_ttl, cores_per_simulation=cores
                )
            )
            _check_reach(opened, ranks)
            if system := batch_system(cluster):
                # All ranks simulate at the same time.
                self.supervisor = self._resources.enter_context(
                    system.supervise(opened, at_least=ranks.world)
                )
            local = is_local(opened) and ranks.on_one_machine
            known = Existing.of(opened, local=local, jobs=self.supervisor is not None)
            if ranks.world > 1:
                known = self._resources.enter_context(known.in_files(folder))
        self._resources.callback(_part, ranks)
        return known

    def _update_jobs(self) -> None:
        now = time.monotonic()
        if self.supervisor is None or now - self._load_updated < 1.0:
            return
        self._load_updated = now
        live = [p for p in self.inlet.progress() if p.connected]
        ages = [now - p.opened - p.waited for p in live]
        longest = max([*ages, self.inlet.counters().longest])
        load = self._waits() if self._waits else Load()
        # Of the simulations of other ranks this one knows nothing.
        left = self._ensemble.useful if self._world == 1 else None
        self.supervisor.update(replace(load, simulations_left=left, longest=longest))

    def start(self) -> None:
        """Begin to submit simulations; may be called again."""
        if not self._started:
            self._started = True
            self._since = time.monotonic()
            self._ensemble.start()

    def _begin(self, simulations: Iterator[Simulation]) -> Iterator[Simulation]:
        for simulation in simulations:
            self._sink.begun.add(simulation.number)
            yield simulation

    def _set_aside(self, simulation: int) -> None:
        self._sink.begun.discard(simulation)
        self._on_set_aside(simulation)

    def check(self) -> None:
        """Raise what stopped the study, if anything did.

        Raises
        ------
        TimeoutError
            If simulations run, nothing holds them up, and yet for ``faults.patience``
            seconds no step has arrived and no attempt has failed, whatever the trainer
            does meanwhile.
        """
        self._ensemble.check()
        self.inlet.check()
        self._update_jobs()
        counters, progress = self.inlet.counters(), self.progress()
        signs = (counters.steps, progress.retried, progress.failed)
        waiting = counters.pending > 0 and self._blocked()
        now = time.monotonic()
        if signs != self._signs or waiting or not progress.running:
            self._signs, self._since = signs, now
        elif now - self._since > self._faults.patience:
            held_up = self._ensemble.held_up()
            raise TimeoutError(
                f"No step for {self._faults.patience:g} s (faults.patience), though "
                f"{progress.running} simulations run. {self.silent()}"
                f"{f' {held_up}.' if held_up else ''} A solver hangs: "
                "set faults.step_timeout to retry such simulations. Or it takes longer "
                "for a step: then raise patience."
            )

    def progress(self) -> EnsembleStats:
        """Count simulations by state."""
        return self._ensemble.progress()

    def jobs(self) -> str:
        """Say what jobs there are, if some of those that are wanted have no workers."""
        jobs = self.supervisor
        if jobs is None or self._ensemble.useful == 0:
            return ""
        return jobs.describe() if jobs.at_work < jobs.wanted else ""

    def held_up(self) -> str:
        """Say what holds up the workers: jobs that are missing, or want of memory."""
        return "; ".join(filter(None, [self.jobs(), self._ensemble.held_up()]))

    def silent(self) -> str:
        """Say which simulations run, and how long each has been silent."""
        now = time.monotonic()
        live = sorted(self.inlet.progress(), key=lambda p: p.last)
        if not live:
            return "No simulation is connected: look at the workers' logs."
        words = [
            f"simulation {p.simulation} (step {p.next_step}, {now - p.last:.0f} s ago)"
            for p in live[:5]
        ]
        return f"Silent longest: {', '.join(words)}."

    def close(self) -> None:
        """Stop what runs and free every process, port and file; may be called again."""
        self._resources.close()


class _Expecting:
    """A sink that expects only simulations which have begun."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.begun: set[int] = set()
        self.offer = sink.offer
        self.close = sink.close
        self.priority = sink.priority
        self.waiting = sink.waiting
        self.on_room = sink.on_room

    def open(self, simulation: int) -> int:
        """Return the first step that is wanted of a simulation that has begun."""
        if simulation not in self.begun:
            raise NotExpected(simulation)
        # The inlet asks once: memory does not grow with the number of simulations.
        self.begun.discard(simulation)
        return self.sink.open(simulation)


def _check_reach(cluster: Any, ranks: Ranks) -> None:
    address = cluster.scheduler_address
    if not ranks.on_one_machine and "//127." in address:
        raise ValueError(
            "Ranks on several machines need a cluster that all of them reach, got one "
            f"at {address}, which is this machine only. Name another one with "
            "--data.cluster, such as workflows/clusters/slurm.yaml."
        )


def _part(ranks: Ranks) -> None:
    try:
        ranks.gather_states(State.ENDED)
    except RankError as error:
        # This one has ended all the same.
        logger.warning("%s", error)
