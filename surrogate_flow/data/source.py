"""Where the steps of an online run come from: a study, on all of its ranks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from surrogate_flow.cluster.batch import Load
from surrogate_flow.cluster.open import ClusterSource
from surrogate_flow.data.ranks import RankError, Ranks, State
from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.ensemble.events import Listener
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.ledger import Ledger
from surrogate_flow.ensemble.study import OpenCluster, Study, StudySettings
from surrogate_flow.sampling import Design
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Sink, StreamStats

__all__ = ["Local", "Source"]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """What feeds the sink of an online run.

    Attributes
    ----------
    ledger : Ledger
        Which simulations run, are complete or have failed.
    """

    ledger: Ledger

    def start(self) -> None:
        """Have the simulations begin; may be called again."""

    def check(self, load: Load | None = None, *, held_up: bool = False) -> None:
        """Raise what stopped it, if anything did; as `Study.check`."""

    def stats(self) -> EnsembleStats:
        """Count simulations by state."""
        ...

    def stream(self) -> StreamStats:
        """Return what has been received."""
        ...

    def waiting(self) -> str:
        """Return what holds up the workers, or ""."""
        ...

    def close(self) -> None:
        """Stop what runs; may be called again."""


class Local:
    """A study of this process's own, on a cluster that all ranks share.

    The first rank opens the cluster and closes it, when the studies of all have ended.

    Parameters
    ----------
    solver, design, sink, faults, listeners
        As `Study`.
    cluster : ClusterConfig or callable, optional
        Opens the cluster; one worker a core on this machine by default.
    settings : StudySettings
    ranks : Ranks
    """

    def __init__(
        self,
        solver: Solver,
        design: Design,
        sink: Sink,
        *,
        cluster: ClusterSource,
        faults: Faults,
        settings: StudySettings,
        listeners: Sequence[Listener],
        ranks: Ranks,
    ) -> None:
        rank, world = ranks.rank, ranks.world
        if rank:
            settings = replace(settings, failures=f"failures_{rank}.csv")
        settings = replace(settings, share=world)
        with contextlib.ExitStack() as resources:
            opened = resources.enter_context(_shared(cluster, faults, settings, ranks))
            with ranks.fail_together():
                self.study = Study(
                    solver,
                    design,
                    sink,
                    cluster=opened,
                    faults=faults,
                    settings=settings,
                    listeners=listeners,
                )
                resources.callback(self.study.close)
            ranks.gather_states(State.READY)
            self._resources = resources.pop_all()
        self.ledger = self.study.ledger
        self.start, self.check = self.study.start, self.study.check
        self.stats, self.waiting = self.study.stats, self.study.waiting
        self.stream = self.study.inlet.counters
        if rank == 0:
            logger.info("Dask dashboard: %s", self.study.dashboard_link)

    def close(self) -> None:
        """Stop what runs, and the cluster behind all ranks; may be called again."""
        self._resources.close()


@contextlib.contextmanager
def _shared(
    cluster: ClusterSource,
    faults: Faults,
    settings: StudySettings,
    ranks: Ranks,
) -> Iterator[OpenCluster]:
    """Open the cluster on the first rank, and yield it on all."""
    with contextlib.ExitStack() as resources:
        mine = None
        with ranks.fail_together():
            if ranks.rank == 0:
                mine = resources.enter_context(
                    OpenCluster.open(cluster, settings, faults)
                )
                _check_reach(mine.address.scheduler_address, ranks)
                if not ranks.on_one_machine:
                    mine.address.local = False
                if ranks.world > 1:
                    keys = mine.address.in_files(settings.folder)
                    mine = replace(mine, address=resources.enter_context(keys))
        resources.callback(_leave, ranks)
        ranks.gather_states(State.READY)
        address = ranks.gather(mine and mine.address)[0]
        yield mine or OpenCluster(address)


def _check_reach(address: str, ranks: Ranks) -> None:
    if not ranks.on_one_machine and "//127." in address:
        raise ValueError(
            "Ranks on several machines need a cluster that all of them reach, got one "
            f"at {address}, which is this machine only. Name another one with "
            "--data.cluster, such as workflows/clusters/slurm.yaml."
        )


def _leave(ranks: Ranks) -> None:
    try:
        ranks.gather_states(State.ENDED)
    except RankError as error:
        # This one has ended all the same.
        logger.warning("%s", error)
